"""Explain every image of a dataset by actors of a Ray cluster, on this machine or on many.

Every actor loads the pipeline once and gets one chunk after the other, the next when it has finished one. When an
actor or its node is gone, Ray starts it again, elsewhere if need be, and the chunk anew. What is finished is in the
store alone: when the driver is gone, the same command goes on.
"""

from __future__ import annotations

import glob
import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..output_folder import writable_folder
from ..pipelines.source import PipelineSource
from ..stop_request import StopRequest
from .chunk import Chunk
from .plan import ExplanationJob, Plan, make_plan
from .progress import Launch, Summary
from .worker import ChunkWorker, measure_seconds


MOST_TRIES = 4  # of a chunk whose workers die
MOST_COPIES = 3  # of a chunk in work, when nothing else is left to do
_LOOK_SECONDS = 1.0
_PATIENCE_SECONDS = 60.0


class Dealer:
    """Deals chunks in the order of the input; when all are begun, those in work again, the longest in work first.

    So nobody waits for a slow worker, nor for one that is out of reach.

    Args:
        chunks: in the order of the input.
    """

    def __init__(self, chunks: Sequence[Chunk]):
        self._to_begin = deque(chunks)
        self._copies: dict[Chunk, int] = {}  # workers by chunk in work, those that began first in front

    def next(self) -> Chunk | None:
        """A chunk, `None` if there is nothing that another worker could do now."""
        if self._to_begin:
            chunk = self._to_begin.popleft()
        else:
            fewest = min(self._copies.values(), default=MOST_COPIES)
            if fewest == MOST_COPIES:
                return None
            chunk = next(each for each, copies in self._copies.items() if copies == fewest)
        self._copies[chunk] = self._copies.get(chunk, 0) + 1
        return chunk

    def finished(self, chunk: Chunk) -> None:
        """A chunk needs no worker any more."""
        self._copies.pop(chunk, None)


class RayWorker:
    """What an actor does; see `ChunkWorker`."""

    def __init__(self, source: PipelineSource):
        self._source = source
        self._pipe: Any = None
        self._worker: ChunkWorker | None = None

    def load(self) -> None:
        """Load the pipeline, once; not when the actor is made, for then an error would look like a lost machine."""
        if self._pipe is None:
            self._pipe, device = self._source.load()
            self._pipe.to(device)
            self._pipe.set_progress_bar_config(disable=True)

    def measure(self, job: ExplanationJob, chunk: Chunk) -> float:
        """Seconds per row of a small chunk."""
        self.load()
        return measure_seconds(self._pipe, job, chunk)

    def finish(self, plan: Plan, chunk: Chunk) -> str | None:
        """Make a chunk; returns why its input cannot be read, or `None`."""
        self.load()
        if self._worker is None:
            self._worker = ChunkWorker(self._pipe, plan)
        return self._worker.finish(chunk)


class Crew:
    """The actors, some of which may still be starting.

    Args:
        source: of the pipeline.
        num_workers: how many there are; by default one per GPU of the cluster, else per CPU core.
    """

    def __init__(self, source: PipelineSource, num_workers: int | None):
        import ray

        self._ray = ray
        there, device = ray.cluster_resources(), source.device_options.device
        num_gpus = int(there.get("GPU", 0)) if device is None or device.startswith("cuda") else 0
        self._wanted = "GPU" if num_gpus or (device or "").startswith("cuda") else "CPU core"
        self.size = num_workers or num_gpus or max(int(there.get("CPU", 1)), 1)
        options = {"num_cpus": 1, "num_gpus": int(self._wanted == "GPU"), "scheduling_strategy": "SPREAD"}
        tries = {"max_restarts": -1, "max_task_retries": MOST_TRIES - 1}
        actor = ray.remote(**options, **tries)(RayWorker)
        self.actors = [actor.remote(source) for _ in range(self.size)]

    def wait_for_one(self, stop: StopRequest) -> None:
        """Wait until an actor has loaded the pipeline; raises what has kept it from that."""
        starts, told = [actor.load.remote() for actor in self.actors], time.monotonic()
        while not (ready := self._ray.wait(starts, num_returns=1, timeout=_LOOK_SECONDS)[0]):
            stop.check()
            if time.monotonic() - told > _PATIENCE_SECONDS:  # the cluster may have no room
                told = time.monotonic()
                print(
                    f"Still waiting for the first of {self.size} workers; has the cluster a free {self._wanted}?",
                    flush=True,
                )
        self._get(ready[0])

    def measure(self, job: ExplanationJob, chunk: Chunk) -> float:
        """Seconds per row, by the first actor that has an answer."""
        answers = [actor.measure.remote(job, chunk) for actor in self.actors]
        return self._get(self._ray.wait(answers, num_returns=1)[0][0])

    def work(self, launch: Launch, stop: StopRequest) -> list[str]:
        """Make all chunks of a launch; returns what could not be read.

        Raises:
            StoppedBySignal: after a signal.
            ValueError, OSError: what an actor has raised.
        """
        # Of the plan, what a worker needs: a tracker that was made already stays here.
        plan = self._ray.put(replace(launch.plan, todo=(), job=replace(launch.plan.job, report_to=None)))
        problems: dict[Chunk, str] = {}
        at_work: dict[Any, tuple[Any, Chunk]] = {}
        idle, dealer = list(self.actors), Dealer(())
        while any(chunk not in problems for chunk in launch.waiting):
            stop.check()
            if not at_work:  # at the beginning, and where somebody has taken a finished file away
                dealer = Dealer([chunk for chunk in launch.look() if chunk not in problems])
            while idle and (next_chunk := dealer.next()) is not None:
                actor = idle.pop(0)
                at_work[actor.finish.remote(plan, next_chunk)] = (actor, next_chunk)
            ready = self._ray.wait(list(at_work), num_returns=1, timeout=_LOOK_SECONDS)[0] if at_work else []
            for answer in ready:
                actor, chunk = at_work.pop(answer)
                idle.append(actor)
                dealer.finished(chunk)
                try:
                    problem = self._get(answer)
                except self._ray.exceptions.RayError as error:
                    problem = f"{MOST_TRIES} workers died on {chunk.file_name}: {_first_line(error)}"
                if problem:
                    problems[chunk] = problem
            launch.show()
        return list(problems.values())

    def dismiss(self) -> None:
        """End all actors, those too that are at a chunk which another one has finished."""
        for actor in self.actors:
            self._ray.kill(actor)

    def _get(self, answer: Any) -> Any:
        """A result, or what the actor has raised, without the wrapping that Ray puts around it."""
        try:
            return self._ray.get(answer)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from error


def explain_dataset_with_ray(source: PipelineSource, job: ExplanationJob, num_workers: int | None = None) -> Summary:
    """Explain a dataset with the actors of a Ray cluster; what is finished already is not done again.

    Args:
        source: of the pipeline.
        job: what to do; its paths must lead to the same files on all machines.
        num_workers: actors; by default one per GPU of the cluster, else per CPU core.

    Raises:
        ValueError: if the request, the dataset or what `output_dir` holds cannot be used, or Ray is not installed.
        OSError: if the cluster or the Hub cannot be reached or the output cannot be written.
        StoppedBySignal: after SIGTERM or Ctrl-C.
    """
    source, job = _with_whole_paths(source, job)
    # The driver asks the model nothing: its machine may have no GPU.
    pipe, _ = replace(source, device_options=replace(source.device_options, device="cpu")).load()
    stop = StopRequest()
    with writable_folder(job.output_dir), _cluster(), stop.listening():
        crew = Crew(source, num_workers)
        try:
            crew.wait_for_one(stop)
            with Launch(make_plan(pipe, job, crew.measure), crew.size) as launch:
                problems = crew.work(launch, stop)
            return launch.summary(problems)
        finally:
            crew.dismiss()


@contextmanager
def _cluster() -> Iterator[None]:
    """Join the cluster of `RAY_ADDRESS` or of this machine, or start one on loopback; leave it at the end."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise ValueError(
            "`engine` 'ray' needs Ray, which is not installed: pip install 'mediffusion-diffusers[ray]'."
        ) from error
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "warning"}
    try:
        ray.init("auto", **quiet)  # that of RAY_ADDRESS, or one that runs here
    except (ConnectionError, RuntimeError) as error:
        if "RAY_ADDRESS" in os.environ:
            raise OSError(f"The Ray cluster of RAY_ADDRESS cannot be reached: {_first_line(error)}") from error
        ray.init("local", _node_ip_address="127.0.0.1", include_dashboard=False, **quiet)
    try:
        yield
    finally:
        ray.shutdown()


def _with_whole_paths(source: PipelineSource, job: ExplanationJob) -> tuple[PipelineSource, ExplanationJob]:
    """The same, with paths that mean the same in a process that runs in another folder."""
    model, dataset = source.pretrained_model_name_or_path, job.dataset
    if Path(model).exists():
        source = replace(source, pretrained_model_name_or_path=str(Path(model).resolve()))
    if Path(dataset).exists() or glob.has_magic(dataset):
        dataset = os.path.abspath(dataset)
    return source, replace(job, dataset=dataset, output_dir=Path(job.output_dir).resolve())


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
