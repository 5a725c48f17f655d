"""How well scores tell findings apart: AUROC and its companions, with unknown labels masked and nothing averaged over.

Definitions in plain numpy. A label is 1, 0 or NaN (unknown); a class without a positive or without a negative has no
AUROC and is left out of the mean *by name*, never scored 0 or 0.5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np


SPECIFICITIES = SENSITIVITIES = (0.90, 0.95)
NUM_CALIBRATION_BINS = 15  # Guo et al. 2017, "On Calibration of Modern Neural Networks"
_EPSILON = 1e-7  # keeps logits of probabilities finite


def auroc(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Area under the ROC curve: the chance that a positive scores above a negative, ties counting one half.

    Args:
        labels: 1, 0 or NaN (masked), shape `(num,)`.
        scores: any finite scores, shape `(num,)`.
        weights: how often each image counts, shape `(num,)`; None counts each once.

    Returns:
        In [0, 1]; NaN without a positive or a negative.
    """
    labels, scores, weights = _known(labels, scores, weights)
    positives, negatives = _positives_and_negatives_by_score(labels, scores, weights)
    total = positives.sum() * negatives.sum()
    if total == 0:
        return float("nan")
    below = np.cumsum(negatives) - negatives
    return float((positives * (below + 0.5 * negatives)).sum() / total)


def average_precision(labels: np.ndarray, scores: np.ndarray) -> float:
    """Area under the precision-recall curve as a sum of steps (AUPRC); a random score earns the prevalence.

    Args and Returns: as `auroc`.
    """
    labels, scores, weights = _known(labels, scores, None)
    positives, negatives = _positives_and_negatives_by_score(labels, scores, weights)
    if positives.sum() == 0 or negatives.sum() == 0:
        return float("nan")
    found, false_alarms = np.cumsum(positives[::-1]), np.cumsum(negatives[::-1])
    precision = found / (found + false_alarms)
    return float((precision * positives[::-1]).sum() / positives.sum())


def threshold_at_specificity(labels: np.ndarray, scores: np.ndarray, min_specificity: float) -> float:
    """The lowest threshold at which at least `min_specificity` of the negatives score below it.

    A score is called positive if it is at least the threshold. NaN without negatives.
    """
    if not 0 < min_specificity < 1:
        raise ValueError(f"`min_specificity` must be in (0, 1), but got {min_specificity}.")
    labels, scores, _ = _known(labels, scores, None)
    negatives = np.sort(scores[labels == 0])
    if len(negatives) == 0:
        return float("nan")
    allowed_alarms = int(np.floor((1 - min_specificity) * len(negatives) + 1e-9))
    return float(np.nextafter(negatives[len(negatives) - allowed_alarms - 1], np.inf))


def threshold_at_sensitivity(labels: np.ndarray, scores: np.ndarray, min_sensitivity: float) -> float:
    """The highest threshold at which at least `min_sensitivity` of the positives score at least as much.

    NaN without positives.
    """
    if not 0 < min_sensitivity < 1:
        raise ValueError(f"`min_sensitivity` must be in (0, 1), but got {min_sensitivity}.")
    labels, scores, _ = _known(labels, scores, None)
    positives = np.sort(scores[labels == 1])
    if len(positives) == 0:
        return float("nan")
    return float(positives[int(np.floor((1 - min_sensitivity) * len(positives) + 1e-9))])


def youden_threshold(labels: np.ndarray, scores: np.ndarray) -> float:
    """The threshold with the largest sensitivity + specificity - 1 (Youden's J), midway to the next lower score.

    NaN without a positive or a negative.
    """
    labels, scores, weights = _known(labels, scores, None)
    positives, negatives = _positives_and_negatives_by_score(labels, scores, weights)
    if positives.sum() == 0 or negatives.sum() == 0:
        return float("nan")
    values = np.unique(scores)
    below_positives = np.cumsum(positives) - positives
    below_negatives = np.cumsum(negatives) - negatives
    youden = (1 - below_positives / positives.sum()) + below_negatives / negatives.sum() - 1
    best = int(np.argmax(youden))
    return float(values[best] if best == 0 else (values[best] + values[best - 1]) / 2)


def sensitivity(labels: np.ndarray, scores: np.ndarray, threshold: float) -> float:
    """Share of the positives that score at least `threshold`; NaN without positives."""
    positives = scores[labels == 1]
    return float((positives >= threshold).mean()) if len(positives) and not np.isnan(threshold) else float("nan")


def specificity(labels: np.ndarray, scores: np.ndarray, threshold: float) -> float:
    """Share of the negatives that score below `threshold`; NaN without negatives."""
    negatives = scores[labels == 0]
    return float((negatives < threshold).mean()) if len(negatives) and not np.isnan(threshold) else float("nan")


def brier_score(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Mean squared distance of probabilities to labels; 0 is perfect. NaN without known labels."""
    labels, probabilities, _ = _known(labels, probabilities, None)
    return float(((probabilities - labels) ** 2).mean()) if len(labels) else float("nan")


def expected_calibration_error(
    labels: np.ndarray, probabilities: np.ndarray, num_bins: int = NUM_CALIBRATION_BINS
) -> float:
    """Mean distance between predicted probability and observed frequency over bins of equal width, weighted by size.

    Read it beside the Brier score and the calibration line: alone it rewards a constant on a rare class.
    """
    labels, probabilities, _ = _known(labels, probabilities, None)
    if len(labels) == 0:
        return float("nan")
    bins = np.minimum((probabilities * num_bins).astype(int), num_bins - 1)
    gaps = np.bincount(bins, weights=probabilities - labels, minlength=num_bins)
    return float(np.abs(gaps).sum() / len(labels))


def calibration_line(labels: np.ndarray, probabilities: np.ndarray, max_iterations: int = 50) -> tuple[float, float]:
    """Slope and intercept of a logistic regression of labels on predicted logits; (1, 0) is calibrated.

    A slope below 1 means overconfidence (Cox 1958; Van Calster et al. 2019).

    Returns:
        `(slope, intercept)`; NaN without a positive or a negative, or where no finite line exists.
    """
    labels, probabilities, _ = _known(labels, probabilities, None)
    if len(labels) == 0 or labels.min() == labels.max():
        return float("nan"), float("nan")
    clipped = probabilities.clip(_EPSILON, 1 - _EPSILON)
    design = np.stack([np.log(clipped / (1 - clipped)), np.ones_like(clipped)], axis=1)
    line = np.array([1.0, 0.0])
    for _ in range(max_iterations):  # Newton's method
        predicted = 1 / (1 + np.exp(-(design @ line).clip(-50, 50)))
        curvature = (design * (predicted * (1 - predicted))[:, None]).T @ design
        if np.linalg.cond(curvature) > 1e12:
            return float("nan"), float("nan")
        step = np.linalg.solve(curvature, design.T @ (labels - predicted))
        line = line + step
        if np.abs(step).max() < 1e-8:
            return float(line[0]), float(line[1])
    return float("nan"), float("nan")


@dataclass(frozen=True)
class LabelReport:
    """The figures of one class; NaN where one does not exist.

    `threshold` is Youden's from validation. `sensitivity_at_specificity` uses thresholds from validation too, whose
    specificity on these images is in `specificity_reached`; likewise the other way round; `thresholds` are those.
    """

    num_positives: int
    num_negatives: int
    prevalence: float
    auroc: float
    auprc: float
    brier: float
    ece: float
    calibration_slope: float
    calibration_intercept: float
    threshold: float
    sensitivity_at_specificity: dict[str, float]
    specificity_reached: dict[str, float]
    specificity_at_sensitivity: dict[str, float]
    sensitivity_reached: dict[str, float]
    thresholds: dict[str, float]


@dataclass(frozen=True)
class ClassificationReport:
    """Figures of a classifier on one split.

    Args:
        macro_auroc: mean AUROC over the classes that have one.
        macro_auprc: mean AUPRC over the same classes.
        left_out: name of every class outside the means, and why.
        per_label: figures by class name.
        num_images: images with at least one known label.
    """

    macro_auroc: float
    macro_auprc: float
    left_out: dict[str, str]
    per_label: dict[str, LabelReport]
    num_images: int
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """As plain types for JSON, with None for NaN."""
        return nan_to_none(asdict(self))


def evaluate_classification(
    labels: np.ndarray,
    probabilities: np.ndarray,
    label_names: Sequence[str],
    validation_labels: np.ndarray | None = None,
    validation_probabilities: np.ndarray | None = None,
) -> ClassificationReport:
    """Evaluate probabilities on one split, with thresholds from another.

    Args:
        labels: 1, 0 or NaN (unknown), shape `(num, num_labels)`.
        probabilities: in [0, 1], same shape.
        label_names: one name per column.
        validation_labels: labels that the thresholds are chosen on; without them, thresholds are NaN.
        validation_probabilities: their probabilities.

    Raises:
        ValueError: if shapes differ, probabilities lie outside [0, 1], or labels are not 1, 0 or NaN.
    """
    labels, probabilities = check_scores(labels, probabilities, len(label_names))
    if (probabilities < 0).any() or (probabilities > 1).any():
        raise ValueError("`probabilities` must lie in [0, 1]. Apply a sigmoid or softmax to logits first.")
    notes = []
    if validation_labels is None or validation_probabilities is None:
        validation_labels = np.full((0, len(label_names)), np.nan)
        validation_probabilities = np.zeros((0, len(label_names)))
        notes.append("No validation split: thresholds, and what depends on them, are not given.")
    else:
        validation_labels, validation_probabilities = check_scores(
            validation_labels, validation_probabilities, len(label_names)
        )
    per_label = {
        name: _label_report(labels[:, k], probabilities[:, k], validation_labels[:, k], validation_probabilities[:, k])
        for k, name in enumerate(label_names)
    }
    left_out = {name: reason for name, report in per_label.items() if (reason := _reason_to_leave_out(report))}
    kept = [report for name, report in per_label.items() if name not in left_out]
    if not kept:
        notes.append("No label has both a positive and a negative image here: there is no AUROC.")
    return ClassificationReport(
        macro_auroc=float(np.mean([report.auroc for report in kept])) if kept else float("nan"),
        macro_auprc=float(np.mean([report.auprc for report in kept])) if kept else float("nan"),
        left_out=left_out,
        per_label=per_label,
        num_images=int((~np.isnan(labels)).any(1).sum()),
        notes=notes,
    )


def per_label_auroc(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """AUROC of every column, NaN where it does not exist; shape `(num_labels,)`."""
    return np.array([auroc(labels[:, k], scores[:, k]) for k in range(labels.shape[1])])


def check_scores(labels: np.ndarray, scores: np.ndarray, num_labels: int) -> tuple[np.ndarray, np.ndarray]:
    """Bring labels and scores to float64 `(num, num_labels)`.

    Raises:
        ValueError: if shapes differ, scores are not finite, or labels are not 1, 0 or NaN.
    """
    labels, scores = np.asarray(labels, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    if labels.ndim != 2 or labels.shape != scores.shape or labels.shape[1] != num_labels:
        raise ValueError(
            f"Labels and scores must both have shape (num, {num_labels}), but got {labels.shape} and {scores.shape}."
        )
    if not np.isfinite(scores).all():
        raise ValueError("Scores must be finite, but some are NaN or infinite.")
    if not (np.isnan(labels) | (labels == 0) | (labels == 1)).all():
        raise ValueError("Labels must be 1, 0 or NaN (unknown).")
    return labels, scores


def nan_to_none(value: Any) -> Any:
    """Replace NaN by None in nested dictionaries and lists: JSON has no NaN."""
    if isinstance(value, dict):
        return {key: nan_to_none(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [nan_to_none(item) for item in value]
    if isinstance(value, (float, np.floating)):
        return None if np.isnan(value) else float(value)
    return value


def _label_report(
    labels: np.ndarray, probabilities: np.ndarray, validation_labels: np.ndarray, validation_probabilities: np.ndarray
) -> LabelReport:
    known_labels, known_probabilities, _ = _known(labels, probabilities, None)
    num_positives, num_negatives = int((known_labels == 1).sum()), int((known_labels == 0).sum())
    validation = (validation_labels, validation_probabilities)
    thresholds = {f"{level:.2f}": threshold_at_specificity(*validation, level) for level in SPECIFICITIES}
    sensitive = {f"{level:.2f}": threshold_at_sensitivity(*validation, level) for level in SENSITIVITIES}
    slope, intercept = calibration_line(labels, probabilities)
    return LabelReport(
        num_positives=num_positives,
        num_negatives=num_negatives,
        prevalence=num_positives / len(known_labels) if len(known_labels) else float("nan"),
        auroc=auroc(labels, probabilities),
        auprc=average_precision(labels, probabilities),
        brier=brier_score(labels, probabilities),
        ece=expected_calibration_error(labels, probabilities),
        calibration_slope=slope,
        calibration_intercept=intercept,
        threshold=youden_threshold(validation_labels, validation_probabilities),
        sensitivity_at_specificity={
            key: sensitivity(known_labels, known_probabilities, threshold) for key, threshold in thresholds.items()
        },
        specificity_reached={
            key: specificity(known_labels, known_probabilities, threshold) for key, threshold in thresholds.items()
        },
        specificity_at_sensitivity={
            key: specificity(known_labels, known_probabilities, threshold) for key, threshold in sensitive.items()
        },
        sensitivity_reached={
            key: sensitivity(known_labels, known_probabilities, threshold) for key, threshold in sensitive.items()
        },
        thresholds={
            **{f"specificity {key}": threshold for key, threshold in thresholds.items()},
            **{f"sensitivity {key}": threshold for key, threshold in sensitive.items()},
        },
    )


def _reason_to_leave_out(report: LabelReport) -> str:
    if report.num_positives and report.num_negatives:
        return ""
    if not report.num_positives and not report.num_negatives:
        return "no known label in this split"
    return "no positive in this split" if not report.num_positives else "no negative in this split"


def _known(
    labels: np.ndarray, scores: np.ndarray, weights: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The one place that masks unknown labels."""
    labels, scores = np.asarray(labels, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    known = ~np.isnan(labels)
    weights = np.ones(len(labels)) if weights is None else np.asarray(weights, dtype=np.float64)
    return labels[known], scores[known], weights[known]


def _positives_and_negatives_by_score(
    labels: np.ndarray, scores: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Weight of the positives and of the negatives at every distinct score, from the lowest score up."""
    _, group = np.unique(scores, return_inverse=True)
    num_groups = int(group.max()) + 1 if len(group) else 0
    positives = np.bincount(group, weights=weights * (labels == 1), minlength=num_groups)
    negatives = np.bincount(group, weights=weights * (labels == 0), minlength=num_groups)
    return positives, negatives
