"""SHA-256 of files, by which a damaged one is known from what was written, and of weights."""

from __future__ import annotations

import hashlib
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
