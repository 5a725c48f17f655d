"""Explain every image of a dataset in this process, or in all that `accelerate launch` has started."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from ..output_folder import writable_folder
from ..stop_request import StopRequest
from .chunk import Chunk
from .plan import ExplanationJob, Plan, make_plan
from .progress import Launch, Summary
from .worker import ChunkWorker, measure_seconds


Result = TypeVar("Result")


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
        plan = _made_by_the_first(accelerator, lambda: _make_plan(pipe, job))
        worker = ChunkWorker(pipe, plan)
        place = (accelerator.process_index, accelerator.num_processes)
        problems: dict[Chunk, str] = {}
        with Launch(plan, accelerator.num_processes, accelerator.is_main_process) as launch:

            def before_batch(rows_in_work: int) -> None:
                stop.check()
                launch.show(rows_in_work)

            for chunk in _dealt(plan.todo, place, launch, problems):
                if problem := worker.finish(chunk, before_batch):
                    problems[chunk] = problem
                stop.check()
        unreadable = list(problems.values())
        if accelerator.num_processes > 1:
            unreadable = gather_object(unreadable)
    return launch.summary(unreadable) if accelerator.is_main_process else None


def _make_plan(pipe: Any, job: ExplanationJob) -> Plan:
    """Try the output folder and plan; a job that cannot be planned leaves no new folder behind."""
    with writable_folder(job.output_dir):
        return make_plan(pipe, job, lambda job, chunk: measure_seconds(pipe, job, chunk))


def _dealt(
    todo: Sequence[Chunk], place: tuple[int, int], launch: Launch, problems: dict[Chunk, str]
) -> Iterator[Chunk]:
    """The chunks of one process, in the order of the input; then, from the end, those that others have not finished.

    So nobody waits for a slow process, without a word between them: two that meet in a chunk write the same bytes, and
    the slower one leaves it at its next batch.
    """
    index, count = place
    yield from todo[len(todo) * index // count : len(todo) * (index + 1) // count]
    while left := [chunk for chunk in launch.look() if chunk not in problems]:
        yield left[-1 - index % len(left)]


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
