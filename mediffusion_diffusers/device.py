"""Where a command computes, in which precision, and how images lie in memory there."""

from __future__ import annotations

from typing import Any

import torch


# In the order of preference where none is named.
ACCELERATORS = ("cuda", "xpu", "mps")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_device(name: str | None = None) -> torch.device:
    """The device of that name, or the best that there is.

    Args:
        name: as for `torch.device`; `None` takes the first of `ACCELERATORS` that works, else the CPU.

    Raises:
        ValueError: for a name that torch does not know, or a device that this machine does not have.
    """
    if name is None:
        return torch.device(next((kind for kind in ACCELERATORS if _count(kind)), "cpu"))
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        device = None
    if device is None or (device.index or 0) >= _count(device.type):
        there = [f"{kind}:{index}" for kind in ACCELERATORS for index in range(_count(kind))]
        raise ValueError(
            f"`device` must be one that this machine has, {', '.join(['cpu', *there])}, but got {name!r}. Leave it "
            "out to take the best one."
        )
    return device


def pick_dtype(name: str | None, device: torch.device) -> torch.dtype:
    """The precision of that name, if the device computes in it.

    Args:
        name: one of `DTYPES`; `None` is float32.
        device: where it must work.

    Raises:
        ValueError: for another name, or a precision that the device does not have.
    """
    if name is None:
        return torch.float32
    if name not in DTYPES:
        raise ValueError(f"`dtype` must be one of {', '.join(DTYPES)}, but got {name!r}.")
    try:
        one = torch.ones(1, 1, dtype=DTYPES[name], device=device)
        one @ one
    except (RuntimeError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"`dtype` {name!r} does not work on the device {str(device)!r}: {reason} Take float32."
        ) from error
    return DTYPES[name]


def switch_tf32(allowed: bool) -> None:
    """Allow or forbid TF32 in matrix products and convolutions of float32.

    PyTorch forbids it in the former and allows it in the latter; here both follow one switch.

    Args:
        allowed: whether products may be rounded.
    """
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


def memory_format_for(device: torch.device) -> torch.memory_format:
    """The order in which the convolutions of a device read weights and images best.

    A CPU reads (batch, height, width, channels). On a GPU group normalisation, of which the U-Net has one before each
    convolution, brings its input back to (batch, channels, height, width).

    Args:
        device: where the convolutions run.
    """
    return torch.channels_last if device.type == "cpu" else torch.contiguous_format


def _count(kind: str) -> int:
    """How many devices of a kind work here."""
    module: Any = torch.backends.mps if kind == "mps" else getattr(torch, kind, None)
    if module is None or not module.is_available():
        return 0
    return 1 if kind == "mps" else module.device_count()
