"""What an edit costs: floating-point operations in units of one U-Net evaluation, and memory above what is there."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class CountOperations(TorchDispatchMode):
    """Adds up the floating-point operations of convolutions and matrix products, backward passes included.

    Unlike `torch.utils.flop_counter.FlopCounterMode`, which also follows modules, it allows `torch.autograd.grad`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.total += count(*args, **(kwargs or {}), out_val=result)
        return result


def unet_evaluations(unet: Any, run: Callable[[], Any], num_images: int) -> float:
    """Operations of a call per image, in units of one unguided evaluation of the U-Net: free of timing noise.

    So an evaluation whose gradient is taken counts for what it is, and so do classifiers.

    Args:
        unet: the joint model.
        run: the call.
        num_images: that it edits.
    """
    size = unet.config.sample_size
    sample = torch.zeros(1, unet.config.in_channels, *((size, size) if isinstance(size, int) else size))
    with torch.no_grad(), CountOperations() as one:
        unet(sample.to(unet.dtype), 0, return_logits=False)
    with CountOperations() as all_of_them:
        run()
    return all_of_them.total / one.total / num_images


def peak_megabytes(run: Callable[[], Any]) -> float:
    """How far the resident memory of this process rises while a call runs, as Linux keeps it."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)  # what glibc's allocator holds in reserve would hide a rise
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the highest is the present size from here on
    before = resident_megabytes("VmRSS")
    run()
    return resident_megabytes("VmHWM") - before


def resident_megabytes(kind: str) -> float:
    """Resident memory of this process: the present (`VmRSS`) or the highest (`VmHWM`)."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{kind}:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {kind}.")


def rounded(value: Any) -> Any:
    """Four significant digits everywhere."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value
