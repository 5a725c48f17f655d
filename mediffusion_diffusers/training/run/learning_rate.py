"""Learning-rate schedules as pure functions of the step, so that a resumed run needs no scheduler state."""

from __future__ import annotations

import math
from typing import get_args

from torch.optim import Optimizer

from ..config import LRScheduler


LR_SCHEDULERS = get_args(LRScheduler)
# Of `warmup_stable_decay`: the last part of the schedule, in which the rate falls to 0.
DECAY_SHARE = 0.25


def lr_factor(
    step: int,
    name: str = "constant",
    num_warmup_steps: int = 0,
    num_training_steps: int = 1,
) -> float:
    """Factor on the learning rate at a step, as [`~diffusers.optimization.get_scheduler`] defines it.

    `"warmup_stable_decay"` is transformers' (with a linear decay): constant up to the last quarter.

    Args:
        step: optimizer step, from 0.
        name: one of `LR_SCHEDULERS`.
        num_warmup_steps: length of the linear warm-up (not used by `"constant"`).
        num_training_steps: steps of the whole schedule.

    Returns:
        A number in [0, 1].

    Raises:
        ValueError: for an unknown `name`.
    """
    if name not in LR_SCHEDULERS:
        raise ValueError(f"`lr_scheduler` must be one of {LR_SCHEDULERS}, but got {name!r}.")
    if name == "constant":
        return 1.0
    if step < num_warmup_steps:
        return step / max(1, num_warmup_steps)
    if name == "constant_with_warmup":
        return 1.0
    remaining = max(1, num_training_steps - num_warmup_steps)
    if name == "warmup_stable_decay":
        return max(0.0, min(1.0, (num_training_steps - step) / max(1, round(DECAY_SHARE * num_training_steps))))
    progress = (step - num_warmup_steps) / remaining
    if name == "linear":
        return max(0.0, 1.0 - progress)
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))


def set_learning_rate(optimizer: Optimizer, factor: float) -> None:
    """Set every parameter group's rate to `factor` times the group's `initial_lr`."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
