"""Calibration of class probabilities, stored with a checkpoint: a slope and an intercept for the logit of each label.

Platt scaling has one of each per label (Platt 1999); temperature scaling is one slope 1/T for all, without intercepts
(Guo et al. 2017). Slopes are positive, so that no image changes its rank. Off unless a call asks for it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import torch


def check_label_calibration(calibration: Any, num_labels: int, problem_type: str) -> None:
    """Refuse what is no calibration of so many labels.

    Args:
        calibration: `{"slope": [...], "intercept": [...]}`, or None.
        num_labels: of the model.
        problem_type: with one class per image, only one slope for all and no intercept keep probabilities meaningful.

    Raises:
        ValueError: naming what is wrong.
    """
    if calibration is None:
        return
    given: Mapping[str, Any] = calibration if isinstance(calibration, Mapping) else {}
    slope: Any = given.get("slope")
    intercept: Any = given.get("intercept")
    if not (_are_numbers(slope, num_labels) and _are_numbers(intercept, num_labels) and min(slope) > 0):
        raise ValueError(
            f"`label_calibration` must hold `slope` (above 0) and `intercept`, {num_labels} numbers each, one per "
            f"label, but got {str(calibration)[:60]}."
        )
    if problem_type == "single_label_classification" and (len(set(slope)) > 1 or any(intercept)):
        raise ValueError("`label_calibration` of one class per image must have one slope for all and intercepts of 0.")


def calibrate_logits(logits: torch.Tensor, calibration: Mapping[str, Sequence[float]]) -> torch.Tensor:
    """slope * logits + intercept, label by label.

    Args:
        logits: shape `(batch, num_labels)`.
        calibration: of the checkpoint, see `check_label_calibration`.

    Returns:
        Same shape.
    """
    slope, intercept = (logits.new_tensor(list(calibration[name])) for name in ("slope", "intercept"))
    return slope * logits + intercept


def calibrate_thresholds(thresholds: Sequence[float], calibration: Mapping[str, Sequence[float]]) -> list[float]:
    """Thresholds of probabilities as thresholds of calibrated ones: every decision stays as it was.

    Args:
        thresholds: in (0, 1), one per label.
        calibration: of the checkpoint, see `check_label_calibration`.

    Returns:
        As many, in (0, 1).
    """
    logits = torch.logit(torch.tensor([list(thresholds)], dtype=torch.float64))
    return calibrate_logits(logits, calibration).sigmoid()[0].tolist()


def _are_numbers(values: Any, num: int) -> bool:
    return (
        isinstance(values, (list, tuple))
        and len(values) == num
        and all(isinstance(value, Real) and math.isfinite(value) for value in values)
    )
