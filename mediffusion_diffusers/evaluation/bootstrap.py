"""Confidence intervals by resampling patients, paired between two methods on the same images."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from .classification import auroc, check_scores, nan_to_none


NUM_RESAMPLES = 1000
_PROGRESS_FROM = 20_000_000  # images x resamples x labels: below, it takes less than two seconds


@dataclass(frozen=True)
class Interval:
    """An estimate with a percentile interval.

    Args:
        estimate: on all images.
        low: lower end.
        high: upper end.
        confidence: e.g. 0.95.
        num_resamples: resamples drawn.
        num_patients: patients that were resampled.
    """

    estimate: float
    low: float
    high: float
    confidence: float
    num_resamples: int
    num_patients: int

    def to_dict(self) -> dict[str, Any]:
        """As plain types for JSON, with None for NaN."""
        return nan_to_none(asdict(self))


def bootstrap_macro_auroc(
    labels: np.ndarray,
    scores: np.ndarray,
    patient_ids: Sequence[Hashable],
    other_scores: np.ndarray | None = None,
    num_resamples: int = NUM_RESAMPLES,
    confidence: float = 0.95,
    seed: int = 0,
    show_progress: bool = False,
) -> Interval:
    """Interval of the macro AUROC, or of its difference to another method on the same images.

    Patients are drawn with replacement, with all their images (images of one patient are not independent). In a
    resample without a positive or a negative of a class, that class is left out of the mean.

    Args:
        labels: 1, 0 or NaN (unknown), shape `(num, num_labels)`.
        scores: scores of the method, same shape.
        patient_ids: patient of each image.
        other_scores: scores of another method: then the interval is that of `scores` minus `other_scores`.
        num_resamples: resamples, at least 2.
        confidence: coverage in (0, 1).
        seed: seed of the resampling.
        show_progress: show a progress bar where it takes long.

    Raises:
        ValueError: if shapes or ranges are wrong.
    """
    num_labels = np.asarray(labels).shape[-1]
    checked, scores = check_scores(labels, scores, num_labels)
    methods = [scores] if other_scores is None else [scores, check_scores(labels, other_scores, num_labels)[1]]
    if len(patient_ids) != len(checked):
        raise ValueError(f"`patient_ids` must have one entry per image, {len(checked)}, but got {len(patient_ids)}.")
    if num_resamples < 2 or not 0 < confidence < 1:
        raise ValueError(
            f"`num_resamples` must be at least 2 and `confidence` in (0, 1), but got {num_resamples} and {confidence}."
        )
    _, patients = np.unique(np.asarray(patient_ids, dtype=str), return_inverse=True)
    num_patients = int(patients.max()) + 1

    def statistic(weights: np.ndarray | None) -> float:
        macro = [_mean([auroc(checked[:, k], method[:, k], weights) for k in range(num_labels)]) for method in methods]
        return macro[0] - macro[1] if len(macro) == 2 else macro[0]

    generator = np.random.default_rng(seed)
    is_long = num_resamples * checked.size * len(methods) > _PROGRESS_FROM
    values = []
    for _ in tqdm(range(num_resamples), desc="Bootstrap", disable=not (show_progress and is_long)):
        drawn = np.bincount(generator.integers(num_patients, size=num_patients), minlength=num_patients)
        values.append(statistic(drawn[patients].astype(np.float64)))
    tail = (1 - confidence) / 2
    low, high = np.nanquantile(values, [tail, 1 - tail])
    return Interval(statistic(None), float(low), float(high), confidence, num_resamples, num_patients)


def bootstrap_mean(
    values: np.ndarray, num_resamples: int = NUM_RESAMPLES, confidence: float = 0.95, seed: int = 0
) -> Interval:
    """Interval of the mean of one value per patient (for example a score change), NaN left out."""
    values = np.asarray(values, dtype=np.float64)
    values = values[~np.isnan(values)]
    if len(values) == 0:
        return Interval(float("nan"), float("nan"), float("nan"), confidence, num_resamples, 0)
    drawn = np.random.default_rng(seed).integers(len(values), size=(num_resamples, len(values)))
    tail = (1 - confidence) / 2
    low, high = np.quantile(values[drawn].mean(1), [tail, 1 - tail])
    return Interval(float(values.mean()), float(low), float(high), confidence, num_resamples, len(values))


def _mean(values: list[float]) -> float:
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")
