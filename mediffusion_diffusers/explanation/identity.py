"""What tells one run from another: the model, what is asked, and what is read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch

from ..digests import add_weights
from ..version import __version__


def run_identity(request: Any, pipe: Any, columns: Mapping[str, Any]) -> dict[str, Any]:
    """What two chunks must have in common to belong to one run, as plain values for JSON.

    The batch size, the engine and the number of processes are not among it: they change results by rounding at most.

    Args:
        request: what is asked.
        pipe: the pipeline.
        columns: names of the input columns that are read.
    """
    identity = {"model_hash": model_hash(pipe), "version": __version__, **asdict(request), **columns}
    return json.loads(json.dumps(identity))


def model_hash(pipe: Any) -> str:
    """SHA-256 over the configs and weights of a pipeline's components, the first 16 digits."""
    digest = hashlib.sha256()
    for name, component in sorted(pipe.components.items()):
        config = {key: value for key, value in getattr(component, "config", {}).items() if not key.startswith("_")}
        digest.update(f"{name} {type(component).__name__} {json.dumps(config, sort_keys=True, default=str)}".encode())
        if isinstance(component, torch.nn.Module):
            add_weights(digest, component)
    return digest.hexdigest()[:16]


def identity_differences(there: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """In words, what differs between an earlier identity and this run's; empty if they are the same.

    What one of them lacks counts as `None`: an option that was added since and is not given changes nothing.
    """
    names = sorted(there.keys() | now.keys())
    return [
        f"`{name}` is {there.get(name)!r} there and {now.get(name)!r} now"
        for name in names
        if there.get(name) != now.get(name)
    ]
