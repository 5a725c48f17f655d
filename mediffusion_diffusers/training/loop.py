"""The training loop: one for the joint model, the autoencoder and the oracle."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from .config import OptimizerOptions, TrainingConfig
from .run.checkpoints import Checkpoint, module_tensors, optimizer_tensors, restore_module, restore_optimizer
from .run.ema import EMAWeights
from .run.learning_rate import set_learning_rate
from .run.run import TrainingRun
from .stages import LRSchedule, Stage, stage_at


@dataclass
class Trained:
    """A module that is trained, with its optimizer.

    Args:
        name: names its file in a checkpoint.
        module: whose parameters the optimizer has.
        optimizer: its optimizer; each group has an `initial_lr`.
        objective: computes its loss, with the module inside; `start` replaces it by what accelerate wraps it in.
        optimizer_name: names the optimizer's file in a checkpoint.
        start_option: option that says from which step on it is trained; earlier checkpoints may lack it.
        start_step: that step.
    """

    name: str
    module: nn.Module
    optimizer: Optimizer
    objective: nn.Module
    optimizer_name: str = "optimizer"
    start_option: str = ""
    start_step: int = 0


class Task(ABC):
    """What is trained, and what is learned from a batch.

    `start` makes `trained`, the modules with their optimizers, and `ema`, the moving average or `None`.
    """

    config: TrainingConfig
    trained: Sequence[Trained]
    ema: EMAWeights[Any] | None
    # Writes what the Hub shall hold beside a checkpoint into a folder; `None` for nothing.
    write_model: Callable[[Path], None] | None = None

    @property
    def stages(self) -> Sequence[Stage]:
        """The stages of the run, in order and without gaps; by default one, with the schedule of the options."""
        options, end = self.config.optimizer, self.config.run.max_train_steps
        return [Stage("training", 0, end, LRSchedule(0, end, options.lr_scheduler, options.lr_warmup_steps))]

    def begin_stage(self, stage: Any, step: int) -> None:  # noqa: B027 (not every task has something to do)
        """Called before the first step of a stage, and of a resumed run, which may lie inside of one."""

    @abstractmethod
    def start(self, run: TrainingRun) -> None:
        """Bring everything to the run's device and make optimizers and average."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """What describes the run beside its options."""

    @abstractmethod
    def batches(self) -> Iterator[Any]:
        """What the steps that are left see: one batch per accumulation part of each."""

    @abstractmethod
    def losses(self, batch: Any, step: int, part: int) -> dict[str, torch.Tensor]:
        """Losses of this process's slice, differentiated by `run.backward`; each a sum over the global batch."""

    def num_images(self, step: int) -> int:
        """Images that a step uses, over all processes."""
        return self.config.data.train_batch_size

    def measures(self, factor: float) -> dict[str, float]:
        """What to record beside the losses, given the factor on the learning rates."""
        return {"learning_rate": self.config.optimizer.learning_rate * factor}

    @abstractmethod
    def report_is_due(self, done: int) -> bool:
        """Whether to validate or draw samples after `done` steps."""

    @abstractmethod
    def report(self, done: int) -> None:
        """Validate and draw samples, as far as they are due."""

    def own_tensors(self) -> dict[str, dict[str, torch.Tensor]]:
        """What a checkpoint must hold beside modules, optimizers and average, by group."""
        return {}

    def restore_own(self, tensors: Mapping[str, dict[str, torch.Tensor]], step: int) -> None:  # noqa: B027
        """Take back what `own_tensors` gave, from a checkpoint's groups written after `step` steps."""

    @abstractmethod
    def finish(self) -> None:
        """Save the final model."""


class TrainingLoop:
    """Trains a task, or what is left of it, in the frame of a run.

    Args:
        run: the run, whose folder is claimed.
        task: what is trained.
        options: of the optimizer.
    """

    def __init__(self, run: TrainingRun, task: Task, options: OptimizerOptions):
        self.run, self.task, self.options, self.stages = run, task, options, task.stages

    def train(self) -> None:
        """Run every step that is left, and save the final model.

        Raises:
            FloatingPointError: if a loss or a weight is not finite.
            StoppedBySignal: after SIGTERM or Ctrl-C, with the checkpoint saved.
        """
        run, task = self.run, self.task
        run.open()
        task.start(run)
        self._restore()
        run.begin(task.facts())
        for each in task.trained:
            each.objective = run.accelerator.prepare(each.objective).train()
        batches = task.batches()

        with closing(run.steps()) as steps:
            for step in steps:
                self._step(step, batches)
        task.finish()
        run.finish()

    def _step(self, step: int, batches: Iterator[Any]) -> None:
        """One step of everything, and what is due after it."""
        run, task = self.run, self.task
        # 1. The stage, and the learning rates, follow from the step alone.
        stage = stage_at(self.stages, step)
        if step in (stage.first_step, run.first_step):
            run.enter(stage.name if len(self.stages) > 1 else None)
            task.begin_stage(stage, step)
        factor = stage.lr_schedule.factor(step)
        for each in task.trained:
            set_learning_rate(each.optimizer, factor)
        # 2. Losses and gradients, part by part.
        losses: dict[str, torch.Tensor] = {}
        for part in range(run.num_parts):
            with run.waiting_for_data():
                batch = next(batches)
            with run.accelerator.accumulate(*(each.objective for each in task.trained)):
                for name, value in task.losses(batch, step, part).items():
                    losses[name] = losses.get(name, torch.zeros_like(value)) + value.detach()
        # 3. One step of the optimizers and of the average.
        self._step_optimizers()
        if task.ema is not None:
            task.ema.step()

        done = step + 1
        run.record_losses(step, losses, task.num_images(step))
        if run.is_due(done, run.options.logging_steps):
            run.log_losses(done, task.measures(factor))
        with run.outside_training():
            if task.report_is_due(done):
                run.losses.read()
                task.report(done)
            if run.checkpoint_is_due(done):
                run.save(done, *self._state(), task.write_model)

    def _step_optimizers(self) -> None:
        """Clip and apply the gradients of every module that has some; with fp16 they share one scaler."""
        scaler = self.run.accelerator.scaler
        for each in self.task.trained:
            parameters = [parameter for parameter in each.module.parameters() if parameter.grad is not None]
            if not parameters:
                continue
            if scaler is not None:
                scaler.unscale_(each.optimizer)
            if self.options.max_grad_norm is not None:
                nn.utils.clip_grad_norm_(parameters, self.options.max_grad_norm)
            if scaler is not None:
                scaler.step(each.optimizer)
            else:
                each.optimizer.step()
            each.optimizer.zero_grad()
        if scaler is not None:
            scaler.update()

    def _state(self) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, Any]]:
        """Tensors by group, and what is not a tensor, for a checkpoint."""
        tensors, state = {}, {}
        for each in self.task.trained:
            tensors[each.name] = module_tensors(each.module)
            tensors[each.optimizer_name] = optimizer_tensors(each.optimizer, each.module)
        if self.task.ema is not None:
            tensors["ema"] = self.task.ema.state_tensors()
            state["ema"] = self.task.ema.state_scalars()
        return {**tensors, **self.task.own_tensors()}, state

    def _restore(self) -> None:
        """Put the checkpoint's tensors into their places.

        Raises:
            ValueError: if it belongs to another model.
        """
        checkpoint, self.run.checkpoint = self.run.checkpoint, None  # its tensors are not needed any more then
        if checkpoint is None:
            return
        for each in self.task.trained:
            if each.name in checkpoint.tensors:
                restore_module(each.module, checkpoint.tensors[each.name], checkpoint.path)
                restore_optimizer(each.optimizer, each.module, checkpoint.tensors[each.optimizer_name])
            else:
                _require_not_begun(each, checkpoint)
        if self.task.ema is not None:
            if "ema" in checkpoint.tensors:
                self.task.ema.load_state(checkpoint.tensors["ema"], checkpoint.state["ema"])
            else:
                self.task.ema.begin_anew()
        self.task.restore_own(checkpoint.tensors, checkpoint.step)


def _require_not_begun(trained: Trained, checkpoint: Checkpoint) -> None:
    """A module that a checkpoint lacks must be the initial one then: its training has not begun."""
    if not trained.start_option:
        raise ValueError(
            f"Checkpoint {checkpoint.path} belongs to another kind of training: it holds no {trained.name!r}. Choose "
            "another `output_dir`."
        )
    if checkpoint.step > trained.start_step:
        raise ValueError(
            f"Checkpoint {checkpoint.path} holds no {trained.name}, but `{trained.start_option}={trained.start_step}` "
            f"is over. Set `{trained.start_option}` to {checkpoint.step} or later."
        )
