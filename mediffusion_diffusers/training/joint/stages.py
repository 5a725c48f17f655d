"""The stages of joint training: diffusion, then both losses, then perhaps consolidation and the decoder alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..stages import LRSchedule, Stage
from .config import JointConfig


@dataclass(frozen=True)
class JointStage(Stage):
    """What a stage of joint training learns from.

    Args:
        diffusion_loss_weight: weight of L_diff; 0 leaves it out.
        is_labelled: whether labelled images take part.
        is_consolidating: whether the model learns its own soft answers.
        trains_encoder: whether encoder and head learn, or the decoder alone.
        ema_decay: largest decay of the averaged weights.
        restarts_average: whether the average's warm-up begins anew.
        begins_averaged: whether training goes on from the averaged weights, with a fresh optimizer.
        holds_statistics: whether the running statistics of the head's normalisation, if it has one, stay as they are.
    """

    diffusion_loss_weight: float
    is_labelled: bool
    is_consolidating: bool
    trains_encoder: bool
    ema_decay: float
    restarts_average: bool
    begins_averaged: bool
    holds_statistics: bool


def joint_stages(config: JointConfig) -> Sequence[JointStage]:
    """The stages that a configuration asks for, in order; empty ones are left out."""
    run, labels, options, own = config.run, config.labels, config.optimizer, config.consolidation
    end = run.max_train_steps
    decoder_start = end if own.decoder_start_step is None else min(own.decoder_start_step, end)
    first_end = decoder_start if own.consolidation_start_step is None else min(own.consolidation_start_step, end)
    joint_start = min(labels.classifier_start_step, first_end) if labels.classifier_loss_weight > 0 else first_end
    joint_weight = labels.joint_diffusion_loss_weight
    weight = config.diffusion.diffusion_loss_weight
    joint_weight = weight if joint_weight is None else joint_weight

    def peak(learning_rate: float | None) -> float:
        return 1.0 if learning_rate is None else learning_rate / options.learning_rate

    restarts = labels.lr_restart_at_classifier_start and 0 < joint_start < first_end
    whole = LRSchedule(0, first_end, options.lr_scheduler, options.lr_warmup_steps)
    first, second = whole, whole
    if restarts:
        first = LRSchedule(0, joint_start, options.lr_scheduler, options.lr_warmup_steps)
        course = labels.classifier_lr_scheduler or options.lr_scheduler
        warmup = labels.classifier_warmup_steps
        warmup = options.lr_warmup_steps if warmup is None else warmup
        second = LRSchedule(joint_start, first_end, course, warmup, peak(labels.joint_learning_rate))

    def consolidating(start: int, end: int) -> LRSchedule:
        warmup, highest = own.consolidation_warmup_steps, peak(own.consolidation_learning_rate)
        return LRSchedule(start, end, "cosine", warmup, highest)

    def stage(name: str, start: int, end: int, schedule: LRSchedule, diffusion_loss_weight: float) -> JointStage:
        is_late = name in ("consolidation", "decoder")
        return JointStage(
            name=name,
            first_step=start,
            end_step=end,
            lr_schedule=schedule,
            diffusion_loss_weight=diffusion_loss_weight,
            is_labelled=name in ("joint", "classification"),
            is_consolidating=name == "consolidation",
            trains_encoder=name != "decoder",
            ema_decay=own.consolidation_ema_decay if is_late else options.ema_decay,
            restarts_average=is_late or (restarts and start == joint_start),
            begins_averaged=is_late or (restarts and start == joint_start),
            holds_statistics=is_late,
        )

    stages = [
        stage("diffusion", 0, joint_start, first, weight),
        stage("joint" if joint_weight > 0 else "classification", joint_start, first_end, second, joint_weight),
        stage("consolidation", first_end, decoder_start, consolidating(first_end, decoder_start), weight),
        stage("decoder", decoder_start, end, consolidating(decoder_start, end), weight),
    ]
    return [each for each in stages if each.first_step < each.end_step]


def images_of_step(config: JointConfig, stage: JointStage, step: int) -> dict[str, int]:
    """How many images each stream gives to a step, over all processes."""
    sizes = {
        "diffusion": config.data.train_batch_size if stage.diffusion_loss_weight > 0 else 0,
        "labelled": config.labels.labelled_batch_size if stage.is_labelled and config.labels.is_due(step) else 0,
        "answered": config.consolidation.consolidation_batch_size if stage.is_consolidating else 0,
    }
    return {name: size for name, size in sizes.items() if size > 0}
