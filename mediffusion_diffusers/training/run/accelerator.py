"""How accelerate is started: device, precision, trackers."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, ProjectConfiguration
from diffusers.utils import logging

from ...device import pick_device, switch_tf32
from ...trackers import check_tracker
from ..config import RunOptions


logger = logging.get_logger(__name__)


def start_accelerator(options: RunOptions) -> Accelerator:
    """The accelerator of a run, on the device that was asked for.

    Raises:
        ValueError: if this machine does not have it, or one device is named for several processes, or if the tracker
            is not installed.
    """
    check_tracker(options.report_to, "metrics.jsonl is always written")
    device = None if options.device is None else pick_device(options.device)
    if device is not None and device.index is not None and device.type != "cpu":
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ValueError(
                f"`device` must not name one of several devices, {options.device!r}, for several processes: each "
                f"takes one of its own. Give {device.type!r}."
            )
        torch.get_device_module(device).set_device(device)
    switch_tf32(options.allow_tf32)
    accelerator = Accelerator(
        mixed_precision=options.mixed_precision,
        gradient_accumulation_steps=options.gradient_accumulation_steps,
        cpu=device is not None and device.type == "cpu",
        log_with=options.report_to,
        project_config=ProjectConfiguration(
            project_dir=options.output_dir, logging_dir=str(Path(str(options.output_dir)) / "logs")
        ),
        # A step without class loss leaves the head out, and Table 3's ablation the decoder.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        logger.warning("`mixed_precision` 'fp16' needs an accelerator: on this CPU, training is in float32.")
    if device is not None and accelerator.device.type != device.type:
        raise ValueError(
            f"`device` is {options.device!r}, but accelerate was told to use {str(accelerator.device)!r}. Leave out "
            "one of them."
        )
    return accelerator
