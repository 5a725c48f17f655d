"""Confidence intervals by resampling patients: the one kind of interval that this project states.

Images of one patient are not independent. So patients are drawn with replacement, as many as there are, each with all
its images (the cluster bootstrap), and the figure is computed anew with every image counted as often as its patient
was drawn. Two methods on the same images are compared on the same draws.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from ..options import Range, check_number
from .classification import auroc, check_scores, nan_to_none
from .defaults import NUM_RESAMPLES


_PROGRESS_FROM = 20_000_000  # images x resamples x labels: below, it takes less than two seconds
_MIN_PATIENTS = 2  # one patient tells nothing of how patients differ


@dataclass(frozen=True)
class Interval:
    """An estimate with a percentile interval.

    Args:
        estimate: on all images.
        low: lower end; NaN where there is no interval, because the figure does not exist or belongs to one patient.
        high: upper end; likewise.
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


def bootstrap(
    statistic: Callable[[np.ndarray], float],
    patient_ids: Sequence[Hashable],
    num_resamples: int = NUM_RESAMPLES,
    confidence: float = 0.95,
    seed: int = 0,
    show_progress: bool = False,
) -> Interval:
    """Interval of any figure of a set of images.

    Args:
        statistic: the figure, given how often each image counts, shape `(num_images,)`; NaN where it does not exist:
            such resamples are left out.
        patient_ids: patient of each image.
        num_resamples: resamples, at least 2.
        confidence: coverage in (0, 1).
        seed: seed of the resampling.
        show_progress: show a progress bar.

    Raises:
        ValueError: if a number is out of range.
    """
    _check_numbers(num_resamples, confidence, seed)
    patients = patient_numbers(patient_ids)
    num_patients = int(patients.max(initial=-1)) + 1
    estimate = statistic(np.ones(len(patients)))
    values: list[float] = []
    if num_patients >= _MIN_PATIENTS and not np.isnan(estimate):
        draws = _draw_patients(num_patients, num_resamples, seed)
        for drawn in tqdm(draws, desc="Bootstrap", disable=not show_progress):
            values.append(statistic(drawn[patients].astype(np.float64)))
    return _interval(estimate, np.array(values), confidence, num_resamples, num_patients)


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

    In a resample without a positive or a negative of a class, that class is left out of the mean.

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
    _check_one_patient_per_image(patient_ids, len(checked))

    def statistic(weights: np.ndarray) -> float:
        macro = [_mean([auroc(checked[:, k], method[:, k], weights) for k in range(num_labels)]) for method in methods]
        return macro[0] - macro[1] if len(macro) == 2 else macro[0]

    is_long = num_resamples * checked.size * len(methods) > _PROGRESS_FROM
    return bootstrap(statistic, patient_ids, num_resamples, confidence, seed, show_progress and is_long)


def bootstrap_mean(
    values: np.ndarray,
    patient_ids: Sequence[Hashable],
    num_resamples: int = NUM_RESAMPLES,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Interval of the mean of one value per image (for example a score change); images with NaN are left out.

    Args:
        values: shape `(num_images,)`.
        patient_ids: patient of each image.
        num_resamples: as for `bootstrap`, and so are the others.
    """
    values, patients = _known_values(values, patient_ids)
    return bootstrap_quotient(values, np.ones(len(values)), patients, num_resamples, confidence, seed)


def bootstrap_quotient(
    numerators: np.ndarray,
    denominators: np.ndarray,
    patient_ids: Sequence[Hashable],
    num_resamples: int = NUM_RESAMPLES,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Interval of a quotient of two sums over images, all resamples at once.

    Args:
        numerators: shape `(num_images,)`.
        denominators: same shape; where they sum to 0 there is no figure.
        patient_ids: as for `bootstrap`, and so are the others.
    """
    _check_numbers(num_resamples, confidence, seed)
    _check_one_patient_per_image(patient_ids, len(numerators))
    patients = patient_numbers(patient_ids)
    num_patients = int(patients.max(initial=-1)) + 1
    above, below = (np.bincount(patients, one, minlength=num_patients) for one in (numerators, denominators))

    def quotient(counts: np.ndarray) -> np.ndarray:
        sums = counts @ below
        return np.where(sums > 0, counts @ above / np.where(sums > 0, sums, 1), np.nan)

    estimate = float(quotient(np.ones((1, num_patients)))[0])
    values = np.empty(0)
    if num_patients >= _MIN_PATIENTS and not np.isnan(estimate):
        values = quotient(_draw_patients(num_patients, num_resamples, seed))
    return _interval(estimate, values, confidence, num_resamples, num_patients)


def bootstrap_median(
    values: np.ndarray,
    patient_ids: Sequence[Hashable],
    num_resamples: int = NUM_RESAMPLES,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Interval of the median of one value per image (for example a ratio); as `bootstrap_mean`."""
    values, patients = _known_values(values, patient_ids)

    def median(weights: np.ndarray) -> float:
        repeated = np.repeat(values, weights.astype(np.int64))
        return float(np.median(repeated)) if len(repeated) else float("nan")

    return bootstrap(median, patients, num_resamples, confidence, seed)


def patient_numbers(patient_ids: Sequence[Hashable]) -> np.ndarray:
    """Patients numbered from 0, one number per image."""
    return np.unique(np.asarray(patient_ids, dtype=str), return_inverse=True)[1].reshape(-1)


@lru_cache(maxsize=4)
def _draw_patients(num_patients: int, num_resamples: int, seed: int) -> np.ndarray:
    """How often each patient is drawn in each resample, shape `(num_resamples, num_patients)`."""
    generator = np.random.default_rng(seed)
    draws = np.empty((num_resamples, num_patients), dtype=np.int32)
    for counts in draws:
        counts[:] = np.bincount(generator.integers(num_patients, size=num_patients), minlength=num_patients)
    draws.flags.writeable = False
    return draws


def _interval(
    estimate: float, values: np.ndarray, confidence: float, num_resamples: int, num_patients: int
) -> Interval:
    """The percentile interval of the resamples in which the figure exists."""
    known = values[~np.isnan(values)]
    tail = (1 - confidence) / 2
    low, high = np.quantile(known, [tail, 1 - tail]) if len(known) else (np.nan, np.nan)
    return Interval(float(estimate), float(low), float(high), confidence, num_resamples, num_patients)


def _known_values(values: np.ndarray, patient_ids: Sequence[Hashable]) -> tuple[np.ndarray, list[int]]:
    values = np.asarray(values, dtype=np.float64)
    _check_one_patient_per_image(patient_ids, len(values))
    is_known = ~np.isnan(values)
    return values[is_known], patient_numbers(patient_ids)[is_known].tolist()


def _check_numbers(num_resamples: int, confidence: float, seed: int) -> None:
    check_number("num_resamples", num_resamples, Range(at_least=2), whole=True)
    check_number("confidence", confidence, Range(above=0, below=1))
    check_number("seed", seed, Range(at_least=0), whole=True)


def _check_one_patient_per_image(patient_ids: Sequence[Hashable], num_images: int) -> None:
    if len(patient_ids) != num_images:
        raise ValueError(f"`patient_ids` must have one entry per image, {num_images}, but got {len(patient_ids)}.")


def _mean(values: list[float]) -> float:
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")
