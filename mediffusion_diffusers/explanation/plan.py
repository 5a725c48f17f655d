"""What one launch has to do: find the input, compare it with what is finished, refuse what does not fit."""

from __future__ import annotations

import math
import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .input_rows import InputColumns
from .input_shards import InputDataset, InputShard, find_dataset, inspect_shards
from .manifest import Manifest
from .request import ExplanationRequest, run_identity
from .shards import ShardFolder, ShardRecord


# Input rows per part, or a little more, so that batches fill it: what a killed process repeats at most.
PART_ROWS = 32


@dataclass(frozen=True)
class ExplanationJob:
    """A dataset to explain, and where and how.

    Args:
        dataset: folder, parquet file, pattern or dataset of the Hub, see `find_dataset`.
        output_dir: folder of the output shards.
        request: what to ask of every image.
        split: take only input shards of this split.
        dataset_revision: branch, tag or commit on the Hub.
        columns: which columns to read.
        batch_size: images per call of the pipeline.
        num_tasks: independent launches that share the work, as a job array does.
        task_index: this one of them, from 0.
        overwrite: replace explanations of other runs in `output_dir`.
        model: name of the model's repository on the Hub, for the manifest.
        show_progress: show a bar.

    Raises:
        ValueError: for numbers that cannot work.
    """

    dataset: str
    output_dir: str | os.PathLike[str]
    request: ExplanationRequest
    split: str | None = None
    dataset_revision: str | None = None
    columns: InputColumns = field(default_factory=InputColumns)
    batch_size: int = 8
    num_tasks: int = 1
    task_index: int = 0
    overwrite: bool = False
    model: str | None = None
    show_progress: bool = True

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"`batch_size` must be at least 1, but got {self.batch_size}.")
        if self.num_tasks < 1 or not 0 <= self.task_index < self.num_tasks:
            raise ValueError(
                f"`shard_index` must lie in [0, num_shards - 1], but got {self.task_index} of {self.num_tasks}."
            )

    @property
    def part_rows(self) -> int:
        """Input rows per part."""
        return math.ceil(PART_ROWS / self.batch_size) * self.batch_size


@dataclass(frozen=True)
class Plan:
    """What is to be done by one launch; the first process makes it for all.

    Args:
        launch: a name that no other launch has.
        identity: of the run.
        dataset: the input, shards of all tasks.
        todo: shards that are not finished, of this task.
        num_rows: input rows of this task.
        num_rows_before: those of finished shards among them.
        problems: input shards that cannot be read, with the reason.
    """

    launch: str
    identity: dict[str, Any]
    dataset: InputDataset
    todo: tuple[InputShard, ...]
    num_rows: int
    num_rows_before: int
    problems: tuple[str, ...]


def make_plan(pipe: Any, job: ExplanationJob) -> Plan:
    """Find the input, check what the output folder holds, and clear away what killed processes left.

    Raises:
        ValueError: if labels are unknown, columns are missing, or the folder holds something else.
        OSError: if the Hub cannot be reached.
    """
    job.request.check_labels(pipe)
    dataset = find_dataset(job.dataset, job.split, job.dataset_revision)
    output_dir = Path(job.output_dir).resolve()
    if dataset.root is not None and (output_dir == dataset.root or dataset.root in output_dir.parents):
        raise ValueError(
            f"`output_dir` must lie outside the dataset, or its shards would be input too, but {str(output_dir)!r} is "
            f"in {str(dataset.root)!r}."
        )
    _check_label_names(job, dataset)
    folder = ShardFolder(output_dir)
    identity = run_identity(job.request, pipe, job.columns.to_dict())
    manifest = open_manifest(folder, pipe, job, identity, dataset)
    if job.overwrite:
        manifest.remove_foreign()
    else:
        manifest.check_folder()
    folder.clear_away()
    own = inspect_shards(dataset.shards[job.task_index :: job.num_tasks], job.show_progress)
    todo, num_rows_before = [], 0
    for shard in (shard for shard in own if shard.problem is None):
        job.columns.in_shard(shard)
        record = manifest.record(shard.name)
        if record is not None and not job.overwrite:
            manifest.check_input(record, shard.identity)
        if record is not None and record.belongs_to(ShardRecord(identity, shard.identity)):
            num_rows_before += shard.num_rows
            folder.remove_parts(shard)
        else:
            todo.append(shard)
    manifest.write()
    problems = tuple(shard.problem for shard in own if shard.problem is not None)
    num_rows = sum(shard.num_rows for shard in own)
    return Plan(secrets.token_hex(8), identity, dataset, tuple(todo), num_rows, num_rows_before, problems)


def open_manifest(
    folder: ShardFolder, pipe: Any, job: ExplanationJob, identity: dict[str, Any], dataset: InputDataset
) -> Manifest:
    """The manifest of a run, as this process will write it."""
    inputs = [shard.name for shard in dataset.shards]
    return Manifest(folder, identity, dataset.name, job.model, pipe.label_names, inputs)


def _check_label_names(job: ExplanationJob, dataset: InputDataset) -> None:
    """With `rows="labelled"`, refuse a dataset that does not say what its labels are."""
    if job.request.rows != "labelled":
        return
    if dataset.label_names is None:
        raise ValueError(
            "`rows='labelled'` needs a prepared dataset, whose dataset_info.json names the labels, but "
            f"{dataset.name!r} is none. Convert it with `mediffusion prepare`, or choose by the model's decision with "
            "`rows='predicted'`."
        )
    unknown = [name for name in (*job.request.away, *job.request.towards) if name not in dataset.label_names]
    if unknown:
        raise ValueError(
            f"`rows='labelled'` needs labels of the dataset, {list(dataset.label_names)}, but it has no {unknown}."
        )
