"""Where a command computes, as options: `device` picks, and is loaded only then, for torch takes seconds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from .options import option


if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class DeviceOptions:
    """Options of a command that runs a trained model."""

    _argument_group_name = "device"

    device: str | None = option(None, "cpu, cuda, cuda:1, xpu, mps, ...; by default an accelerator if there is one.")
    dtype: Literal["float32", "bfloat16", "float16"] = option("float32", "Precision of the model's weights.")
    allow_tf32: bool = option(
        False, "Let NVIDIA GPUs round the factors of float32 products to 10 bits: faster, and less exact."
    )

    def choose(self) -> tuple[torch.device, torch.dtype]:
        """Pick device and precision, and switch TF32 on or off for the whole process.

        Raises:
            ValueError: as `device.pick_device` and `device.pick_dtype`.
        """
        from .device import pick_device, pick_dtype, switch_tf32

        device = pick_device(self.device)
        switch_tf32(self.allow_tf32)
        return device, pick_dtype(self.dtype, device)
