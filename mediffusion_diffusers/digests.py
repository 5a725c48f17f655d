"""SHA-256 of files, by which a damaged one is known from what was written, of weights and of pipelines."""

from __future__ import annotations

import hashlib
import json
import os
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    import torch


def sha256_of(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's content, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def add_weights(digest: Any, module: torch.nn.Module) -> None:
    """Add a module's weights to a digest of `hashlib`: names, types, shapes, values, whatever their memory layout."""
    import torch

    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


def pipeline_digest(pipe: Any) -> str:
    """SHA-256 over the configs and weights of a pipeline's components, the first 16 digits."""
    digest = hashlib.sha256()
    for name, component in sorted(pipe.components.items()):
        config = {key: value for key, value in getattr(component, "config", {}).items() if not key.startswith("_")}
        digest.update(f"{name} {type(component).__name__} {json.dumps(config, sort_keys=True, default=str)}".encode())
        if hasattr(component, "state_dict"):
            add_weights(digest, component)
    return digest.hexdigest()[:16]
