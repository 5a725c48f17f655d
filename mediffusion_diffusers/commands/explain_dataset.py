"""Explain every image of a dataset of parquet files, in a folder or on the Hub, with any number of processes.

    mediffusion explain-dataset --pretrained_model_name_or_path runs/joint \
        --dataset runs/phantom --split test --output_dir runs/explained --away Cardiomegaly

`accelerate launch training/explain_dataset.py` runs it in several processes.

There is one output shard per input shard. Run the same command again to go on where it ended. Several launches may
share the work: see `--num_shards`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

from ..choices import RowRule
from ..counterfactual_options import given_options
from ..device_options import DeviceOptions
from ..option_parser import OptionParser
from ..options import Range, check_options, option, required
from ..privacy import is_local_path
from .command import Command, ResultOptions, first_paragraph
from .results import note, say_result
from .study_options import MODEL_ALIASES, BatchSize, Seed


if TYPE_CHECKING:
    from ..explanation.plan import ExplanationJob


@dataclass(frozen=True)
class Options:
    """Which rows of which dataset are explained, and who shares the work.

    Raises:
        ValueError: for an option outside its range.
    """

    pretrained_model_name_or_path: str = required("Pipeline, folder or on the Hub.", aliases=MODEL_ALIASES)
    dataset: str = required(
        "Prepared dataset, any folder with parquet files, a pattern of them, or organisation/name on the Hub, which "
        "is read as it is needed."
    )
    output_dir: str = required("Folder of the output shards and manifest.json.")
    away: list[str] = option([], "Labels to remove.")
    towards: list[str] = option([], "Labels to add.")
    revision: str | None = option(None, "Branch, tag or commit of the pipeline on the Hub.")
    dataset_revision: str | None = option(None, "Branch, tag or commit of the dataset on the Hub.")
    split: str | None = option(None, "Only files whose path names this split; by default all.")
    image_column: str = option("image", "Column of encoded pictures.")
    image_id_column: str = option("image_id", "Column of the rows' names, if there is one.")
    rows: RowRule = option(
        "all",
        "Which rows to explain: all; those whose labels say that something of `away` is present or something of "
        "`towards` absent; or those of which the model says so.",
    )
    controls: bool = option(True, "Change each image as much by the plain gradient and by noise too.")
    overwrite: bool = option(False, "Replace what other settings left in `output_dir`.")
    batch_size: BatchSize = option(8, "Images per call of the pipeline, per process.")
    seed: Seed = option(0, "Seed of the noise, where some is used.")
    num_shards: Annotated[int | None, Range(at_least=1)] = option(
        None, "Number of launches that share the work; by default SLURM_ARRAY_TASK_COUNT, else 1."
    )
    shard_index: Annotated[int | None, Range(at_least=0)] = option(
        None, "This launch, from 0; by default (SLURM_ARRAY_TASK_ID - _MIN) / _STEP, else 0."
    )

    def __post_init__(self) -> None:
        check_options(self)


EditOptions = given_options()


def job_of(options: Options, edit: Any, environment: Mapping[str, str]) -> ExplanationJob:
    """The job that a command line describes.

    Args:
        options: of the command line.
        edit: likewise, an instance of `EditOptions`.
        environment: where SLURM's variables are.

    Raises:
        ValueError: for arguments that cannot work.
    """
    from ..explanation.input_rows import InputColumns
    from ..explanation.job_array import job_array_place
    from ..explanation.plan import ExplanationJob
    from ..explanation.request import ExplanationRequest

    num_tasks, task_index = job_array_place(options.num_shards, options.shard_index, environment)
    request = ExplanationRequest(
        away=tuple(options.away),
        towards=tuple(options.towards),
        **edit.given(),
        controls=options.controls,
        rows=options.rows,
        seed=options.seed,
    )
    model = options.pretrained_model_name_or_path
    return ExplanationJob(
        dataset=options.dataset,
        output_dir=options.output_dir,
        request=request,
        split=options.split,
        dataset_revision=options.dataset_revision,
        columns=InputColumns(options.image_column, options.image_id_column, with_labels=options.rows == "labelled"),
        batch_size=options.batch_size,
        num_tasks=num_tasks,
        task_index=task_index,
        overwrite=options.overwrite,
        model=None if is_local_path(model) else model,
    )


def run(options: Options, edit: Any, device_options: DeviceOptions, result_options: ResultOptions) -> int:
    """Load the pipeline, explain, and say what was done.

    Returns:
        1 if an input shard could not be read, or no image of the whole dataset is explained; else 0.

    Raises:
        ValueError: for arguments or files that cannot be used.
        OSError: if a file cannot be read or written, or the Hub cannot be reached.
    """
    from ..explanation.dataset_runner import explain_dataset
    from ..pipelines import MediffusionCounterfactualPipeline

    job = job_of(options, edit, os.environ)
    device, dtype = device_options.choose()
    pipe = MediffusionCounterfactualPipeline.from_pretrained(
        options.pretrained_model_name_or_path, revision=options.revision, dtype=dtype
    )
    summary = explain_dataset(pipe, job, None if device_options.device is None else device)
    if summary is None:
        return 0
    for problem in summary.problems:
        note(f"Not explained: {problem}")
    if result_options.json:
        say_result({"output_dir": str(options.output_dir), **asdict(summary)})
    else:
        print(f"{summary.sentence()} Output: {options.output_dir}")
    return 0 if summary.is_useful else 1


COMMAND = Command(
    OptionParser(Options, EditOptions, DeviceOptions, ResultOptions, description=first_paragraph(__doc__)), run
)
main = COMMAND.main
