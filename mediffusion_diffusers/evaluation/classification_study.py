"""Evaluate a pipeline's classifier on a held-out split, with intervals and thresholds from validation."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit, softmax
from tqdm.auto import tqdm

from ..data.schema import label_matrix, load_info, load_prepared, parquet_files
from ..pipelines import MediffusionClassifyPipeline
from .bootstrap import NUM_RESAMPLES, bootstrap_macro_auroc
from .classification import evaluate_classification, nan_to_none
from .provenance import describe_provenance


def predict_split(
    pipeline: MediffusionClassifyPipeline, folder: str | Path, split: str, batch_size: int = 64
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Classify every image of a split that has a known label.

    Args:
        pipeline: the classifier.
        folder: a prepared dataset.
        split: one of its splits.
        batch_size: images per forward pass.

    Returns:
        Labels and probabilities of shape `(num_images, num_labels)`, and each image's patient.

    Raises:
        ValueError: if the split holds no labelled image or the labels are not the pipeline's.
    """
    info = load_info(folder)
    if list(info.label_names) != pipeline.label_names:
        raise ValueError(
            f"The dataset's labels {list(info.label_names)} are not the model's {pipeline.label_names}. Evaluate on "
            "data with the labels that the model was trained on."
        )
    dataset = load_prepared(folder, split)
    labels = label_matrix(dataset, info)
    rows = np.flatnonzero(~np.isnan(labels).all(axis=1))
    if not len(rows):
        raise ValueError(f"Split {split!r} of {str(folder)!r} has no labelled image to evaluate on.")
    # Double precision from the logits on: rounding sure answers to 1 would tie them and lower the AUROC.
    to_probabilities = partial(softmax, axis=1) if not info.is_multi_label else expit
    probabilities = []
    pipeline.set_progress_bar_config(disable=True)
    for start in tqdm(range(0, len(rows), batch_size), desc=f"Classifying {split}", unit="batch"):
        images = dataset[rows[start : start + batch_size].tolist()]["image"]
        logits = pipeline(images, batch_size=batch_size).logits
        probabilities.append(to_probabilities(logits.astype(np.float64)))
    patients = [dataset["patient_id"][row] for row in rows.tolist()]
    return labels[rows], np.concatenate(probabilities), patients


def study_classification(
    pipeline_folder: str | Path,
    dataset_folder: str | Path,
    split: str = "test",
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """Evaluate a pipeline folder on one split of a prepared dataset.

    Args:
        pipeline_folder: folder of a pipeline.
        dataset_folder: a prepared dataset; its validation split, if there is one, gives the thresholds.
        split: split to evaluate.
        num_resamples: draws of patients for the 95 % interval.
        seed: of these draws.

    Returns:
        Figures and provenance, ready for JSON.
    """
    pipeline = MediffusionClassifyPipeline.from_pretrained(pipeline_folder)
    labels, probabilities, patients = predict_split(pipeline, dataset_folder, split)
    validation: Sequence[np.ndarray | None] = (None, None)
    if split != "validation" and parquet_files(dataset_folder, "validation"):
        validation = predict_split(pipeline, dataset_folder, "validation")[:2]
    report = evaluate_classification(labels, probabilities, pipeline.label_names, *validation)
    interval = bootstrap_macro_auroc(
        labels, probabilities, patients, num_resamples=num_resamples, seed=seed, show_progress=True
    )
    result: dict[str, Any] = {
        "provenance": describe_provenance(pipeline_folder, load_info(dataset_folder), split),
        **report.to_dict(),
        "macro_auroc_interval": interval.to_dict(),
    }
    if pipeline.unet.config.problem_type == "single_label_classification":
        result["accuracy"] = float((probabilities.argmax(axis=1) == labels.argmax(axis=1)).mean())
    return nan_to_none(result)
