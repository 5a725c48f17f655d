"""The arguments of `explain_dataset.py`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from ..guidance import OWN_GUIDANCE_MODES
from ..pipelines.counterfactual_inputs import MASK_WORDS, STARTS
from ..privacy import is_local_path
from .input_rows import InputColumns
from .plan import ExplanationJob
from .request import PIPELINE_ARGUMENTS, ROW_RULES, ExplanationRequest


def explanation_parser() -> argparse.ArgumentParser:
    """Parser of `explain_dataset.py`."""
    parser = argparse.ArgumentParser(
        description="Counterfactuals of every image of a dataset of parquet files, one output shard per input shard. "
        "The same command goes on where an earlier one ended."
    )
    parser.add_argument("--pretrained_model_name_or_path", required=True, help="Pipeline, folder or on the Hub.")
    parser.add_argument("--revision", default=None, help="Branch, tag or commit of the pipeline on the Hub.")
    parser.add_argument("--output_dir", required=True, help="Folder of the output shards and manifest.json.")
    parser.add_argument("--overwrite", action="store_true", help="Replace what other settings left in `output_dir`.")
    parser.add_argument("--batch_size", type=int, default=8, help="Images per call of the pipeline, per process.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the noise, where some is used.")
    _add_data_arguments(parser)
    _add_question_arguments(parser)
    group = parser.add_argument_group("job array", "Independent launches that share the work.")
    group.add_argument(
        "--num_shards", type=int, default=None, help="Number of tasks; by default SLURM_ARRAY_TASK_COUNT, else 1."
    )
    group.add_argument(
        "--shard_index",
        type=int,
        default=None,
        help="This task, from 0; by default (SLURM_ARRAY_TASK_ID - _MIN) / _STEP, else 0.",
    )
    return parser


def _add_data_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("data")
    group.add_argument(
        "--dataset",
        required=True,
        help="Prepared dataset, any folder with parquet files, a pattern of them, or organisation/name on the Hub, "
        "which is read as it is needed.",
    )
    group.add_argument("--dataset_revision", default=None, help="Branch, tag or commit of the dataset on the Hub.")
    group.add_argument("--split", default=None, help="Only files whose path names this split; by default all.")
    group.add_argument("--image_column", default="image", help="Column of encoded pictures.")
    group.add_argument("--image_id_column", default="image_id", help="Column of the rows' names, if there is one.")
    group.add_argument(
        "--rows",
        choices=ROW_RULES,
        default="all",
        help="Which rows to explain: all; those whose labels say that something of `away` is present or something of "
        "`towards` absent; or those of which the model says so.",
    )


def _add_question_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("question", "What is not given is the checkpoint's.")
    group.add_argument("--away", nargs="+", default=(), metavar="LABEL", help="Labels to remove.")
    group.add_argument("--towards", nargs="+", default=(), metavar="LABEL", help="Labels to add.")
    group.add_argument("--strength", type=float, default=None)
    group.add_argument("--guidance_scale", type=float, default=None)
    group.add_argument("--num_inference_steps", type=int, default=None)
    group.add_argument("--start", choices=STARTS, default=None)
    group.add_argument("--guidance_mode", choices=OWN_GUIDANCE_MODES, default=None)
    group.add_argument("--follow_inversion", action=argparse.BooleanOptionalAction, default=None)
    group.add_argument("--hold", type=float, default=None, help="Penalty on changes of the other labels.")
    group.add_argument(
        "--target_probability",
        type=float,
        default=None,
        help="Find for each image the smallest scale, then strength, that brings its labels there.",
    )
    group.add_argument("--max_guidance_scale", type=float, default=None, help="Largest scale of the search.")
    group.add_argument("--max_strength", type=float, default=None, help="Largest strength of the search.")
    group.add_argument(
        "--mask", choices=MASK_WORDS, default=None, help="auto: edit only where a first pass changes most."
    )
    group.add_argument(
        "--controls",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="Change each image as much by the plain gradient and by noise too.",
    )


def job_from_arguments(args: argparse.Namespace, environment: Mapping[str, str]) -> ExplanationJob:
    """The job that a command line describes.

    Args:
        args: parsed by `explanation_parser`.
        environment: where SLURM's variables are.

    Raises:
        ValueError: for arguments that cannot work.
    """
    num_tasks, task_index = job_array_place(args.num_shards, args.shard_index, environment)
    request = ExplanationRequest(
        away=tuple(args.away),
        towards=tuple(args.towards),
        **{name: getattr(args, name) for name in PIPELINE_ARGUMENTS},
        rows=args.rows,
        seed=args.seed,
    )
    model = args.pretrained_model_name_or_path
    return ExplanationJob(
        dataset=args.dataset,
        output_dir=args.output_dir,
        request=request,
        split=args.split,
        dataset_revision=args.dataset_revision,
        columns=InputColumns(args.image_column, args.image_id_column, with_labels=args.rows == "labelled"),
        batch_size=args.batch_size,
        num_tasks=num_tasks,
        task_index=task_index,
        overwrite=args.overwrite,
        model=None if is_local_path(model) else model,
    )


def job_array_place(
    num_shards: int | None, shard_index: int | None, environment: Mapping[str, str]
) -> tuple[int, int]:
    """Number of tasks and index of this one: as given, else as SLURM says, else one alone.

    Args:
        num_shards: number of tasks, or `None`.
        shard_index: this task, or `None`.
        environment: where `SLURM_ARRAY_TASK_COUNT`, `_ID`, `_MIN` and `_STEP` are, if at all.

    Raises:
        ValueError: if only one of the two is given, or SLURM's tasks are not evenly spaced.
    """
    if (num_shards is None) != (shard_index is None):
        raise ValueError("`num_shards` and `shard_index` belong together: give both, or neither.")
    if num_shards is not None and shard_index is not None:
        return num_shards, shard_index
    if "SLURM_ARRAY_TASK_ID" not in environment:
        return 1, 0
    names = ("ID", "COUNT", "MIN", "STEP")
    defaults = {"COUNT": "1", "MIN": environment["SLURM_ARRAY_TASK_ID"], "STEP": "1"}
    task, count, first, step = (
        int(environment.get(f"SLURM_ARRAY_TASK_{name}", defaults.get(name, "0"))) for name in names
    )
    index, rest = divmod(task - first, max(step, 1))
    if rest or index >= count:
        raise ValueError(
            f"SLURM's array tasks are not evenly spaced (task {task} of {count} from {first} on, step {step}). Pass "
            "`--num_shards` and `--shard_index`."
        )
    return count, index
