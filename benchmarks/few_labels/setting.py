"""One training of one method: which labels, which learning rates, where it writes, and what it may go on from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mediffusion_diffusers.training.joint.config import JointConfig

from .problem import Problem


@dataclass(frozen=True)
class Setting:
    """What a method is called with.

    Args:
        problem: data and recipe.
        share: percent of labels.
        draw: number of the draw: seed of the labelled images and of the training.
        rates: learning rate of each method, as chosen on the validation split.
        folder: of this draw; a method writes into its own folder in it.
        pretrained: folder of the U-Net that was trained to denoise all images.
        suffix: of the folder's name, for trials.
        class_steps: steps on labels alone, the same for every method.
        pool_steps: steps on the whole pool, likewise.
    """

    problem: Problem
    share: float
    draw: int
    rates: dict[str, float]
    folder: Path
    pretrained: Path
    suffix: str = ""
    class_steps: int = 250
    pool_steps: int = 400

    def class_stage(self, method: str, **options: object) -> JointConfig:
        """Labelled images alone, as the recipe has it, for `class_steps` steps; `options` change that."""
        recipe = self.problem.recipe
        return recipe.with_options(
            **{
                "labelled_split": str(self.problem.labelled_split(self.share, self.draw)),
                "seed": self.draw,
                "output_dir": str(self.folder / f"{method}{self.suffix}"),
                "resume_from_checkpoint": "latest",
                "learning_rate": self.rates[method],
                "lr_scheduler": recipe.labels.classifier_lr_scheduler or recipe.optimizer.lr_scheduler,
                "classifier_lr_scheduler": None,
                "classifier_warmup_steps": None,
                "joint_learning_rate": None,
                "linear_probe_first": False,
                "lr_restart_at_classifier_start": False,
                "lr_warmup_steps": recipe.consolidation.consolidation_warmup_steps,
                "ema_decay": recipe.consolidation.consolidation_ema_decay,
                "classifier_start_step": 0,
                "consolidation_start_step": None,
                "decoder_start_step": None,
                "train_batch_size": 16,
                "max_train_steps": self.class_steps,
                "checkpointing_steps": self.class_steps,
                "checkpoints_total_limit": 1,
                "logging_steps": 50,
                **options,
            }
        )

    def pool_stage(self, method: str, after: str, **options: object) -> JointConfig:
        """From the checkpoint at the end of another method's class stage: its own soft answers of the whole pool."""
        start = self.folder / after / f"checkpoint-{self.class_steps}"
        return self.class_stage(after).with_options(
            **{
                "output_dir": str(self.folder / f"{method}{self.suffix}"),
                "resume_from_checkpoint": str(start),
                "consolidation_start_step": self.class_steps,
                "consolidation_learning_rate": self.rates[method],
                "max_train_steps": self.class_steps + self.pool_steps,
                "checkpointing_steps": self.class_steps + self.pool_steps,
                **options,
            }
        )
