"""What an edit costs: floating-point operations in units of one U-Net evaluation, and memory above what is there."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


_INTERVAL = 0.005  # seconds between two looks at the memory


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
    """How far the resident memory of this process rises while a call runs; looked at every few milliseconds."""
    release_memory()
    before = resident_megabytes()
    highest, ended = before, threading.Event()

    def look() -> None:
        nonlocal highest
        while not ended.is_set():
            highest = max(highest, resident_megabytes())
            time.sleep(_INTERVAL)

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        run()
    finally:
        ended.set()
        watcher.join()
    return highest - before


def release_memory() -> None:
    """Give what the allocator holds in reserve back to the system, where it is glibc's."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def resident_megabytes() -> float:
    """Resident memory of this process, as Linux keeps it."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * 4096 / 2**20
