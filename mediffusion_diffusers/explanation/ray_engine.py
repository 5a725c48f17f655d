"""Explain every image of a dataset by actors of a Ray cluster, on this machine or on many.

Every actor loads the pipeline once and gets one chunk after the other, the next when it has finished one. What is
finished is in the store alone: when an actor, its node or the driver is gone, its chunk is dealt again, or the same
command goes on.
"""

from __future__ import annotations

import glob
import os
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..output_folder import writable_folder
from ..stop_request import StoppedBySignal, StopRequest
from .chunk import Chunk
from .plan import ExplanationJob, Plan, make_plan
from .progress import StoreProgress, Summary, say_stopped, summarise
from .worker import ChunkWorker, PipelineSource, measure_seconds


MOST_TRIES = 4  # of a chunk whose workers die
MOST_COPIES = 3  # of a chunk in work, when nothing else is left to do
_LOOK_SECONDS = 1.0
_PATIENCE_SECONDS = 60.0


class Dealer:
    """Deals chunks: each worker its own stretch of the input, in order; who has none left takes half of the longest.

    So a worker reads on where it ended, and none waits while another has chunks to begin. When all are begun, those
    still in work are dealt again: nobody waits for a slow worker or for one that is gone.

    Args:
        chunks: in the order of the input.
    """

    def __init__(self, chunks: Sequence[Chunk]):
        self._stretches: dict[Any, deque[Chunk]] = {None: deque(chunks)}
        self._num_to_begin = len(chunks)
        # Chunks in work by the number of workers that are at them, those that began first in front.
        self._in_work: list[dict[Chunk, None]] = [{} for _ in range(MOST_COPIES + 1)]

    def next(self, worker: Any) -> Chunk | None:
        """A chunk for a worker, `None` if there is nothing that anybody could do now."""
        own = self._stretches.setdefault(worker, deque())
        if self._num_to_begin and not own:
            longest = max(self._stretches.values(), key=len)
            for _ in range((len(longest) + 1) // 2):
                own.appendleft(longest.pop())
        if own:
            chunk = own.popleft()
            self._num_to_begin -= 1
            self._in_work[1][chunk] = None
            return chunk
        for copies in range(1, MOST_COPIES):
            if self._in_work[copies]:
                chunk = next(iter(self._in_work[copies]))
                self._move(chunk, copies + 1)
                return chunk
        return None

    def finished(self, chunk: Chunk) -> None:
        """A chunk needs no worker any more."""
        self._move(chunk, 0)

    def lost(self, chunk: Chunk) -> None:
        """The worker of a chunk is gone: unless another one is at it, it is dealt again."""
        copies = self._move(chunk, 0)
        if copies == 1:
            self._stretches[None].append(chunk)
            self._num_to_begin += 1
        elif copies:
            self._in_work[copies - 1][chunk] = None

    def _move(self, chunk: Chunk, copies: int) -> int:
        """Note how many workers are at a chunk; returns how many were, 0 if it is finished."""
        before = next((count for count, chunks in enumerate(self._in_work) if chunk in chunks), 0)
        self._in_work[before].pop(chunk, None)
        if copies:
            self._in_work[copies][chunk] = None
        return before


class RayWorker:
    """What an actor does; see `ChunkWorker`."""

    def __init__(self, source: PipelineSource):
        self._source = source
        self._worker: ChunkWorker | None = None

    def start(self) -> None:
        """Load the pipeline; not when the actor is made, for then an error would look like a lost machine."""
        self._pipe, device = self._source.load()
        self._pipe.to(device)
        self._pipe.set_progress_bar_config(disable=True)

    def measure(self, job: ExplanationJob, chunk: Chunk) -> float:
        """Seconds per row of a small chunk."""
        return measure_seconds(self._pipe, job, chunk)

    def finish(self, plan: Plan, chunk: Chunk) -> str | None:
        """Make a chunk; returns why its input cannot be read, or `None`."""
        if self._worker is None:
            self._worker = ChunkWorker(self._pipe, plan)
        return self._worker.finish(chunk)


class Crew:
    """The actors, some of which may still be starting or already be gone.

    Args:
        source: of the pipeline.
        num_workers: how many there shall be; by default one per GPU of the cluster, else per CPU core.
    """

    def __init__(self, source: PipelineSource, num_workers: int | None):
        import ray

        self._ray, self._source = ray, source
        there = ray.cluster_resources()
        device = source.device_options.device
        num_gpus = int(there.get("GPU", 0)) if device is None or device.startswith("cuda") else 0
        self._num_gpus = 1 if num_gpus or (device or "").startswith("cuda") else 0
        self.size = num_workers or num_gpus or max(int(there.get("CPU", 1)), 1)
        self._starting: dict[Any, Any] = {}
        self._at_work: dict[Any, tuple[Any, Chunk]] = {}
        self._idle: list[Any] = []
        self._num_lost_starts, self._somebody_was_there = 0, time.monotonic()
        for _ in range(self.size):
            self._hire()

    def measure(self, job: ExplanationJob, chunk: Chunk) -> float:
        """Seconds per row, by the first actor that is there."""
        while True:
            self._look()
            while self._idle:
                try:
                    return self._get(self._idle[0].measure.remote(job, chunk))
                except self._ray.exceptions.RayError:
                    self._replace(self._idle.pop(0))

    def work(self, plan: Plan, progress: StoreProgress, stop: StopRequest) -> list[str]:
        """Make all chunks of a plan; returns what could not be read.

        Raises:
            StoppedBySignal: after a signal.
            ValueError, OSError: what an actor has raised.
        """
        shared = self._ray.put(replace(plan, todo=()))
        tries: Counter[Chunk] = Counter()
        problems: dict[Chunk, str] = {}
        dealer = Dealer(())
        while any(chunk not in problems for chunk in progress.waiting):
            stop.check()
            if not self._at_work:  # at the beginning, and where somebody has taken a finished file away
                dealer = Dealer([chunk for chunk in progress.look() if chunk not in problems])
            for chunk, answer in self._look():
                if not isinstance(answer, Exception):
                    dealer.finished(chunk)
                    problems |= {chunk: answer} if answer else {}
                    continue
                tries[chunk] += 1
                if tries[chunk] < MOST_TRIES:
                    dealer.lost(chunk)
                else:
                    dealer.finished(chunk)
                    problems[chunk] = f"{MOST_TRIES} workers died on {chunk.file_name}: {_first_line(answer)}"
            for worker in list(self._idle):
                if (next_chunk := dealer.next(worker)) is None:
                    break
                self._idle.remove(worker)
                self._at_work[worker.finish.remote(shared, next_chunk)] = (worker, next_chunk)
            progress.show()
        return list(problems.values())

    def dismiss(self) -> None:
        """End all actors, those too that are at a chunk which another one has finished."""
        for worker in (*self._starting.values(), *(worker for worker, _ in self._at_work.values()), *self._idle):
            self._ray.kill(worker)

    def _hire(self) -> None:
        actor = self._ray.remote(num_cpus=1, num_gpus=self._num_gpus, scheduling_strategy="SPREAD")(RayWorker)
        worker = actor.remote(self._source)
        self._starting[worker.start.remote()] = worker

    def _replace(self, worker: Any) -> None:
        self._ray.kill(worker)  # it may be out of reach, not gone
        self._hire()

    def _look(self) -> list[tuple[Chunk, str | Exception | None]]:
        """Wait a moment for actors; returns chunks that they gave back, with a problem or why the actor is gone."""
        references = [*self._starting, *self._at_work]
        if not references:
            time.sleep(_LOOK_SECONDS)
            return []
        answers: list[tuple[Chunk, str | Exception | None]] = []
        self._ray.wait(references, num_returns=1, timeout=_LOOK_SECONDS)
        for reference in self._ray.wait(references, num_returns=len(references), timeout=0)[0]:
            is_start = reference in self._starting
            worker, chunk = (self._starting.pop(reference), None) if is_start else self._at_work.pop(reference)
            try:
                answer = self._get(reference)
                self._idle.append(worker)
                self._num_lost_starts = 0
            except self._ray.exceptions.RayError as error:
                answer = error
                self._num_lost_starts += is_start
                if self._num_lost_starts > MOST_TRIES * self.size:
                    raise OSError(f"The workers die while they load the pipeline: {_first_line(error)}") from error
                self._replace(worker)
            if chunk is not None:
                answers.append((chunk, answer))
        self._say_if_alone()
        return answers

    def _say_if_alone(self) -> None:
        """Tell once in a while that no actor is there yet: the cluster may have no room."""
        if self._idle or self._at_work:
            self._somebody_was_there = time.monotonic()
        elif time.monotonic() - self._somebody_was_there > _PATIENCE_SECONDS:
            self._somebody_was_there = time.monotonic()
            wanted = "GPU" if self._num_gpus else "CPU core"
            print(f"Still waiting for the first of {self.size} workers; has the cluster a free {wanted}?", flush=True)

    def _get(self, reference: Any) -> Any:
        """A result, or what the actor has raised, without the wrapping that Ray puts around it."""
        try:
            return self._ray.get(reference)
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
    here = replace(source, device_options=replace(source.device_options, device="cpu"))
    pipe, _ = here.load()
    stop = StopRequest()
    with writable_folder(job.output_dir), _cluster(), stop.listening():
        crew = Crew(source, num_workers)
        try:
            plan = make_plan(pipe, job, crew.measure)
            began = time.monotonic()
            store = plan.open_store()
            progress = StoreProgress(plan, store, job.show_progress)
            try:
                problems = crew.work(plan, progress, stop)
            except StoppedBySignal as stopped:
                say_stopped(stopped, store.write_manifest(plan.inputs, plan.description))
                raise
            finally:
                progress.close()
            return summarise(plan, store, problems, crew.size, began)
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
