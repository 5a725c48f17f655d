"""The options that all trainings share, in small groups, and how groups become one checked configuration.

A function takes the group that it needs; only what starts a training sees all of them.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from ..option_parser import OptionParser
from ..options import Range, check_options, option


Config = TypeVar("Config", bound="TrainingConfig")
LRScheduler = Literal["constant", "constant_with_warmup", "linear", "cosine", "warmup_stable_decay"]

_Count = Annotated[int, Range(at_least=1)]
_OptionalCount = Annotated[int | None, Range(at_least=1)]
_NotNegative = Annotated[float, Range(at_least=0)]
_Beta = Annotated[float, Range(at_least=0, below=1)]


@dataclass(frozen=True)
class RunOptions:
    """Where a run writes, how long it is, on what it computes, what it reports."""

    _argument_group_name = "run"

    preset: str | None = option(None, "Name of a row of presets.py that sets defaults; other arguments override it.")
    dry_run: bool = option(False, "Print the resolved configuration and stop.")
    output_dir: str | None = option(None, "Folder of checkpoints, metrics and the final model.")
    overwrite_output_dir: bool = option(False, "Delete an earlier run in `output_dir` first.")
    seed: Annotated[int, Range(at_least=0, below=2**63)] = option(0, "Seed of everything random.")
    max_train_steps: _Count = option(1000, "Optimizer steps.")
    device: str | None = option(None, "cpu, cuda, cuda:1, xpu, mps, ...; by default an accelerator if there is one.")
    mixed_precision: Literal["no", "fp16", "bf16"] | None = option(
        None, "Precision of the passes; weights stay float32. By default that of `accelerate config`."
    )
    allow_tf32: bool = option(
        False, "Let NVIDIA GPUs round the factors of float32 products to 10 bits: faster, and less exact."
    )
    gradient_accumulation_steps: _Count = option(
        1, "Split each step's batch into this many parts: less memory, same result."
    )
    gradient_checkpointing: bool = option(False, "Less memory, slower steps.")
    logging_steps: _Count = option(10, "Steps per line of metrics.jsonl.")
    validation_steps: _Count = option(500, "Steps between validations.")
    validation_batch_size: _Count = option(64, "Images that are validated at once.")
    checkpointing_steps: _Count = option(500, "Steps between checkpoints.")
    checkpoints_total_limit: _OptionalCount = option(None, "Checkpoints to keep.")
    resume_from_checkpoint: str | None = option(
        None,
        "'latest' (starts afresh if there is none), the path of a checkpoint folder, 'hub' (the newest of disk and "
        "`hub_model_id`), or organisation/name@revision.",
    )
    report_to: str | None = option(None, "Tracker beside metrics.jsonl: tensorboard or wandb.")
    tracker_project_name: str = option("mediffusion", "Project of the tracker.")


@dataclass(frozen=True)
class DataOptions:
    """Which images, and how they are read."""

    _argument_group_name = "data"

    dataset_dir: str | None = option(None, "Prepared dataset folder (see `mediffusion prepare`).")
    dataset_name: str | None = option(None, "Dataset repository on the Hub in the same layout.")
    dataset_revision: str | None = option(None, "Branch, tag or commit of `dataset_name`.")
    validation_share: Annotated[float, Range(at_least=0, below=100)] = option(
        10.0, "Percent of the training patients held out for validation, if the dataset has no validation split."
    )
    resolution: _OptionalCount = option(None, "Height and width of the images in pixels.")
    train_batch_size: _Count = option(16, "Images per step, over all processes.")
    cache_images: Literal["auto", "always", "never"] = option("auto", "Whether to keep decoded images in memory.")
    dataloader_num_workers: Annotated[int | None, Range(at_least=0)] = option(
        None, "Processes that read images; by default none if the images are cached in memory, else 2."
    )
    horizontal_flip: bool = option(False, "Mirror every second image. Not for chest X-rays: the heart moves.")
    random_shift: Annotated[int, Range(at_least=0)] = option(0, "Largest random shift in pixels.")
    random_crop_scale: Annotated[list[float] | None, Range(above=0, at_most=1)] = option(
        None, "Share of the area that a random crop keeps, smallest and largest.", metavar=("MIN", "MAX")
    )
    random_rotation: Annotated[float, Range(at_least=0, at_most=180)] = option(
        0.0, "Largest random rotation in degrees; the image is mirrored at its border."
    )
    intensity_jitter: Annotated[float, Range(at_least=0, below=1)] = option(0.0, "Random contrast and brightness.")

    @property
    def image_size(self) -> int:
        """`resolution`, after it was checked to be there."""
        assert self.resolution is not None
        return self.resolution


@dataclass(frozen=True)
class OptimizerOptions:
    """AdamW, its schedule, and the moving average."""

    _argument_group_name = "optimizer"

    learning_rate: Annotated[float, Range(above=0)] = option(1e-4, "Largest learning rate.")
    lr_scheduler: LRScheduler = option("constant_with_warmup", "Course of the learning rate.")
    lr_warmup_steps: Annotated[int, Range(at_least=0)] = option(0, "Steps in which the learning rate rises from 0.")
    adam_beta1: _Beta = option(0.9, "Decay of the gradients' mean.")
    adam_beta2: _Beta = option(0.999, "Decay of the squared gradients' mean.")
    adam_weight_decay: _NotNegative = option(1e-2, "Weight decay.")
    adam_epsilon: _NotNegative = option(1e-8, "Added to the divisor.")
    max_grad_norm: Annotated[float | None, Range(above=0)] = option(1.0, "Largest norm of all gradients together.")
    use_ema: bool = option(True, "Average the weights; the average is validated, saved and explained.")
    ema_decay: _Beta = option(0.9999, "Largest decay; it warms up from 0.")

    @property
    def adam_betas(self) -> tuple[float, float]:
        """Both decays, as `torch.optim.AdamW` takes them."""
        return self.adam_beta1, self.adam_beta2


@dataclass(frozen=True)
class HubOptions:
    """Publishing the result."""

    _argument_group_name = "Hub"

    push_to_hub: bool = option(False, "Publish the model in the Hub.")
    hub_strategy: Literal["end", "every_save"] = option(
        "end", "Publish at the end, or also in the background at every checkpoint, which can then be resumed from."
    )
    hub_model_id: str | None = option(None, "Repository, as organisation/name.")
    hub_token: str | None = field(
        default=None, repr=False, metadata={"help": "Token; by default that of `hf auth login`. Never stored."}
    )
    hub_private_repo: bool = option(False, "Make the repository private; a public one is refused.")

    @property
    def repo_id(self) -> str:
        """`hub_model_id`, after it was checked to be there."""
        assert self.hub_model_id is not None
        return self.hub_model_id


@dataclass(frozen=True)
class TrainingConfig:
    """All options of a training: a dataclass whose fields are groups of options, of which each name occurs once.

    A training declares its own groups and defaults in a subclass.
    """

    run: RunOptions = field(default_factory=RunOptions)
    data: DataOptions = field(default_factory=DataOptions)
    optimizer: OptimizerOptions = field(default_factory=OptimizerOptions)

    @classmethod
    def parser(cls: type[Config], presets: Mapping[str, Config] | None = None, description: str = "") -> OptionParser:
        """The command line of the training; its defaults are those of `cls()`.

        Args:
            presets: configurations by name, for `--preset`.
            description: for `--help`.
        """
        hints = typing.get_type_hints(cls)
        groups = [hints[entry.name] for entry in dataclasses.fields(cls)]
        rows = {name: preset.to_dict() for name, preset in (presets or {}).items()}
        return OptionParser(*groups, description=description, defaults=cls().to_dict(), presets=rows)

    @classmethod
    def parse(cls: type[Config], argv: Sequence[str] | None, presets: Mapping[str, Config]) -> Config:
        """Parse a command line whose `--preset` supplies defaults; what is given explicitly overrides them.

        Args:
            argv: the command line without the program; `None` is that of the process.
            presets: configurations by name.

        Raises:
            ValueError: for an unknown preset or argument.
        """
        return cls(*cls.parser(presets).parse(argv))

    def with_options(self: Config, **options: Any) -> Config:
        """The same configuration with other values of some options, whichever groups they belong to.

        Raises:
            ValueError: for a name that no group has, or a value outside its range.
        """
        groups = {}
        for entry in dataclasses.fields(self):
            group = getattr(self, entry.name)
            names = options.keys() & {each.name for each in dataclasses.fields(group)}
            groups[entry.name] = dataclasses.replace(group, **{name: options[name] for name in names})
            check_options(groups[entry.name])
        unknown = sorted(options.keys() - self.to_dict().keys())
        if unknown:
            raise ValueError(f"{type(self).__name__} has no options {unknown}.")
        return type(self)(**groups)

    def to_dict(self) -> dict[str, Any]:
        """All options by name."""
        return {name: value for group in vars(self).values() for name, value in vars(group).items()}

    def public(self) -> dict[str, Any]:
        """All options but the token, for `training_config.json`, trackers and the card."""
        return {name: value for name, value in sorted(self.to_dict().items()) if name != "hub_token"}

    def unreached_starts(self) -> dict[str, int]:
        """The options that name the step from which something takes part, where the run ends before it."""
        names = [name for name in self.to_dict() if name.endswith(("_start", "_start_step"))]
        starts = {name: self.to_dict()[name] for name in names}
        return {name: step for name, step in starts.items() if type(step) is int and step >= self.run.max_train_steps}

    def check(self) -> None:
        """Check every option, and those that belong together, before any work.

        Raises:
            ValueError: for the first that cannot work.
        """
        check_data_source(self.run, self.data)
        for group in vars(self).values():
            check_options(group)
        if self.run.output_dir is None and not self.run.dry_run:
            raise ValueError("`output_dir` is missing: name the folder for checkpoints, metrics and the final model.")
        scale = self.data.random_crop_scale
        if scale is not None and not (len(scale) == 2 and scale[0] <= scale[1]):
            raise ValueError(f"`random_crop_scale` must be two numbers, smallest and largest, but got {scale}.")
        if self.data.resolution is not None:
            check_shift(self.data, self.data.resolution)


def check_data_source(run: RunOptions, data: DataOptions) -> None:
    """Check that one dataset is named, and there if it is a folder; a dry run needs none.

    Raises:
        ValueError: if not.
    """
    if (data.dataset_dir is None) == (data.dataset_name is None) and not (run.dry_run and data.dataset_dir is None):
        raise ValueError("Exactly one of `dataset_dir` (a prepared folder) and `dataset_name` (on the Hub) is needed.")
    from ..data.schema import INFO_FILE  # brings torch and datasets, which a command line must not wait for

    if data.dataset_dir is not None and not (Path(data.dataset_dir) / INFO_FILE).is_file():
        reason = f"holds no {INFO_FILE}" if Path(data.dataset_dir).is_dir() else "is no folder"
        raise ValueError(
            f"`dataset_dir` must be a folder written by `mediffusion prepare`, but {data.dataset_dir!r} {reason}."
        )


def check_shift(data: DataOptions, resolution: int) -> None:
    """Check that a random shift leaves something of the image.

    Raises:
        ValueError: if not.
    """
    if data.random_shift >= resolution:
        raise ValueError(
            f"`random_shift` must be below `resolution` ({resolution} pixels), but got {data.random_shift}."
        )


def check_resolution(data: DataOptions) -> None:
    """Check that the images' size is named.

    Raises:
        ValueError: if it is not.
    """
    if data.resolution is None:
        raise ValueError("`resolution` is missing: the height and width of the images in pixels.")


def check_hub(run: RunOptions, hub: HubOptions) -> None:
    """Check what belongs together when publishing.

    Raises:
        ValueError: if the repository is missing, or a token is given beside wandb.
    """
    if hub.push_to_hub and hub.hub_model_id is None:
        raise ValueError("`push_to_hub` needs `hub_model_id`: the repository as organisation/name.")
    if hub.hub_token is not None and run.report_to == "wandb":
        raise ValueError("`hub_token` would be logged by wandb. Log in with `hf auth login` instead.")
