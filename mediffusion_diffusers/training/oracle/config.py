"""The options of `train_oracle.py`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from ...options import Range, check_number, option
from ..config import DataOptions, OptimizerOptions, RunOptions, TrainingConfig


@dataclass(frozen=True)
class NetworkOptions:
    """The oracle's network."""

    _argument_group_name = "network"

    hidden_sizes: Annotated[list[int], Range(at_least=1)] = option([32, 64, 128], "Widths of the stages.")
    depths: Annotated[list[int], Range(at_least=1)] = option([1, 1, 1], "Blocks of the stages.")


@dataclass(frozen=True)
class OracleConfig(TrainingConfig):
    """The training of an outside classifier, from scratch, on patients of its own."""

    # Another seed than the judged model's. Of the images, `resolution` is by default the dataset's.
    run: RunOptions = field(
        default_factory=lambda: RunOptions(
            seed=1000, max_train_steps=1800, logging_steps=20, validation_steps=600, checkpointing_steps=600
        )
    )
    data: DataOptions = field(
        default_factory=lambda: DataOptions(
            train_batch_size=64, horizontal_flip=True, random_shift=1, intensity_jitter=0.1
        )
    )
    optimizer: OptimizerOptions = field(
        default_factory=lambda: OptimizerOptions(
            learning_rate=3e-3,
            lr_scheduler="cosine",
            lr_warmup_steps=50,
            adam_weight_decay=2e-2,
            max_grad_norm=None,
            use_ema=False,
        )
    )
    network: NetworkOptions = field(default_factory=NetworkOptions)

    def check(self) -> None:
        """See `TrainingConfig.check`."""
        super().check()
        num_slices = self.run.gradient_accumulation_steps
        check_number("train_batch_size", self.data.train_batch_size, Range(at_least=2 * num_slices), whole=True)
        if self.data.resolution is not None:
            check_number("resolution", self.data.resolution, Range(at_least=8), whole=True)
        if len(self.network.hidden_sizes) != len(self.network.depths):
            raise ValueError(
                f"`hidden_sizes` and `depths` must be equally long, one entry per stage, but got "
                f"{self.network.hidden_sizes} and {self.network.depths}."
            )
        if self.run.gradient_checkpointing:
            raise ValueError("`gradient_checkpointing` is not there for an oracle, which is small: leave it out.")
