"""Explain every image of a dataset of parquet files, in a folder or on the Hub, with any number of processes.

    mediffusion explain-dataset --pretrained_model_name_or_path runs/joint \
        --dataset runs/phantom --split test --output_dir runs/explained --away Cardiomegaly

`accelerate launch training/explain_dataset.py` runs it in several processes, `--engine ray` on a Ray cluster.

Every chunk of an input shard becomes one output file. Run the same command again to go on where it ended; several
launches may share the work: see `--num_shards`. `--no-counterfactuals` classifies alone.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from ..choices import Engine, RowRule
from ..counterfactual_options import given_options
from ..device_options import DeviceOptions
from ..option_parser import OptionParser
from ..options import Range, check_options, option, required
from ..privacy import is_local_path
from .command import Command, ResultOptions, first_paragraph
from .job_array import job_array_place
from .results import note, say_result
from .study_options import MODEL_ALIASES, BatchSize, Seed


if TYPE_CHECKING:
    from ..explanation.plan import ExplanationJob
    from ..explanation.progress import Summary
    from ..requests.request import Request


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
    output_dir: str = required("Folder of the finished chunks and manifest.json.")
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
    counterfactuals: bool = option(
        True, "Explain; without, images are classified alone: probabilities, logits, embeddings."
    )
    timesteps: list[int] = option(
        [0], "Without counterfactuals: where the classifier is asked; several are averaged (on logits)."
    )
    num_noise_samples: Annotated[int, Range(at_least=0)] = option(
        0, "Without counterfactuals: noises per image and timestep above 0."
    )
    embeddings: bool = option(True, "Without counterfactuals: write the classifier's pooled features too.")
    engine: Engine = option(
        "accelerate",
        "Who runs it: this process or those of `accelerate launch`, or the actors of a Ray cluster (RAY_ADDRESS; else "
        "one on this machine).",
    )
    num_workers: Annotated[int | None, Range(at_least=1)] = option(
        None, "With `--engine ray`: actors; by default one per GPU of the cluster, else per CPU core."
    )
    chunk_rows: Annotated[int | None, Range(at_least=1, at_most=512)] = option(
        None, "Input rows per output file, what a kill costs at most; by default what takes about a minute."
    )
    batch_size: BatchSize = option(8, "Images per call of the pipeline, per process.")
    seed: Seed = option(0, "Seed of the noise, where some is used.")
    report_to: str | None = option(None, "Tracker that is told how far the launch is: tensorboard, wandb, ...")
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
    from ..data.input_rows import InputColumns
    from ..explanation.plan import ExplanationJob

    num_tasks, task_index = job_array_place(options.num_shards, options.shard_index, environment)
    model = options.pretrained_model_name_or_path
    return ExplanationJob(
        dataset=options.dataset,
        output_dir=options.output_dir,
        request=_request_of(options, edit),
        split=options.split,
        dataset_revision=options.dataset_revision,
        columns=InputColumns(options.image_column, options.image_id_column),
        batch_size=options.batch_size,
        chunk_rows=options.chunk_rows,
        num_tasks=num_tasks,
        task_index=task_index,
        overwrite=options.overwrite,
        model=None if is_local_path(model) else model,
        report_to=options.report_to,
    )


def _request_of(options: Options, edit: Any) -> Request:
    """What is asked of every image."""
    from ..requests.classification import ClassificationRequest
    from ..requests.counterfactuals import ExplanationRequest

    if options.counterfactuals:
        request = ExplanationRequest(
            away=tuple(options.away),
            towards=tuple(options.towards),
            **edit.given(),
            controls=options.controls,
            rows=options.rows,
            seed=options.seed,
        )
        return request
    asked = {"away": options.away, "towards": options.towards, **edit.given()}
    needless = [name for name, value in asked.items() if value] + (["rows"] if options.rows != "all" else [])
    if needless:
        raise ValueError(
            f"`{needless[0]}` is about counterfactuals, but `--no-counterfactuals` was given. Leave out one of them."
        )
    return ClassificationRequest(
        timesteps=tuple(options.timesteps),
        num_noise_samples=options.num_noise_samples,
        embeddings=options.embeddings,
        seed=options.seed,
    )


def run(options: Options, edit: Any, device_options: DeviceOptions, result_options: ResultOptions) -> int:
    """Load the pipeline, explain, and say what was done.

    Returns:
        1 if an input shard could not be read, or no image of the whole dataset is explained; else 0.

    Raises:
        ValueError: for arguments or files that cannot be used.
        OSError: if a file cannot be read or written, or the Hub cannot be reached.
    """
    job = job_of(options, edit, os.environ)
    summary = _run_engine(options, job, device_options)
    if summary is None:
        return 0
    for name in summary.damaged:
        note(f"Damaged, made again: {name}")
    for problem in summary.problems:
        note(f"Not explained: {problem}")
    if result_options.json:
        say_result({"output_dir": str(options.output_dir), **summary.to_dict()})
    else:
        print(f"{sentence(summary)} Output: {options.output_dir}")
    return 0 if summary.is_useful else 1


def sentence(summary: Summary) -> str:
    """What a launch did, in one line for the terminal."""
    whole, counts = summary.manifest, summary.counts
    shards = f"{whole['num_finished_shards']:,} of {whole['num_shards']:,} shards are finished"
    if whole["complete"] and whole["num_explained"] == 0:
        return (
            f"No image is explained: {whole['num_failed']:,} rows could not be (column `error` says why), "
            f"{whole['num_passed_over']:,} were not asked about; {shards}."
        )
    if counts["num_rows"] == 0 and not summary.problems:
        return f"Nothing was left to do: {shards}."
    workers = f"{summary.num_workers} worker{'s' if summary.num_workers > 1 else ''}"
    return (
        f"Explained {counts['num_explained']:,} images ({counts['num_failed']:,} could not be, "
        f"{counts['num_passed_over']:,} were not asked about), {summary.images_per_second:.3g} images/s by {workers}; "
        f"{shards}."
    )


def _run_engine(options: Options, job: ExplanationJob, device_options: DeviceOptions) -> Summary | None:
    """Explain with the engine that is asked for; only the first process of a launch gets a summary."""
    from ..pipelines.source import PipelineSource

    source = PipelineSource(options.pretrained_model_name_or_path, options.revision, device_options)
    if options.engine == "ray":
        from ..explanation.ray_engine import explain_dataset_with_ray

        return explain_dataset_with_ray(source, job, options.num_workers)
    from ..explanation.dataset_runner import explain_dataset

    pipe, device = source.load()
    return explain_dataset(pipe, job, None if device_options.device is None else device)


COMMAND = Command(
    OptionParser(Options, EditOptions, DeviceOptions, ResultOptions, description=first_paragraph(__doc__)), run
)
main = COMMAND.main
