"""Command-line arguments that the training scripts share, under the names of diffusers' scripts."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .run.hub_checkpoints import hub_source
from .run.learning_rate import LR_SCHEDULERS


_POSITIVE_ARGUMENTS = (
    *("resolution", "max_train_steps", "train_batch_size", "gradient_accumulation_steps", "logging_steps"),
    *("validation_steps", "validation_batch_size", "checkpointing_steps", "checkpoints_total_limit"),
)


def parse_arguments(
    build_parser: Callable[[], argparse.ArgumentParser],
    presets: Mapping[str, Mapping[str, Any]],
    argv: Sequence[str] | None = None,
) -> argparse.Namespace:
    """Parse a command line whose `--preset` supplies defaults; what is given explicitly overrides them.

    Args:
        build_parser: makes the parser.
        presets: argument values by preset name.
        argv: the command line without the program; `None` is that of the process.

    Raises:
        ValueError: for an unknown preset, or a preset that names an unknown argument.
    """
    name = build_parser().parse_known_args(argv)[0].preset
    parser = build_parser()
    if name is not None:
        if name not in presets:
            raise ValueError(f"`preset` must be one of {sorted(presets)}, but got {name!r}.")
        unknown = presets[name].keys() - {action.dest for action in parser._actions}
        if unknown:
            raise ValueError(f"Preset {name!r} sets arguments that do not exist: {sorted(unknown)}.")
        parser.set_defaults(**presets[name])
    return parser.parse_args(argv)


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Where the run writes, how long it is, what it reports."""
    group = parser.add_argument_group("run")
    group.add_argument("--preset", help="Name of a row of presets.py that sets defaults; other arguments override it.")
    group.add_argument("--dry_run", action="store_true", help="Print the resolved configuration and stop.")
    group.add_argument("--output_dir", default=None, help="Folder of checkpoints, metrics and the final model.")
    _flag(group, "--overwrite_output_dir", False, "Delete an earlier run in `output_dir` first.")
    group.add_argument("--seed", type=int, default=0, help="Seed of everything random.")
    group.add_argument("--max_train_steps", type=int, default=1000, help="Optimizer steps.")
    group.add_argument("--mixed_precision", choices=("no", "fp16", "bf16"), default=None)
    group.add_argument(
        "--gradient_accumulation_steps",
        type=int,
        default=1,
        help="Split each step's batch into this many parts: less memory, same result.",
    )
    group.add_argument("--gradient_checkpointing", action="store_true", help="Less memory, slower steps.")
    group.add_argument("--logging_steps", type=int, default=10, help="Steps per line of metrics.jsonl.")
    group.add_argument("--validation_steps", type=int, default=500, help="Steps between validations.")
    group.add_argument("--validation_batch_size", type=int, default=64)
    group.add_argument("--checkpointing_steps", type=int, default=500, help="Steps between checkpoints.")
    group.add_argument("--checkpoints_total_limit", type=int, default=None, help="Checkpoints to keep.")
    group.add_argument(
        "--resume_from_checkpoint",
        default=None,
        help="'latest' (starts afresh if there is none), the path of a checkpoint folder, 'hub' (the newest of disk "
        "and `hub_model_id`), or organisation/name@revision.",
    )
    group.add_argument("--report_to", default=None, help="Tracker beside metrics.jsonl: tensorboard or wandb.")
    group.add_argument("--tracker_project_name", default="mediffusion")


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Which images, and how they are read."""
    group = parser.add_argument_group("data")
    group.add_argument("--dataset_dir", default=None, help="Prepared dataset folder (see prepare_dataset.py).")
    group.add_argument("--dataset_name", default=None, help="Dataset repository on the Hub in the same layout.")
    group.add_argument("--dataset_revision", default=None, help="Branch, tag or commit of `dataset_name`.")
    group.add_argument(
        "--validation_share",
        type=float,
        default=10.0,
        help="Percent of the training patients held out for validation, if the dataset has no validation split.",
    )
    group.add_argument("--resolution", type=int, default=None, help="Height and width of the images in pixels.")
    group.add_argument("--train_batch_size", type=int, default=16, help="Images per step, over all processes.")
    group.add_argument("--cache_images", choices=("auto", "always", "never"), default="auto")
    group.add_argument(
        "--dataloader_num_workers",
        type=int,
        default=None,
        help="Processes that read images; by default none if the images are cached in memory, else 2.",
    )
    _flag(group, "--horizontal_flip", False, "Mirror every second image. Not for chest X-rays: the heart moves.")
    group.add_argument("--random_shift", type=int, default=0, help="Largest random shift in pixels.")
    group.add_argument(
        "--random_crop_scale",
        type=float,
        nargs=2,
        default=None,
        metavar=("MIN", "MAX"),
        help="Share of the area that a random crop keeps.",
    )
    group.add_argument("--intensity_jitter", type=float, default=0.0, help="Random contrast and brightness.")


def add_optimizer_arguments(
    parser: argparse.ArgumentParser, learning_rate: float, betas: tuple[float, float], weight_decay: float
) -> None:
    """AdamW, its schedule, and the moving average."""
    group = parser.add_argument_group("optimizer")
    group.add_argument("--learning_rate", type=float, default=learning_rate)
    group.add_argument("--lr_scheduler", choices=LR_SCHEDULERS, default="constant_with_warmup")
    group.add_argument("--lr_warmup_steps", type=int, default=0)
    group.add_argument("--adam_beta1", type=float, default=betas[0])
    group.add_argument("--adam_beta2", type=float, default=betas[1])
    group.add_argument("--adam_weight_decay", type=float, default=weight_decay)
    group.add_argument("--adam_epsilon", type=float, default=1e-8)
    group.add_argument("--max_grad_norm", type=float, default=1.0)
    _flag(group, "--use_ema", True, "Average the weights; the average is validated, saved and explained.")
    group.add_argument("--ema_decay", type=float, default=0.9999, help="Largest decay; it warms up from 0.")


def add_hub_arguments(parser: argparse.ArgumentParser) -> None:
    """Publishing the result."""
    group = parser.add_argument_group("Hub")
    group.add_argument("--push_to_hub", action="store_true", help="Publish the model in the Hub.")
    group.add_argument(
        "--hub_strategy",
        choices=("end", "every_save"),
        default="end",
        help="Publish at the end, or also in the background at every checkpoint, which can then be resumed from.",
    )
    group.add_argument("--hub_model_id", default=None, help="Repository, as organisation/name.")
    group.add_argument("--hub_token", default=None, help="Token; by default that of `hf auth login`. Never stored.")
    group.add_argument("--hub_private_repo", action="store_true")


def check_run_arguments(args: argparse.Namespace) -> None:
    """Check what all scripts share, before any work.

    Raises:
        ValueError: for the first argument that cannot work.
    """
    if (args.dataset_dir is None) == (args.dataset_name is None) and not (args.dry_run and args.dataset_dir is None):
        raise ValueError("Exactly one of `dataset_dir` (a prepared folder) and `dataset_name` (on the Hub) is needed.")
    if args.dataset_dir is not None and not Path(args.dataset_dir).is_dir():
        raise ValueError(
            f"`dataset_dir` must be a folder written by prepare_dataset.py, but {args.dataset_dir!r} does not exist."
        )
    if args.output_dir is None and not args.dry_run:
        raise ValueError("`output_dir` is missing: name the folder for checkpoints, metrics and the final model.")
    for name in _POSITIVE_ARGUMENTS:
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"`{name}` must be at least 1, but got {value}.")
    if args.resolution is None:
        raise ValueError("`resolution` is missing: the height and width of the images in pixels.")
    if not 0 <= args.validation_share < 100:
        raise ValueError(f"`validation_share` must be a percentage in [0, 100), but got {args.validation_share}.")
    if args.learning_rate <= 0:
        raise ValueError(f"`learning_rate` must be above 0, but got {args.learning_rate}.")
    if not 0 <= args.ema_decay < 1:
        raise ValueError(f"`ema_decay` must be in [0, 1), but got {args.ema_decay}.")


def check_hub_arguments(args: argparse.Namespace) -> None:
    """Check the arguments of `add_hub_arguments`.

    Raises:
        ValueError: if the repository is missing, or a token is given beside wandb.
    """
    hub_source(args.resume_from_checkpoint, args.hub_model_id)
    if args.push_to_hub and args.hub_model_id is None:
        raise ValueError("`push_to_hub` needs `hub_model_id`: the repository as organisation/name.")
    if args.hub_token is not None and args.report_to == "wandb":
        raise ValueError("`hub_token` would be logged by wandb. Log in with `hf auth login` instead.")


def public_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """All arguments but the token, for `training_config.json`, trackers and the card."""
    return {name: value for name, value in sorted(vars(args).items()) if name != "hub_token"}


def _flag(group: argparse._ArgumentGroup, name: str, default: bool, text: str) -> None:
    """A switch with its negation, `--name` and `--no-name`."""
    group.add_argument(name, action=argparse.BooleanOptionalAction, default=default, help=text)
