"""Explain every image of a dataset: plan, deal the shards over tasks and processes, work, report."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from ..output_folder import try_writing
from ..stop_request import StoppedBySignal, StopRequest
from .manifest import Manifest
from .plan import ExplanationJob, make_plan, open_manifest
from .progress import Counts, SharedProgress
from .shard_worker import ShardWorker
from .shards import ShardFolder


Result = TypeVar("Result")


@dataclass(frozen=True)
class Summary:
    """What a launch did, over all its processes.

    Args:
        manifest: as written at the end; other tasks' shards included.
        num_rows: input rows of this launch.
        num_explained: images explained in this launch.
        num_failed: rows recorded with an error in this launch.
        num_passed_over: rows that were not asked about in this launch.
        images_per_second: explained images per second and process.
        num_processes: how many worked.
        problems: input shards that could not be read, with the reason.
    """

    manifest: dict[str, Any]
    num_rows: int
    num_explained: int
    num_failed: int
    num_passed_over: int
    images_per_second: float
    num_processes: int
    problems: tuple[str, ...]

    @property
    def is_useful(self) -> bool:
        """Whether every shard could be read and, if all of them are finished, any image is explained."""
        return not self.problems and (not self.manifest["complete"] or self.manifest["num_explained"] > 0)

    def sentence(self) -> str:
        """One line for the terminal."""
        shards = f"{self.manifest['num_finished_shards']:,} of {self.manifest['num_shards']:,} shards are finished"
        if self.manifest["complete"] and self.manifest["num_explained"] == 0:
            return (
                f"No image is explained: {self.manifest['num_failed']:,} rows could not be (column `error` says why), "
                f"{self.manifest['num_passed_over']:,} were not asked about; {shards}."
            )
        if self.num_rows == 0 and not self.problems:
            return f"Nothing was left to do: {shards}."
        return (
            f"Explained {self.num_explained:,} images ({self.num_failed:,} could not be, {self.num_passed_over:,} "
            f"were not asked about), {self.images_per_second:.3g} images/s in each of {self.num_processes} "
            f"process{'es' if self.num_processes > 1 else ''}; {shards}."
        )


def explain_dataset(pipe: Any, job: ExplanationJob, device: torch.device | None = None) -> Summary | None:
    """Explain a dataset with all processes of this launch; what is finished already is not done again.

    Args:
        pipe: a `MediffusionCounterfactualPipeline`, the same in every process.
        job: what to do.
        device: where to compute; by default each process takes the accelerator that `accelerate` gives it.

    Returns:
        The summary, in the first process; `None` in the others.

    Raises:
        ValueError: if the request, the dataset or what `output_dir` holds cannot be used.
        OSError: if the Hub cannot be reached or the output cannot be written.
        StoppedBySignal: after SIGTERM or Ctrl-C.
    """
    accelerator = Accelerator(cpu=device is not None and device.type == "cpu")
    pipe.to(accelerator.device if device is None else device)
    pipe.set_progress_bar_config(disable=True)
    stop = StopRequest()
    with stop.listening():
        _made_by_the_first(accelerator, lambda: try_writing(job.output_dir))
        plan = _made_by_the_first(accelerator, lambda: make_plan(pipe, job))
        folder = ShardFolder(job.output_dir)
        manifest = open_manifest(folder, pipe, job, plan.identity, plan.dataset)
        place = (accelerator.process_index, accelerator.num_processes)
        progress = SharedProgress(
            folder.progress, plan.launch, *place, plan.num_rows, plan.num_rows_before, job.show_progress
        )
        try:
            progress.note()
            accelerator.wait_for_everyone()  # every process has its file before the first one looks for them
            worker = ShardWorker(pipe, job, plan, folder, manifest, progress, stop)
            for shard in plan.todo[accelerator.process_index :: accelerator.num_processes]:
                worker.work(shard)
            counts = progress.finish(stop)
        except StoppedBySignal as stopped:
            if accelerator.is_main_process:
                _say_stopped(stopped, manifest)
            raise
        finally:
            progress.close()
        content = manifest.write()
        folder.clear_away()
    return _summary(content, counts, plan.problems) if accelerator.is_main_process else None


def _made_by_the_first(accelerator: Accelerator, make: Callable[[], Result]) -> Result:
    """The result of a call in the first process, or its error, in all processes."""
    outcome: list[Any] = [None]
    if accelerator.is_main_process:
        try:
            outcome = [make()]
        except (OSError, ValueError) as error:
            kind = ValueError if isinstance(error, ValueError) else OSError
            outcome = [kind(str(error))]
    result = broadcast_object_list(outcome)[0]
    if isinstance(result, Exception):
        raise result
    return result


def _say_stopped(stopped: StoppedBySignal, manifest: Manifest) -> None:
    content = manifest.write()
    name = signal.Signals(stopped.signal_number).name
    print(
        f"Stopped by {name} after the current batch: {content['num_finished_shards']:,} of {content['num_shards']:,} "
        "shards are finished. The same command goes on from there.",
        flush=True,
    )


def _summary(manifest: dict[str, Any], counts: list[Counts], problems: tuple[str, ...]) -> Summary:
    rates = [each.num_explained / each.seconds for each in counts if each.num_explained]
    return Summary(
        manifest,
        num_rows=sum(each.num_rows for each in counts),
        num_explained=sum(each.num_explained for each in counts),
        num_failed=sum(each.num_failed for each in counts),
        num_passed_over=sum(each.num_passed_over for each in counts),
        images_per_second=sum(rates) / len(rates) if rates else 0.0,
        num_processes=len(counts),
        problems=(*problems, *(problem for each in counts for problem in each.problems)),
    )
