"""The end of a run: the weights that were validated, as a pipeline folder with a card, on disk and on the Hub."""

from __future__ import annotations

from typing import Any

import numpy as np
from diffusers.utils import logging

from ..models import JointUNet2DModel
from .components import sampling_scheduler
from .run import TrainingRun, publish_folder
from .training_data import TrainingData
from .validation import ValidationResult, probabilities


logger = logging.get_logger(__name__)


def save_joint_pipeline(
    run: TrainingRun,
    unet: JointUNet2DModel,
    vae: Any,
    noise_scheduler: Any,
    data: TrainingData,
    validation: ValidationResult | None,
) -> None:
    """Save a `MediffusionCounterfactualPipeline` into the run's folder, write its card, and publish it if asked.

    Args:
        run: the training run.
        unet: the model with the weights to save, in evaluation mode.
        vae: the autoencoder.
        noise_scheduler: the noise schedule of training.
        data: what it was trained on.
        validation: the last validation; multi-label models get their thresholds from it.
    """
    from ..pipelines.counterfactual import MediffusionCounterfactualPipeline

    if validation is not None and data.info.is_multi_label:
        unet.register_to_config(label_thresholds=youden_thresholds(validation, data.info.problem_type))
    pipeline = MediffusionCounterfactualPipeline(vae=vae, unet=unet, scheduler=sampling_scheduler(noise_scheduler))
    partial = run.output_dir / ".pipeline.partial"
    pipeline.save_pretrained(partial)
    publish_folder(partial, run.output_dir)
    logger.warning(f"Saved the pipeline in {run.output_dir}.")


def youden_thresholds(validation: ValidationResult, problem_type: str) -> list[float]:
    """Per label the probability that maximises sensitivity + specificity - 1; 0.5 where that is undefined."""
    from sklearn.metrics import roc_curve

    scores = probabilities(validation.logits, problem_type)
    thresholds = []
    for index in range(scores.shape[1]):
        known = ~np.isnan(validation.labels[:, index])
        targets = validation.labels[known, index]
        if not 0 < targets.sum() < len(targets):
            thresholds.append(0.5)
            continue
        false_positive, true_positive, levels = roc_curve(targets, scores[known, index])
        best = float(levels[int(np.argmax(true_positive - false_positive))])
        thresholds.append(min(max(best, 1e-6), 1 - 1e-6))
    return thresholds
