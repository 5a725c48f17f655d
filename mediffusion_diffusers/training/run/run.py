"""The frame of a training run: its folder, its processes, its records and its checkpoints."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedDataParallelKwargs, ProjectConfiguration, gather_object
from diffusers.utils import logging
from tqdm.auto import tqdm

from ...metrics_log import LossWindow, MetricsLog
from ...stop_request import StoppedBySignal, StopRequest
from ...version import __version__
from ..arguments import public_arguments
from .checkpoints import Checkpoint, find_checkpoint, list_checkpoints, resume_checkpoint, save_checkpoint
from .hub_checkpoints import HubUploads, download_for_resuming, hub_source, refuse_public_repository


logger = logging.get_logger(__name__)

CONFIG_FILE = "training_config.json"
METRICS_FILE = "metrics.jsonl"
# Arguments that may differ between the first run and the one that resumes it without a word.
_FREE_ARGUMENTS = frozenset(
    (
        *("resume_from_checkpoint", "overwrite_output_dir", "dry_run", "output_dir", "report_to", "hub_model_id"),
        *("push_to_hub", "hub_strategy", "hub_private_repo", "tracker_project_name", "checkpoints_total_limit"),
        *("cache_images", "dataloader_num_workers", "validation_batch_size", "latent_cache_dir"),
    )
)
# How long a run that was told to stop waits for its last upload; a batch system kills after half a minute or so.
_UPLOAD_GRACE_SECONDS = 15.0


class TrainingRun:
    """Everything around the training loop.

    Creating it starts accelerate, prepares the folder and finds the checkpoint to resume from; once its state is
    restored, `begin` opens the records, and `steps` walks through the steps that are left, with a progress bar.

    Args:
        args: the parsed command line.

    Raises:
        ValueError: if the batch is smaller than the number of its slices, or the checkpoint cannot be used.
    """

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.output_dir = Path(args.output_dir)
        self.accelerator = Accelerator(
            mixed_precision=args.mixed_precision,
            gradient_accumulation_steps=args.gradient_accumulation_steps,
            log_with=args.report_to,
            project_config=ProjectConfiguration(
                project_dir=args.output_dir, logging_dir=str(self.output_dir / "logs")
            ),
            # A step without class loss leaves the head out, and Table 3's ablation the decoder.
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )
        self.is_main = self.accelerator.is_main_process
        num_slices = self.num_processes * self.num_parts
        if args.train_batch_size < num_slices:
            raise ValueError(
                f"`train_batch_size` is the batch over all processes and accumulation parts, so it must be at least "
                f"{self.num_processes} * {self.num_parts} = {num_slices}, but got {args.train_batch_size}."
            )
        if self.is_main:
            if args.push_to_hub and args.hub_private_repo:
                refuse_public_repository(args.hub_model_id, args.hub_token)
            self._prepare_folder()
        self.accelerator.wait_for_everyone()
        self.checkpoint = self._find_checkpoint()
        self.first_step = 0 if self.checkpoint is None else self.checkpoint.step
        self._check_same_start()
        self.uploads: HubUploads | None = None
        if self.is_main and args.push_to_hub and args.hub_strategy == "every_save":
            self.uploads = HubUploads(args.hub_model_id, args.hub_token, args.hub_private_repo)
        self.stop = StopRequest()
        self.must_stop = False
        self.window = LossWindow(None if self.checkpoint is None else self.checkpoint.state["loss_window"])
        if self.checkpoint is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(self.checkpoint.state["grad_scaler"])
        self._begin_window()

    @property
    def num_processes(self) -> int:
        """Processes that share every batch."""
        return self.accelerator.num_processes

    @property
    def num_parts(self) -> int:
        """Accumulation parts per step."""
        return int(self.args.gradient_accumulation_steps)

    def begin(self, facts: dict[str, Any]) -> None:
        """Write `training_config.json`, open `metrics.jsonl` and start the tracker.

        Args:
            facts: what describes the run beside its arguments (data, split hash, parameter counts).
        """
        self.accelerator.wait_for_everyone()
        if self.is_main:
            self._write_config(facts)
            self.metrics = MetricsLog(self.output_dir / METRICS_FILE, self.first_step)
        if self.args.report_to is not None:
            config = {key: str(value) for key, value in public_arguments(self.args).items()}
            self.accelerator.init_trackers(self.args.tracker_project_name, config)

    def steps(self) -> Iterator[int]:
        """The steps that are left, from 0; the progress bar shows the mean losses.

        Raises:
            StoppedBySignal: after a step whose end found SIGTERM or Ctrl-C waiting; its checkpoint is saved by then.
        """
        total = self.args.max_train_steps
        self.bar = tqdm(
            total=total, initial=min(self.first_step, total), desc="Training", disable=not self.is_main, unit="step"
        )
        self._begin_window()
        with self.stop.listening():
            for step in range(self.first_step, total):
                yield step
                self.bar.update()
                if self.must_stop and step + 1 < total:
                    self._end_early(step + 1)
        self.bar.close()

    def record_losses(self, losses: dict[str, float], step: int, num_images: int, extra: dict[str, float]) -> None:
        """Add a step's losses; every `logging_steps` a line goes to metrics.jsonl.

        Args:
            losses: this step's losses, already over the global batch.
            step: the step, from 0.
            num_images: images that the step used, over all processes.
            extra: values of this step to record as they are, such as learning rates.

        Raises:
            FloatingPointError: if a loss is not finite.
        """
        for name, value in losses.items():
            if not math.isfinite(value):
                raise FloatingPointError(
                    f"`{name}` became {value} at step {step + 1}. Lower the learning rate, or resume from an earlier "
                    "checkpoint with another one."
                )
        self.window.add(losses)
        self._num_images += num_images
        done = step + 1
        if done % self.args.logging_steps == 0 or done == self.args.max_train_steps:
            means = self.window.means()
            seconds = max(time.perf_counter() - self._window_started, 1e-9)
            speed = {
                "seconds": round(seconds, 4),
                "images_per_second": round(self._num_images / seconds, 2),
                "data_wait_share": round(min(1.0, self._data_seconds / seconds), 4),
            }
            self.log({"kind": "train", "step": done, **means, **extra, **speed})
            self.bar.set_postfix({name: f"{value:.4f}" for name, value in means.items()})
            self.window.clear()
            self._begin_window()

    def log(self, record: dict[str, Any]) -> None:
        """Write a record to metrics.jsonl and to the tracker, if there is one."""
        if not self.is_main:
            return
        self.metrics.append(record)
        if self.args.report_to is not None:
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
        return every is not None and (done % every == 0 or done == self.args.max_train_steps)

    def checkpoint_is_due(self, done: int) -> bool:
        """Whether to save a checkpoint after `done` steps: when it is its turn, and before stopping early."""
        return self.must_stop or self.is_due(done, self.args.checkpointing_steps)

    def sum_over_processes(self, losses: dict[str, torch.Tensor]) -> dict[str, float]:
        """Sum a step's scalars over all processes; the same message tells whether any of them has to stop."""
        stacked = torch.stack([value.detach().float() for value in losses.values()])
        asked = stacked.new_full((1,), float(self.stop.signal_number is not None))
        *summed, num_asked = self.accelerator.reduce(torch.cat([stacked, asked]), reduction="sum").tolist()
        self.must_stop = num_asked > 0
        return dict(zip(losses, summed, strict=True))

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
        """
        if self.is_main:
            state = {**state, "loss_window": self.window.state(), "num_processes": self.num_processes}
            if self.accelerator.scaler is not None:
                state["grad_scaler"] = self.accelerator.scaler.state_dict()
            path = save_checkpoint(self.output_dir, done, tensors, state, self.args.checkpoints_total_limit)
            if self.uploads is not None:
                is_last = self.must_stop or done >= self.args.max_train_steps
                self.uploads.submit(path, None if is_last else write_pipeline)
        self.accelerator.wait_for_everyone()

    def say(self, text: str) -> None:
        """Tell the user something, once and without breaking the progress bar."""
        if self.is_main:
            tqdm.write(text)

    def _begin_window(self) -> None:
        self._window_started = time.perf_counter()
        self._data_seconds = 0.0
        self._num_images = 0

    def finish(self) -> None:
        """Close the trackers and wait for uploads; not for long, after a signal."""
        self.accelerator.wait_for_everyone()
        if self.uploads is not None and not self.uploads.wait(_UPLOAD_GRACE_SECONDS if self.must_stop else None):
            self.say("The newest checkpoint is not on the Hub: there was no time left to upload it.")
        self.accelerator.end_training()

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
        if self.args.resume_from_checkpoint is None:
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
        args = self.args
        if hub_source(args.resume_from_checkpoint, args.hub_model_id) is None:
            return args.resume_from_checkpoint
        found = None
        if self.accelerator.is_local_main_process:
            found = download_for_resuming(
                self.output_dir, args.resume_from_checkpoint, args.hub_model_id, args.hub_token
            )
        return gather_object([found])[0]

    def _prepare_folder(self) -> None:
        """Delete another run's files if asked to, and what a killed run left half written."""
        self.output_dir.mkdir(parents=True, exist_ok=True)
        if holds_run(self.output_dir) and self.args.overwrite_output_dir:
            for path in list_checkpoints(self.output_dir):
                shutil.rmtree(path)
            for name in (METRICS_FILE, CONFIG_FILE, "model_index.json", "README.md"):
                (self.output_dir / name).unlink(missing_ok=True)
            for name in ("samples", "logs"):
                shutil.rmtree(self.output_dir / name, ignore_errors=True)
        for partial in self.output_dir.glob(".*.partial"):
            shutil.rmtree(partial) if partial.is_dir() else partial.unlink()

    def _write_config(self, facts: dict[str, Any]) -> None:
        path = self.output_dir / CONFIG_FILE
        arguments = public_arguments(self.args)
        if self.first_step > 0 and path.is_file():
            before = json.loads(path.read_text())["arguments"]
            now = json.loads(json.dumps(arguments))
            changed = [name for name in now if name in before and before[name] != now[name]]
            for name in sorted(set(changed) - _FREE_ARGUMENTS):
                logger.warning(f"Resuming with `{name}` = {now[name]}, but the run began with {before[name]}.")
        packages = ("torch", "diffusers", "accelerate", "datasets")
        versions = {name: importlib.metadata.version(name) for name in packages}
        versions["mediffusion_diffusers"] = __version__
        config = {"arguments": arguments, **facts, "num_processes": self.num_processes, "versions": versions}
        write_text(path, json.dumps(config, indent=2) + "\n")


def holds_run(output_dir: Path) -> bool:
    """Whether a folder holds checkpoints or metrics of a run."""
    return bool(list_checkpoints(output_dir)) or (output_dir / METRICS_FILE).exists()


def check_output_folder(args: argparse.Namespace) -> None:
    """Refuse to mix two runs, before any work.

    Raises:
        ValueError: if `output_dir` holds a run that is neither to be resumed nor overwritten, or `report_to` is not
            installed.
    """
    if args.dry_run:
        return
    if holds_run(Path(args.output_dir)) and not args.overwrite_output_dir and args.resume_from_checkpoint is None:
        raise ValueError(
            f"`output_dir` {args.output_dir!r} holds another run. Continue it with `--resume_from_checkpoint latest`, "
            "delete it with `--overwrite_output_dir`, or choose another folder."
        )
    is_local = hub_source(args.resume_from_checkpoint, args.hub_model_id) is None
    if args.resume_from_checkpoint not in (None, "latest") and is_local and not args.overwrite_output_dir:
        find_checkpoint(Path(args.output_dir), args.resume_from_checkpoint)
    available = [tracker.value for tracker in get_available_trackers()]
    if args.report_to is not None and args.report_to not in available:
        raise ValueError(
            f"`report_to` must be an installed tracker, but {args.report_to!r} is not. Installed: "
            f"{available or 'none'}; metrics.jsonl is always written."
        )


def write_text(path: Path, text: str) -> None:
    """Write a text file aside, then rename it into place."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text)
    os.replace(partial, path)


def publish_folder(source: Path, destination: Path) -> None:
    """Move the entries of a folder that was written aside into `destination`, replacing what is there."""
    for entry in sorted(source.iterdir()):
        target = destination / entry.name
        if target.is_dir():
            shutil.rmtree(target)
        os.replace(entry, target)
    source.rmdir()
