"""A run as a schedule of stages: what each step belongs to follows from its number alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from .config import LRScheduler
from .run.learning_rate import lr_factor


@dataclass(frozen=True)
class LRSchedule:
    """A course of the learning rate, which one stage has to itself or several share.

    Args:
        first_step: where it begins, warm-up included.
        end_step: where it ends.
        name: see `lr_factor`.
        num_warmup_steps: length of the warm-up.
        peak: its largest factor.
    """

    first_step: int
    end_step: int
    name: LRScheduler
    num_warmup_steps: int
    peak: float = 1.0

    def factor(self, step: int) -> float:
        """Factor on the learning rates at a step of the run."""
        length = self.end_step - self.first_step
        return self.peak * lr_factor(step - self.first_step, self.name, self.num_warmup_steps, length)


@dataclass(frozen=True)
class Stage:
    """Steps `first_step` to `end_step - 1` of a run, in which the same is learned.

    Args:
        name: as the progress bar and `metrics.jsonl` say it.
        first_step: the first of its steps, from 0.
        end_step: the step after its last.
        lr_schedule: of the learning rates.
    """

    name: str
    first_step: int
    end_step: int
    lr_schedule: LRSchedule

    def __contains__(self, step: int) -> bool:
        return self.first_step <= step < self.end_step


AnyStage = TypeVar("AnyStage", bound=Stage)


def stage_at(stages: Sequence[AnyStage], step: int) -> AnyStage:
    """The stage that a step belongs to; after the end of the run, the last."""
    return next((stage for stage in stages if step in stage), stages[-1])
