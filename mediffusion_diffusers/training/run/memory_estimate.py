"""How much memory a step of training needs, worked out on the meta device: shapes without numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd.graph import saved_tensors_hooks


GIB = 2**30
_FLOAT32 = 4


def saved_activation_bytes(forward: Callable[[], Any], parameters: list[torch.nn.Parameter]) -> int:
    """Bytes that autograd keeps for the backward pass of a call, the parameters left out.

    Args:
        forward: runs the model, usually on the meta device; what it returns is kept until the count is over.
        parameters: those of the model.

    Returns:
        The sum over all tensors, each counted once.
    """
    seen: dict[int, torch.UntypedStorage] = {}
    own = {parameter.untyped_storage()._cdata for parameter in parameters}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            seen[storage._cdata] = storage  # kept, so that its address is not used again
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()
    del result
    return sum(storage.nbytes() for storage in seen.values())


def memory_estimate(
    num_trained: int,
    num_frozen: int,
    use_ema: bool,
    activation_bytes: int | None,
    mixed_precision: str | None,
    missing: list[str],
) -> dict[str, Any]:
    """Add up what lies in a process's memory in the middle of a step.

    Args:
        num_trained: parameters with gradients; weights, gradients, AdamW's two moments and the average are float32.
        num_frozen: other parameters.
        use_ema: whether there is an average.
        activation_bytes: of `saved_activation_bytes`, for this process's slice of the batch; `None` if not known.
        mixed_precision: `"fp16"` and `"bf16"` halve the activations, roughly.
        missing: what the figures leave out.

    Returns:
        Figures in GiB, their sum, and what is not in it.
    """
    parts = {
        "weights": (num_trained + num_frozen) * _FLOAT32,
        "gradients": num_trained * _FLOAT32,
        "adamw": 2 * num_trained * _FLOAT32,
        "ema": num_trained * _FLOAT32 if use_ema else 0,
    }
    left_out = ["the data, buffers of the operations and the framework", *missing]
    if activation_bytes is None:
        left_out.append("activations")
    else:
        parts["activations"] = activation_bytes // (1 if mixed_precision in (None, "no") else 2)
    gib: dict[str, Any] = {f"{name}_gib": round(size / GIB, 3) for name, size in parts.items()}
    return {**gib, "sum_gib": round(sum(parts.values()) / GIB, 3), "not_included": left_out}
