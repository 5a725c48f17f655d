"""What one launch has to do: find the input, compare it with what is finished, cut the rest into chunks."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from accelerate.tracking import GeneralTracker

from ..data.difference_image import DIFFERENCE_PRECISION, ENCODING
from ..data.input_rows import InputColumns
from ..data.input_shards import InputShard, UnreadableShardError, find_dataset, inspect_shards
from ..requests.request import Request
from ..trackers import check_tracker
from .chunk import MAX_CHUNK_ROWS, Chunk, cut
from .identity import run_identity
from .store import ChunkStore


CHUNK_SECONDS = 60.0  # what a chunk should take, and what a kill costs at most
SHORTEST_CHUNK_SECONDS = 5.0  # ... where the whole dataset has fewer than `FEW_CHUNKS` of such chunks
FEW_CHUNKS = 16


@dataclass(frozen=True)
class ExplanationJob:
    """A dataset to explain, and where and how.

    Args:
        dataset: folder, parquet file, pattern or dataset of the Hub, see `find_dataset`.
        output_dir: folder of the finished chunks.
        request: what to ask of every image.
        split: take only input shards of this split.
        dataset_revision: branch, tag or commit on the Hub.
        columns: which columns to read.
        batch_size: images per call of the pipeline.
        chunk_rows: input rows per output file, in [1, 512]; by default what takes about a minute.
        num_tasks: independent launches that share the work, as a job array does.
        task_index: this one of them, from 0.
        overwrite: replace explanations of other runs in `output_dir`.
        model: name of the model's repository on the Hub, for the manifest.
        show_progress: show a bar.
        report_to: a tracker of accelerate, by its name or made already, that is told how far the launch is.

    Raises:
        ValueError: for numbers that cannot work, or a tracker that is not installed.
    """

    dataset: str
    output_dir: str | os.PathLike[str]
    request: Request
    split: str | None = None
    dataset_revision: str | None = None
    columns: InputColumns = field(default_factory=InputColumns)
    batch_size: int = 8
    chunk_rows: int | None = None
    num_tasks: int = 1
    task_index: int = 0
    overwrite: bool = False
    model: str | None = None
    show_progress: bool = True
    report_to: str | GeneralTracker | None = None

    def __post_init__(self) -> None:
        check_tracker(self.report_to, "`--json` prints the same at the end")
        if self.batch_size < 1:
            raise ValueError(f"`batch_size` must be at least 1, but got {self.batch_size}.")
        if self.chunk_rows is not None and not 1 <= self.chunk_rows <= MAX_CHUNK_ROWS:
            raise ValueError(f"`chunk_rows` must lie in [1, {MAX_CHUNK_ROWS}], but got {self.chunk_rows}.")
        if self.num_tasks < 1 or not 0 <= self.task_index < self.num_tasks:
            raise ValueError(
                f"`shard_index` must lie in [0, num_shards - 1], but got {self.task_index} of {self.num_tasks}."
            )


Measure = Callable[[ExplanationJob, Chunk], float]


@dataclass(frozen=True)
class Plan:
    """What is to be done by one launch; one process makes it for all.

    Args:
        job: with the columns that are read.
        identity: of the run.
        chunk_rows: of the store.
        inputs: names of all input shards, of all tasks.
        description: of dataset and model, for the manifest.
        todo: chunks that are not finished, of this task, in the order of the input.
        num_rows: input rows of this task.
        damaged: names of output files that were damaged and are made again.
        problems: input shards that cannot be read, with the reason.
    """

    job: ExplanationJob
    identity: dict[str, Any]
    chunk_rows: int
    inputs: tuple[str, ...]
    description: dict[str, Any]
    todo: tuple[Chunk, ...]
    num_rows: int
    damaged: tuple[str, ...]
    problems: tuple[str, ...]

    def open_store(self) -> ChunkStore:
        """The output folder."""
        return ChunkStore(self.job.output_dir, self.identity, self.job.request.schema(), self.chunk_rows)


def make_plan(pipe: Any, job: ExplanationJob, measure: Measure) -> Plan:
    """Find the input, check what the output folder holds, and clear away what killed processes left.

    Args:
        pipe: the pipeline.
        job: what to do.
        measure: seconds per row, by explaining a small chunk.

    Raises:
        ValueError: if labels are unknown, columns are missing, or the folder holds something else.
        OSError: if the Hub cannot be reached.
    """
    job.request.check(pipe)
    dataset = find_dataset(job.dataset, job.split, job.dataset_revision)
    output_dir = Path(job.output_dir).resolve()
    if dataset.root is not None and (output_dir == dataset.root or dataset.root in output_dir.parents):
        raise ValueError(
            f"`output_dir` must lie outside the dataset, or its files would be input too, but {str(output_dir)!r} is "
            f"in {str(dataset.root)!r}."
        )
    job = replace(job, columns=replace(job.columns, label_names=job.request.label_names(dataset)))
    identity = run_identity(job.request, pipe, job.columns.to_dict())
    store = ChunkStore(output_dir, identity, job.request.schema())
    own = inspect_shards(dataset.shards[job.task_index :: job.num_tasks], job.show_progress)
    readable = [shard for shard in own if shard.problem is None]
    for shard in readable:
        job.columns.in_shard(shard)
    identities = {shard.name: None if shard.problem else shard.identity for shard in own}
    damaged = store.check({shard.name: identities.get(shard.name) for shard in dataset.shards}, job.overwrite)
    store.clear_away()
    chunk_rows = store.agree_on_chunk_rows(job.chunk_rows, lambda: _best_chunk_rows(job, readable, measure))
    todo = tuple(chunk for shard in readable for chunk in cut(shard, chunk_rows) if not store.has(chunk))
    description = {
        "dataset": dataset.name,
        "model": job.model,
        "label_names": list(pipe.label_names),
        "difference_encoding": ENCODING,
        "difference_precision": DIFFERENCE_PRECISION,
    }
    problems = tuple(shard.problem for shard in own if shard.problem is not None)
    num_rows = sum(shard.num_rows for shard in readable)
    inputs = tuple(shard.name for shard in dataset.shards)
    return Plan(job, identity, chunk_rows, inputs, description, todo, num_rows, tuple(damaged), problems)


def _best_chunk_rows(job: ExplanationJob, shards: list[InputShard], measure: Measure) -> int:
    """Rows that take about a minute: a batch, or 2, 4, 8 ... batches; less for a dataset of few such chunks."""
    num_rows = sum(shard.num_rows for shard in shards) * job.num_tasks
    smallest = min(job.batch_size, MAX_CHUNK_ROWS)
    if num_rows <= smallest:
        return smallest
    seconds = CHUNK_SECONDS
    for shard in shards:
        with suppress(UnreadableShardError):
            if shard.num_rows:
                seconds = max(measure(job, Chunk(shard, 0, min(smallest, shard.num_rows))), 1e-6)
                break
    rows = min(CHUNK_SECONDS / seconds, max(num_rows / FEW_CHUNKS, SHORTEST_CHUNK_SECONDS / seconds), MAX_CHUNK_ROWS)
    chunk_rows = smallest
    while 2 * chunk_rows <= rows:
        chunk_rows *= 2
    return chunk_rows
