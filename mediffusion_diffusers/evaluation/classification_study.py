"""Evaluate a pipeline's classifier on a held-out split, with intervals and thresholds from validation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import expit, softmax
from tqdm.auto import tqdm

from ..data.schema import parquet_files
from ..pipelines import MediffusionClassifyPipeline
from .classification import nan_to_none
from .defaults import CLASSIFICATION_BATCH_SIZE, NUM_RESAMPLES
from .held_out import HeldOutSplit
from .metrics import Classification
from .probability_calibration import calibrate_probabilities, calibration_figures, curves_of
from .provenance import describe_provenance


def predict_split(
    pipeline: MediffusionClassifyPipeline, split: HeldOutSplit, batch_size: int = CLASSIFICATION_BATCH_SIZE
) -> Iterator[dict[str, Any]]:
    """Classify every image of a split that has a known label.

    Args:
        pipeline: the classifier.
        split: the split; images that cannot be read are left out, and named in its `problems`.
        batch_size: images per forward pass.

    Yields:
        For each batch `references` and `predictions` (labels and probabilities, shape `(num, num_labels)`) and
        `patient_ids`, as the metric `Classification` takes them.

    Raises:
        ValueError: if the model's answers are not finite.
    """
    # Double precision from the logits on: rounding sure answers to 1 would tie them and lower the AUROC.
    to_probabilities = expit if split.info.is_multi_label else lambda logits: softmax(logits, axis=1)
    labelled = split.labelled_rows()
    pipeline.set_progress_bar_config(disable=True)
    for start in tqdm(range(0, len(labelled), batch_size), desc=f"Classifying {split.name}", unit="batch"):
        rows, images = split.read(labelled[start : start + batch_size], pipeline)
        if not len(rows):
            continue
        logits = pipeline(images, batch_size=batch_size).logits.astype(np.float64)
        if not np.isfinite(logits).all():
            raise ValueError("The model's answers are not finite: its weights are damaged, or `dtype` is too narrow.")
        yield {
            "references": split.labels[rows],
            "predictions": to_probabilities(logits),
            "patient_ids": [split.patient_ids[row] for row in rows.tolist()],
        }


def study_classification(
    pipeline_folder: str | Path,
    dataset_folder: str | Path,
    split: str = "test",
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
    batch_size: int = CLASSIFICATION_BATCH_SIZE,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> dict[str, Any]:
    """Evaluate a pipeline folder on one split of a prepared dataset.

    Args:
        pipeline_folder: folder of a pipeline.
        dataset_folder: a prepared dataset; its validation split, if there is one, gives the thresholds.
        split: split to evaluate.
        num_resamples: draws of patients for the 95 % interval.
        seed: of these draws.
        batch_size: images per forward pass.
        device: where the model runs.
        dtype: precision of its weights.

    Returns:
        Figures and provenance, ready for JSON.

    Raises:
        ValueError: if model and dataset do not fit, or there is nothing to evaluate on.
        OSError: if a file cannot be read.
    """
    pipeline = MediffusionClassifyPipeline.from_pretrained(pipeline_folder, dtype=dtype).to(device)
    evaluated = HeldOutSplit(dataset_folder, split, pipeline.label_names)
    provenance = describe_provenance(pipeline_folder, evaluated.info, split)
    notes = []
    validation = None
    if split != "validation" and parquet_files(dataset_folder, "validation"):
        try:
            validation_split = HeldOutSplit(dataset_folder, "validation", pipeline.label_names)
        except ValueError as error:
            notes.append(f"No thresholds: {error}")
        else:
            parts = list(predict_split(pipeline, validation_split, batch_size))
            notes += validation_split.notes()
            if parts:
                validation = tuple(
                    np.concatenate([part[name] for part in parts]) for name in ("references", "predictions")
                )
    metric = Classification(keep_in_memory=True)
    batches = list(predict_split(pipeline, evaluated, batch_size))
    for batch in batches:
        metric.add_batch(**batch)
    notes = evaluated.notes() + notes
    if not len(metric):
        raise ValueError(f"No image of `split` {split!r} can be evaluated. {' '.join(notes)}")
    figures = metric.compute(
        label_names=pipeline.label_names,
        validation=validation,
        single_label=not evaluated.info.is_multi_label,
        num_resamples=num_resamples,
        bootstrap_seed=seed,
        show_progress=True,
    )
    figures |= _calibration(batches, pipeline, single_label=not evaluated.info.is_multi_label)
    if evaluated.problems:
        provenance["image_ids"] = {"unreadable": evaluated.unreadable()}
    return {"provenance": provenance, **figures, "notes": figures["notes"] + notes}


def _calibration(
    batches: list[dict[str, Any]], pipeline: MediffusionClassifyPipeline, single_label: bool
) -> dict[str, Any]:
    """Reliability and decision curves of every label; the same after calibration, if the checkpoint stores one."""
    labels, probabilities = (
        np.concatenate([batch[key] for batch in batches]) for key in ("references", "predictions")
    )
    names, stored = pipeline.label_names, pipeline.unet.config.label_calibration
    found: dict[str, Any] = {"curves": curves_of(labels, probabilities, names)}
    if stored is not None:
        scores = calibrate_probabilities(probabilities, stored, single_label)
        found["calibrated"] = {
            "per_label": {name: calibration_figures(labels[:, k], scores[:, k]) for k, name in enumerate(names)},
            "curves": curves_of(labels, scores, names),
        }
    return nan_to_none(found)
