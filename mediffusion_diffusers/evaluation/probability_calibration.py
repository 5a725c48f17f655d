"""Probabilities that mean what they say: Platt and temperature scaling, reliability, decision curves.

Everything is fitted on validation images. What calibration does to *those* images is measured by cross-validation over
patients, so that no image judges a line that was fitted to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_softmax, logit, softmax

from ..choices import CalibrationMethod
from .classification import brier_score, calibration_line, expected_calibration_error


NUM_FOLDS = 5
NUM_RELIABILITY_BINS = 10
# Threshold probabilities of a decision curve.
DECISION_THRESHOLDS = tuple(round(step / 20, 2) for step in range(1, 20))
_LARGEST_SLOPE = 20.0
_CLIP = 1e-12  # keeps logits finite

Calibration = dict[str, list[float]]


def fit_calibration(
    labels: np.ndarray, logits: np.ndarray, method: CalibrationMethod, single_label: bool = False
) -> Calibration:
    """Fit slopes and intercepts of logits.

    Args:
        labels: 1, 0 or NaN (unknown), shape `(num, num_labels)`.
        logits: of the model, same shape.
        method: `"platt"`, a line for each label by logistic regression; or `"temperature"`, one slope for all.
        single_label: whether there is one class per image.

    Returns:
        `slope` and `intercept`, one per label. A label whose line does not exist, or would turn its ranks round, keeps
        slope 1 and intercept 0.

    Raises:
        ValueError: for lines per label of a model of one class per image.
    """
    num_labels = labels.shape[1]
    if method == "temperature":
        slope = _inverse_temperature(labels, logits, single_label)
        return {"slope": [slope] * num_labels, "intercept": [0.0] * num_labels}
    if single_label:
        raise ValueError("`method` 'platt' is for independent findings; of one class per image take 'temperature'.")
    lines = [calibration_line(labels[:, k], expit(logits[:, k])) for k in range(num_labels)]
    kept = [line if np.isfinite(line).all() and 0 < line[0] <= _LARGEST_SLOPE else (1.0, 0.0) for line in lines]
    return {"slope": [float(slope) for slope, _ in kept], "intercept": [float(intercept) for _, intercept in kept]}


def calibrate_probabilities(
    probabilities: np.ndarray, calibration: Mapping[str, Sequence[float]], single_label: bool = False
) -> np.ndarray:
    """Calibrated probabilities.

    Args:
        probabilities: of the model, in [0, 1], shape `(num, num_labels)`.
        calibration: `slope` and `intercept`.
        single_label: whether they are of one class per image.
    """
    slope, intercept = np.asarray(calibration["slope"]), np.asarray(calibration["intercept"])
    if single_label:
        return softmax(slope * np.log(probabilities.clip(_CLIP, 1)) + intercept, axis=1)
    return expit(slope * logit(probabilities.clip(_CLIP, 1 - _CLIP)) + intercept)


def cross_validated(
    labels: np.ndarray, logits: np.ndarray, patients: np.ndarray, method: CalibrationMethod, single_label: bool = False
) -> np.ndarray:
    """Calibrated probabilities of every image, by the calibration fitted on the patients of the other folds.

    Args:
        labels: as `fit_calibration`.
        logits: likewise.
        patients: number of each image's patient, shape `(num,)`.
        method: likewise.
        single_label: likewise.
    """
    folds = np.random.default_rng(0).permutation(int(patients.max()) + 1) % NUM_FOLDS
    probabilities = softmax(logits, axis=1) if single_label else expit(logits)
    for fold in range(NUM_FOLDS):
        held_out = folds[patients] == fold
        if held_out.any() and not held_out.all():
            found = fit_calibration(labels[~held_out], logits[~held_out], method, single_label)
            probabilities[held_out] = calibrate_probabilities(probabilities[held_out], found, single_label)
    return probabilities


def calibration_figures(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """`brier`, `ece`, `slope` and `intercept` of one label; a calibrated model has slope 1 and intercept 0."""
    slope, intercept = calibration_line(labels, probabilities)
    return {
        "brier": brier_score(labels, probabilities),
        "ece": expected_calibration_error(labels, probabilities),
        "slope": slope,
        "intercept": intercept,
    }


def reliability(
    labels: np.ndarray, probabilities: np.ndarray, num_bins: int = NUM_RELIABILITY_BINS
) -> dict[str, list[float]]:
    """What was predicted against what was, in bins of equal width; empty bins are left out.

    Args:
        labels: 1, 0 or NaN (masked), shape `(num,)`.
        probabilities: in [0, 1], shape `(num,)`.
        num_bins: from 0 to 1.

    Returns:
        `predicted` (mean probability), `observed` (share of positives) and `num_images` of each bin.
    """
    known = ~np.isnan(labels)
    labels, probabilities = labels[known], probabilities[known]
    bins = np.minimum((probabilities * num_bins).astype(int), num_bins - 1)
    filled = np.unique(bins)
    return {
        "predicted": [float(probabilities[bins == one].mean()) for one in filled],
        "observed": [float(labels[bins == one].mean()) for one in filled],
        "num_images": [int((bins == one).sum()) for one in filled],
    }


def net_benefit(
    labels: np.ndarray, probabilities: np.ndarray, thresholds: Sequence[float] = DECISION_THRESHOLDS
) -> dict[str, list[float]]:
    """Decision curve: TP/n - FP/n * p/(1 - p) at each threshold probability p, in true positives per image.

    Vickers and Elkin, "Decision curve analysis" (2006). p says how many false alarms a finding is worth: 0.2, four.

    Args:
        labels: 1, 0 or NaN (masked), shape `(num,)`.
        probabilities: in [0, 1], shape `(num,)`.
        thresholds: in (0, 1).

    Returns:
        `model`, and `treat_all`, which calls every image positive; calling none has 0 everywhere.
    """
    known = ~np.isnan(labels)
    is_positive, probabilities = labels[known] == 1, probabilities[known]
    curves: dict[str, list[float]] = {"model": [], "treat_all": []}
    for threshold in thresholds:
        price = threshold / (1 - threshold)
        for name, called in (("model", probabilities >= threshold), ("treat_all", np.ones(len(probabilities), bool))):
            benefit = (called & is_positive).mean() - price * (called & ~is_positive).mean() if len(called) else np.nan
            curves[name].append(float(benefit))
    return curves


def curves_of(labels: np.ndarray, probabilities: np.ndarray, label_names: Sequence[str]) -> dict[str, Any]:
    """`reliability` and `net_benefit` of every label, by its name."""
    return {
        name: {
            "reliability": reliability(labels[:, k], probabilities[:, k]),
            "net_benefit": {"threshold": list(DECISION_THRESHOLDS)} | net_benefit(labels[:, k], probabilities[:, k]),
        }
        for k, name in enumerate(label_names)
    }


def _inverse_temperature(labels: np.ndarray, logits: np.ndarray, single_label: bool) -> float:
    """1/T with the largest likelihood; 1 without a known label of each kind."""
    known = ~np.isnan(labels)
    if not (labels[known] == 1).any() or not (labels[known] == 0).any():
        return 1.0

    def loss(log_slope: float) -> float:
        scaled = np.exp(log_slope) * logits
        if single_label:
            return float(-log_softmax(scaled, axis=1)[labels == 1].mean())
        return float((np.logaddexp(0, scaled) - np.where(known, labels, 0) * scaled)[known].mean())

    bound = float(np.log(_LARGEST_SLOPE))
    return float(np.exp(minimize_scalar(loss, bounds=(-bound, bound), method="bounded").x))
