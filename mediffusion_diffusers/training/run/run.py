"""The frame of a training run: its folder, its processes, its records and its checkpoints."""

from __future__ import annotations

import importlib.metadata
import signal
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from diffusers.utils import logging
from tqdm.auto import tqdm

from ...atomic_files import write_json
from ...metrics_log import MetricsLog
from ...output_folder import claimed_folder
from ...stop_request import StoppedBySignal, StopRequest
from ...version import __version__
from ..config import HubOptions, TrainingConfig
from .accelerator import start_accelerator
from .checkpoints import Checkpoint, resume_checkpoint, save_checkpoint
from .finite import require_finite, require_finite_tensors
from .hub_checkpoints import HubUploads, download_for_resuming, hub_source, refuse_public_repository
from .interruption import explained_full_disk
from .output import CONFIG_FILE, METRICS_FILE, check_output_folder, prepare_output_folder, warn_about_changes
from .step_losses import StepLosses


logger = logging.get_logger(__name__)

# How long a run that was told to stop waits for its last upload; a batch system kills after half a minute or so.
_UPLOAD_GRACE_SECONDS = 15.0


@contextmanager
def training_run(config: TrainingConfig, hub: HubOptions | None = None) -> Iterator[TrainingRun]:
    """Start a run, whose folder belongs to it while the block runs.

    Args:
        config: all options, checked.
        hub: how it is published; `None` publishes nothing.

    Raises:
        ValueError: if another run is at work in `output_dir` or has left something there that is not to be resumed;
            if the folder cannot be written to; if the device or the batch does not fit.
        OSError: saying what is left, when the disk fills up.
    """
    run = TrainingRun(config, HubOptions() if hub is None else hub)
    with explained_full_disk(run.output_dir), run.claimed():
        check_output_folder(run.options, run.hub)
        try:
            yield run
        finally:
            run.bar.close()  # else it would be drawn once more, after the last word


class TrainingRun:
    """Everything around the training loop.

    Creating it starts accelerate; `open` prepares the folder and finds the checkpoint to resume from; once its state
    is restored, `begin` opens the records, and `steps` walks through the steps that are left, with a progress bar.

    Args:
        config: all options, checked.
        hub: how it is published.

    Raises:
        ValueError: if the device is not there, or the batch is smaller than the number of its slices.
    """

    def __init__(self, config: TrainingConfig, hub: HubOptions):
        self.config, self.options, self.hub = config, config.run, hub
        assert config.run.output_dir is not None
        self.output_dir = Path(config.run.output_dir)
        self.accelerator = start_accelerator(config.run)
        self.device = self.accelerator.device
        self.is_main = self.accelerator.is_main_process
        num_slices, train_batch_size = self.num_processes * self.num_parts, config.data.train_batch_size
        if train_batch_size < num_slices:
            raise ValueError(
                f"`train_batch_size` is the batch over all processes and accumulation parts, so it must be at least "
                f"{self.num_processes} * {self.num_parts} = {num_slices}, but got {train_batch_size}."
            )
        self.stop = StopRequest()
        self.must_stop = False
        self.stage: str | None = None
        self.bar = tqdm(disable=True)
        # Signals are agreed on by the hosts, beside whatever the devices are at.
        self._hosts = torch.distributed.new_group(backend="gloo") if self.num_processes > 1 else None

    @property
    def num_processes(self) -> int:
        """Processes that share every batch."""
        return self.accelerator.num_processes

    @property
    def num_parts(self) -> int:
        """Accumulation parts per step."""
        return self.options.gradient_accumulation_steps

    def place(self, part: int) -> int:
        """Which of the `num_processes * num_parts` slices of a global batch is this process's in a part."""
        return part * self.num_processes + self.accelerator.process_index

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Hold the folder against other runs; one process does it for all."""
        if not self.is_main:
            yield
            return
        with claimed_folder(self.output_dir):
            yield

    def open(self) -> None:
        """Prepare the folder, and read the checkpoint to resume from.

        Raises:
            ValueError: if the checkpoint cannot be used, or the repository is public and shall not be.
        """
        hub = self.hub
        if self.is_main:
            if hub.push_to_hub and hub.hub_private_repo:
                refuse_public_repository(hub.repo_id, hub.hub_token)
            prepare_output_folder(self.output_dir, self.options.overwrite_output_dir)
        self.accelerator.wait_for_everyone()
        self.checkpoint = self._find_checkpoint()
        self.first_step = 0 if self.checkpoint is None else self.checkpoint.step
        self._check_same_start()
        self.uploads: HubUploads | None = None
        if self.is_main and hub.push_to_hub and hub.hub_strategy == "every_save":
            self.uploads = HubUploads(hub.repo_id, hub.hub_token, hub.hub_private_repo)
        state = {} if self.checkpoint is None else self.checkpoint.state
        self.losses = StepLosses(self._sum_over_processes, state.get("loss_window"))
        if self.accelerator.scaler is not None and "grad_scaler" in state:  # not of a run in another precision
            self.accelerator.scaler.load_state_dict(state["grad_scaler"])

    def begin(self, facts: dict[str, Any]) -> None:
        """Write `training_config.json`, open `metrics.jsonl` and start the tracker.

        Args:
            facts: what describes the run beside its arguments (data, split hash, parameter counts).
        """
        self.accelerator.wait_for_everyone()
        if self.is_main:
            for name, step in self.config.unreached_starts().items():
                end = self.options.max_train_steps
                logger.warning(
                    f"`{name}` is {step}, but the run ends after {end} steps: what begins there is left out."
                )
            self._write_config(facts)
            self.metrics = MetricsLog(self.output_dir / METRICS_FILE, self.first_step)
        if self.options.report_to is not None:
            config = {key: str(value) for key, value in self.config.public().items()}
            self.accelerator.init_trackers(self.options.tracker_project_name, config)

    def steps(self) -> Generator[int, None, None]:
        """The steps that are left, from 0; the progress bar shows the mean losses.

        Close the iterator when the last step fails: the bar then ends its line, and signals have their old effect.

        Raises:
            StoppedBySignal: after a step whose end found SIGTERM or Ctrl-C waiting; its checkpoint is saved by then.
        """
        total = self.options.max_train_steps
        self.bar = tqdm(
            total=total, initial=min(self.first_step, total), desc="Training", disable=not self.is_main, unit="step"
        )
        self._begin_window()
        with self.bar, self.stop.listening():
            for step in range(self.first_step, total):
                yield step
                self.bar.update()
                if self.must_stop and step + 1 < total:
                    self._end_early(step + 1)

    def enter(self, stage: str | None) -> None:
        """Say from now on which stage the steps belong to; `None` for a run without any."""
        self.stage, description = stage, "Training" if stage is None else f"Training, {stage}"
        self.bar.set_description(description)

    def to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor of the host on the run's device; where it can, the copy runs beside the host's work."""
        if self.device.type != "cuda":
            return tensor.to(self.device)
        return tensor.pin_memory().to(self.device, non_blocking=True)

    def frozen_autocast(self, vae: Any) -> AbstractContextManager[Any]:
        """The precision in which the frozen autoencoder encodes: the run's, or float32 if it says so of fp16."""
        needs_float32 = self.accelerator.mixed_precision == "fp16" and getattr(vae.config, "force_upcast", True)
        return nullcontext() if needs_float32 else self.accelerator.autocast()

    def backward(self, loss: torch.Tensor) -> None:
        """Differentiate the loss of a slice, a sum over the global count.

        accelerate and DDP average over accumulation parts and processes, which is undone here.
        """
        self.accelerator.backward(loss * (self.num_parts * self.num_processes))

    def record_losses(self, step: int, losses: dict[str, torch.Tensor], num_images: int) -> None:
        """Note a step's losses and images, and whether any process has been told to stop.

        Args:
            step: the step, from 0.
            losses: this process's shares of the losses over the global batch.
            num_images: images that the step used, over all processes.
        """
        self.losses.add(step, losses)
        self._num_images += num_images
        self.must_stop = self._is_told_to_stop()
        if self.losses.is_full:
            self.losses.read()

    def log_losses(self, done: int, extra: dict[str, float]) -> None:
        """Write the mean losses since the last such line, with the speed, to metrics.jsonl.

        Args:
            done: optimizer steps done.
            extra: values of the last step to record as they are, such as learning rates.

        Raises:
            FloatingPointError: if a loss is not finite.
        """
        self.losses.read()
        means = self.losses.window.means()
        seconds = max(time.perf_counter() - self._window_started, 1e-9)
        speed = {
            "seconds": round(seconds, 4),
            "images_per_second": round(self._num_images / seconds, 2),
            "data_wait_share": round(min(1.0, self._data_seconds / seconds), 4),
        }
        self.log({"kind": "train", "step": done, **means, **extra, **speed})
        self.bar.set_postfix({name: f"{value:.4f}" for name, value in means.items()})
        self.losses.window.clear()
        self._begin_window()

    def log(self, record: dict[str, Any]) -> None:
        """Write a record to metrics.jsonl and to the tracker, if there is one.

        Raises:
            FloatingPointError: if a number in it is not finite; on all processes, if they all have it.
        """
        require_finite(record)
        if not self.is_main:
            return
        stage = {} if self.stage is None else {"stage": self.stage}
        self.metrics.append({**record, **stage})
        if self.options.report_to is not None:
            numbers = {name: value for name, value in record.items() if isinstance(value, (int, float))}
            step = numbers.pop("step")
            self.accelerator.log({f"{record['kind']}/{name}": value for name, value in numbers.items()}, step=step)

    @contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Count the time inside as waiting for data."""
        started = time.perf_counter()
        yield
        self._data_seconds += time.perf_counter() - started

    @contextmanager
    def outside_training(self) -> Iterator[None]:
        """Do not count the time inside (validation, saving) as training time."""
        started = time.perf_counter()
        yield
        self._window_started += time.perf_counter() - started

    def is_due(self, done: int, every: int | None) -> bool:
        """Whether something is due after `done` steps: every n-th and the last."""
        return every is not None and (done % every == 0 or done == self.options.max_train_steps)

    def checkpoint_is_due(self, done: int) -> bool:
        """Whether to save a checkpoint after `done` steps: when it is its turn, and before stopping early."""
        return self.must_stop or self.is_due(done, self.options.checkpointing_steps)

    def gather_chunks(self, chunks: list[Any]) -> list[Any]:
        """Collect lists of `(number, value)` from all processes, in order of their numbers."""
        gathered = gather_object(chunks)
        return [value for _, value in sorted(gathered, key=lambda pair: pair[0])]

    def save(
        self,
        done: int,
        tensors: dict[str, dict[str, torch.Tensor]],
        state: dict[str, Any],
        write_pipeline: Callable[[Path], None] | None = None,
    ) -> None:
        """Write `checkpoint-{done}` on the main process, and begin to upload it if every one is wanted on the Hub.

        Args:
            done: optimizer steps done.
            tensors: see `save_checkpoint`.
            state: see `save_checkpoint`.
            write_pipeline: writes the pipeline to upload with it into a folder; at the end that is done anyway.

        Raises:
            FloatingPointError: if a loss or a weight is not finite; nothing is written then.
        """
        self.losses.read()
        require_finite_tensors(tensors, done)
        if self.is_main:
            state = {**state, "loss_window": self.losses.window.state(), "num_processes": self.num_processes}
            if self.accelerator.scaler is not None:
                state["grad_scaler"] = self.accelerator.scaler.state_dict()
            path = save_checkpoint(self.output_dir, done, tensors, state, self.options.checkpoints_total_limit)
            if self.uploads is not None:
                is_last = self.must_stop or done >= self.options.max_train_steps
                self.uploads.submit(path, None if is_last else write_pipeline)
        self.accelerator.wait_for_everyone()

    def say(self, text: str) -> None:
        """Tell the user something, once and without breaking the progress bar."""
        if self.is_main:
            tqdm.write(text)

    def finish(self) -> None:
        """Close the trackers and wait for uploads; not for long, after a signal."""
        self.accelerator.wait_for_everyone()
        if self.uploads is not None and not self.uploads.wait(_UPLOAD_GRACE_SECONDS if self.must_stop else None):
            self.say("The newest checkpoint is not on the Hub: there was no time left to upload it.")
        self.accelerator.end_training()

    def _begin_window(self) -> None:
        self._window_started = time.perf_counter()
        self._data_seconds = 0.0
        self._num_images = 0

    def _sum_over_processes(self, tensor: torch.Tensor) -> torch.Tensor:
        return self.accelerator.reduce(tensor, reduction="sum")

    def _is_told_to_stop(self) -> bool:
        """Whether a signal has come to any process; the same answer on all of them."""
        asked = self.stop.signal_number is not None
        if self._hosts is None:
            return asked
        flag = torch.tensor(int(asked))
        torch.distributed.all_reduce(flag, group=self._hosts)
        return bool(flag)

    def _end_early(self, done: int) -> None:
        self.bar.close()
        number = self.stop.signal_number or signal.SIGTERM  # it may have come to another process
        self.say(
            f"Stopped by {signal.Signals(number).name} after step {done}, and saved checkpoint-{done}. To go on, "
            "start the same command again with `--resume_from_checkpoint latest`."
        )
        self.finish()
        raise StoppedBySignal(number)

    def _check_same_start(self) -> None:
        """Every process reads the checkpoint for itself, so all of them must see the same one."""
        starts = gather_object([self.first_step])
        if len(set(starts)) > 1:
            raise ValueError(
                f"The processes found checkpoints of different steps, {starts} (by rank; 0 is none). `output_dir` "
                "must be the same folder on all machines: put it on a shared file system, or copy the newest "
                "checkpoint to each of them."
            )

    def _find_checkpoint(self) -> Checkpoint | None:
        if self.options.resume_from_checkpoint is None:
            return None
        checkpoint, passed_over = resume_checkpoint(self.output_dir, self._resume_from())
        if self.is_main:
            for sentence in passed_over:
                logger.warning(sentence)
            found = f"Resuming from {checkpoint.path}." if checkpoint else "Starting afresh: there is no checkpoint."
            self.say(found)
        return checkpoint

    def _resume_from(self) -> str:
        """`resume_from_checkpoint`, after one process of each machine has fetched what it names on the Hub."""
        resume_from, hub = str(self.options.resume_from_checkpoint), self.hub
        if hub_source(resume_from, hub.hub_model_id) is None:
            return resume_from
        found = None
        if self.accelerator.is_local_main_process:
            found = download_for_resuming(self.output_dir, resume_from, hub.hub_model_id, hub.hub_token)
        return gather_object([found])[0]

    def _write_config(self, facts: dict[str, Any]) -> None:
        arguments = self.config.public()
        if self.first_step > 0:
            warn_about_changes(self.output_dir, arguments)
        packages = ("torch", "diffusers", "accelerate", "datasets")
        versions = {name: importlib.metadata.version(name) for name in packages}
        versions["mediffusion_diffusers"] = __version__
        config = {"arguments": arguments, **facts, "num_processes": self.num_processes, "versions": versions}
        write_json(self.output_dir / CONFIG_FILE, config)
