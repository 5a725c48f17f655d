"""Training by the product's own loop: the joint task, left without what a benchmark does not look at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch

from mediffusion_diffusers.latents import encode_pixels
from mediffusion_diffusers.training.joint.config import JointConfig
from mediffusion_diffusers.training.joint.task import JointTask
from mediffusion_diffusers.training.loop import TrainingLoop
from mediffusion_diffusers.training.run.run import training_run

from .problem import Logits


@dataclass(frozen=True)
class Outcome:
    """What a method leaves.

    Args:
        logits: its answers.
        task: what was trained, if it was by the loop.
    """

    logits: Logits
    task: BenchmarkTask | None = None


class BenchmarkTask(JointTask):
    """Joint training without validation, samples and final model: the last checkpoint is what others go on from."""

    def report_is_due(self, done: int) -> bool:
        """Never."""
        return False

    def finish(self) -> None:
        """Nothing is saved beside the checkpoint."""

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """Answers of the averaged weights to clean images in [-1, 1]."""
        assert self.ema is not None
        latents = encode_pixels(self.vae, images).contiguous(memory_format=torch.channels_last)
        return self.ema.averaged()(latents, 0, return_sample=False).logits


class PublishedTask(BenchmarkTask):
    """The same, with the model saved as a pipeline."""

    def finish(self) -> None:
        """Save the pipeline."""
        JointTask.finish(self)


AnyTask = TypeVar("AnyTask", bound=BenchmarkTask)


def train(config: JointConfig, task_class: type[AnyTask]) -> AnyTask:
    """Train what is left of a run, and give the task with its averaged weights."""
    config.check()
    with training_run(config) as run:
        task = task_class(config)
        TrainingLoop(run, task, config.optimizer).train()
    return task


def outcome_of(config: JointConfig, task_class: type[BenchmarkTask] = BenchmarkTask) -> Outcome:
    """Train, and give the answers of the averaged weights."""
    task = train(config, task_class)
    return Outcome(task.logits, task)
