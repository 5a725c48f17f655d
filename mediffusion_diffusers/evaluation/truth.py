"""How close counterfactuals come to the truth, where it is known: phantoms can be drawn anew without a finding.

An invisible attack flips a classifier, and may convince an outside one, without going anywhere near the image that the
patient would have without the finding. Distance tells them apart: the true counterfactual has error 0 and cosine 1,
the unedited image error 1, and whatever ends farther from the truth than it began more than 1.

x is an original, x' its counterfactual, t the true one.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import torch

from ..regions import region_of_change
from .bootstrap import bootstrap, bootstrap_mean, bootstrap_quotient


REGION_SHARE = 0.9  # of a change's energy that its region holds, for the overlap of regions
_SMALLEST = 1e-12


def squared_distance(images: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Squared 2-norm of each difference, shape `(num,)`."""
    return ((images.astype(np.float64) - references) ** 2).reshape(len(images), -1).sum(1)


def error_to_truth(
    images: np.ndarray, originals: np.ndarray, truth: np.ndarray, weights: np.ndarray | None = None
) -> float:
    """Distance to the truth as a share of the original's own: |x' - t| / |x - t|, pooled over images.

    The root of the mean squared error over that of not editing at all. Pooling lets large findings count for what they
    are, and keeps one finding that hardly shows from deciding the mean.

    Args:
        images: x', shape `(num, channels, height, width)` in [0, 1].
        originals: x, same shape.
        truth: t, same shape.
        weights: how often each image counts, shape `(num,)`; None counts each once.

    Returns:
        At least 0; 0 is the truth, 1 no closer than the original; NaN if nothing is to be changed.
    """
    return _pooled(squared_distance(images, truth), squared_distance(originals, truth), weights)


def cosines_to_truth(images: np.ndarray, originals: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Cosine between the change made, x' - x, and the one that should have been, t - x, per image.

    Whatever its size: 1 is the right change, 0 an unrelated or no one, below 0 one the wrong way.

    Args: as `error_to_truth`.

    Returns:
        Shape `(num,)`, in [-1, 1].
    """
    change = (images.astype(np.float64) - originals).reshape(len(truth), -1)
    wanted = (truth.astype(np.float64) - originals).reshape(len(truth), -1)
    norms = np.linalg.norm(change, axis=1) * np.linalg.norm(wanted, axis=1)
    return (change * wanted).sum(1) / np.maximum(norms, _SMALLEST)


def region_overlaps(images: np.ndarray, originals: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Intersection over union of where the image changed and where it should have, per image.

    Where: the smallest region with `REGION_SHARE` of the change's energy, as `region_of_change`.

    Args: as `error_to_truth`.

    Returns:
        Shape `(num,)`, in [0, 1]; 0 for no change.
    """
    made, wanted = (
        region_of_change(torch.from_numpy(others - originals), REGION_SHARE).flatten(1).bool().numpy()
        for others in (images, truth)
    )
    return (made & wanted).sum(1) / np.maximum((made | wanted).sum(1), 1)


def nearest_errors(images: np.ndarray, originals: np.ndarray, ways: Sequence[np.ndarray]) -> np.ndarray:
    """Error to the nearest of many true counterfactuals: the smallest |x' - w| / |x - w| over the ways w, per image.

    Adding a finding has many true answers: another side, place or size. The drawn truth itself, had it been drawn
    anew, would be far from the first draw; so an addition is judged by the nearest.

    Args:
        images: x', shape `(num, channels, height, width)`.
        originals: x, same shape.
        ways: for each image its true counterfactuals, shape `(num_ways, channels, height, width)`.

    Returns:
        Shape `(num,)`; 0 on a true way, 1 for the original.
    """
    errors = np.empty(len(images))
    for row, (image, original, true) in enumerate(zip(images, originals, ways, strict=True)):
        own = np.maximum(squared_distance(true, original[None]), _SMALLEST)
        errors[row] = np.sqrt((squared_distance(true, image[None]) / own).min())
    return errors


def summarize_truth(
    images: np.ndarray,
    originals: np.ndarray,
    truth: np.ndarray,
    patient_ids: Sequence[Hashable],
    ways: Sequence[np.ndarray] | None = None,
) -> dict[str, Any]:
    """All figures of the distance to the truth.

    Args:
        images: x', shape `(num, channels, height, width)` in [0, 1].
        originals: x, same shape.
        truth: t, same shape.
        patient_ids: patient of each image.
        ways: true ways to do the same, for each image; None where there is one only.

    Returns:
        `error` and `cosine` with `error_interval_95` and `cosine_interval_95` over patients; `region_iou`;
        `share_closer`, of images that end closer to the truth than they began; and, with `ways`, `nearest_error`,
        `nearest_error_interval_95` and `num_ways`. NaN where a figure does not exist.
    """
    ours, own = squared_distance(images, truth), squared_distance(originals, truth)
    squared_error = bootstrap_quotient(ours, own, patient_ids)
    cosine = bootstrap_mean(cosines_to_truth(images, originals, truth), patient_ids)
    result: dict[str, Any] = {
        "error": float(np.sqrt(squared_error.estimate)),
        "error_interval_95": np.sqrt([squared_error.low, squared_error.high]).tolist(),
        "cosine": cosine.estimate,
        "cosine_interval_95": [cosine.low, cosine.high],
        "region_iou": float(region_overlaps(images, originals, truth).mean()),
        "share_closer": float((ours < own).mean()),
    }
    if ways is not None:
        nearest = bootstrap_mean(nearest_errors(images, originals, ways), patient_ids)
        result["nearest_error"] = nearest.estimate
        result["nearest_error_interval_95"] = [nearest.low, nearest.high]
        result["num_ways"] = min(map(len, ways))
    return result


def error_difference(
    images: np.ndarray,
    others: np.ndarray,
    originals: np.ndarray,
    truth: np.ndarray,
    patient_ids: Sequence[Hashable],
) -> dict[str, Any]:
    """Error of one method minus that of another on the same images, and the same of the cosine.

    Args:
        images: of the one, shape `(num, channels, height, width)`.
        others: of the other, same shape.
        originals: x, same shape.
        truth: t, same shape.
        patient_ids: patient of each image, resampled for both alike.

    Returns:
        `error` and `cosine`, with `error_interval_95` and `cosine_interval_95`.
    """
    ours, theirs, own = (squared_distance(one, truth) for one in (images, others, originals))
    error = bootstrap(lambda weights: _pooled(ours, own, weights) - _pooled(theirs, own, weights), patient_ids)
    cosines = [cosines_to_truth(one, originals, truth) for one in (images, others)]
    cosine = bootstrap_mean(cosines[0] - cosines[1], patient_ids)
    return {
        "error": error.estimate,
        "error_interval_95": [error.low, error.high],
        "cosine": cosine.estimate,
        "cosine_interval_95": [cosine.low, cosine.high],
    }


def _pooled(squared: np.ndarray, own: np.ndarray, weights: np.ndarray | None) -> float:
    """Root of the ratio of two sums of squared distances."""
    weights = np.ones(len(own)) if weights is None else weights
    total = float((weights * own).sum())
    return float(np.sqrt((weights * squared).sum() / total)) if total > _SMALLEST else float("nan")
