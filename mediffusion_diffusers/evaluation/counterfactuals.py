"""What counterfactuals change: in scores (Tables 4 to 7), in decisions, and in the images.

x is an original, x' its counterfactual, k the target label. The *null edit* x0 has the same start and steps without
guidance: what differs between x0 and x is due to the autoencoder and the noise, what differs between x' and x0 to the
explanation. A flip of the explained classifier proves nothing by itself, since invisible adversarial changes flip it
too: read the scores of an outside classifier (the *oracle*), beside the controls of `controls`.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .bootstrap import Interval, bootstrap_mean


_EPSILON = 1e-6  # keeps logits of probabilities finite


@dataclass(frozen=True)
class Scores:
    """One classifier's probabilities for the same images at three stages, each of shape `(num, num_labels)`.

    Args:
        before: for the originals.
        after: for the counterfactuals.
        null: for the null edits.
        thresholds: probability from which a label counts as present, shape `(num_labels,)`; None if the most
            probable label is the decision (one class per image).
    """

    before: np.ndarray
    after: np.ndarray
    null: np.ndarray
    thresholds: np.ndarray | None = None

    def select(self, rows: np.ndarray) -> Scores:
        """The scores of some images."""
        return Scores(self.before[rows], self.after[rows], self.null[rows], self.thresholds)


@dataclass(frozen=True)
class Counterfactuals:
    """Counterfactuals of one direction, with everything that they are measured by.

    Args:
        originals: x, shape `(num, channels, height, width)` in [0, 1].
        images: x', same shape.
        null_images: x0, same shape.
        targets: label k of each image, shape `(num,)`.
        direction: `"remove"` or `"add"`.
        own: scores of the explained classifier.
        oracle: scores of the outside classifier, if there is one.
        regions: where each image was allowed to change, shape `(num, 1, height, width)`; None for everywhere.
        patient_ids: patient of each image; None if each image is its own.

    Raises:
        ValueError: if shapes do not fit together or the direction is unknown.
    """

    originals: np.ndarray
    images: np.ndarray
    null_images: np.ndarray
    targets: np.ndarray
    direction: str
    own: Scores
    oracle: Scores | None = None
    regions: np.ndarray | None = None
    patient_ids: Sequence[Hashable] | None = None

    def __post_init__(self) -> None:
        if self.direction not in ("remove", "add"):
            raise ValueError(f"`direction` must be 'remove' or 'add', but got {self.direction!r}.")
        if not self.originals.shape == self.images.shape == self.null_images.shape:
            raise ValueError(
                "`originals`, `images` and `null_images` must have one shape, but got "
                f"{self.originals.shape}, {self.images.shape} and {self.null_images.shape}."
            )
        num = {len(self.originals), len(self.targets), len(self.own.before), len(self.own.after), len(self.own.null)}
        if len(num) != 1 or (self.oracle is not None and len(self.oracle.before) not in num):
            raise ValueError(f"Images, targets and scores must be equally many, but their numbers are {sorted(num)}.")
        if self.patient_ids is not None and len(self.patient_ids) not in num:
            raise ValueError(f"`patient_ids` must have one entry per image, but got {len(self.patient_ids)}.")

    @property
    def patients(self) -> list[str]:
        """Patient of each image, whose images are resampled together."""
        ids = range(len(self)) if self.patient_ids is None else self.patient_ids
        return [str(patient) for patient in ids]

    def __len__(self) -> int:
        return len(self.originals)

    def select(self, rows: np.ndarray) -> Counterfactuals:
        """Some of the counterfactuals."""
        return replace(
            self,
            originals=self.originals[rows],
            images=self.images[rows],
            null_images=self.null_images[rows],
            targets=self.targets[rows],
            own=self.own.select(rows),
            oracle=None if self.oracle is None else self.oracle.select(rows),
            regions=None if self.regions is None else self.regions[rows],
            patient_ids=[self.patients[row] for row in rows.tolist()],
        )


def target_change(before: np.ndarray, after: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Change of the target's score, o_k(x') - o_k(x), per image: its mean is "Diff" in Tables 4 to 7."""
    rows = np.arange(len(targets))
    return after[rows, targets] - before[rows, targets]


def other_change(before: np.ndarray, after: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Mean absolute change of the other labels' scores per image; its mean is our "Other diff".

    NaN if there is only one label.
    """
    num, num_labels = before.shape
    if num_labels < 2:
        return np.full(num, np.nan)
    change = np.abs(after - before)
    return (change.sum(1) - change[np.arange(num), targets]) / (num_labels - 1)


def other_change_of_means(before: np.ndarray, after: np.ndarray, targets: np.ndarray) -> float:
    """The paper's "Other diff": absolute value of the *mean* change of each other label, averaged.

    Signs cancel between images, so it is at most the mean of `other_change`. Each target counts by its images.
    """
    num_labels = before.shape[1]
    total = 0.0
    for target in np.unique(targets):
        rows = targets == target
        mean = np.abs((after[rows] - before[rows]).mean(0))
        total += rows.sum() * (mean.sum() - mean[target]) / (num_labels - 1) if num_labels > 1 else float("nan")
    return float(total / len(targets)) if len(targets) else float("nan")


def logit_change(before: np.ndarray, after: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Change of the target's logit per image: probabilities near 0 or 1 hide changes."""

    def logits(scores: np.ndarray) -> np.ndarray:
        clipped = np.asarray(scores, dtype=np.float64).clip(_EPSILON, 1 - _EPSILON)
        return np.log(clipped / (1 - clipped))

    return target_change(logits(before), logits(after), targets)


def is_present(scores: np.ndarray, targets: np.ndarray, thresholds: np.ndarray | None) -> np.ndarray:
    """Whether a classifier sees the target label in each image: at its threshold, or as the most probable label."""
    rows = np.arange(len(targets))
    if thresholds is None:
        return scores.argmax(1) == targets
    return scores[rows, targets] >= np.asarray(thresholds)[targets]


def flips(scores: Scores, targets: np.ndarray, direction: str) -> np.ndarray:
    """1 where the decision on the target changed as intended, 0 where not, NaN where there was nothing to change."""
    before = is_present(scores.before, targets, scores.thresholds)
    after = is_present(scores.after, targets, scores.thresholds)
    eligible, changed = (before, ~after) if direction == "remove" else (~before, after)
    return np.where(eligible, changed.astype(np.float64), np.nan)


def mean_absolute_change(images: np.ndarray, references: np.ndarray) -> np.ndarray:
    """L1: mean absolute change per pixel and channel, per image, in units of the full intensity range."""
    return np.abs(images - references).reshape(len(images), -1).mean(1)


def summarize_scores(
    scores: Scores, targets: np.ndarray, direction: str, patient_ids: Sequence[Hashable]
) -> dict[str, Any]:
    """One classifier's view of counterfactuals.

    Args:
        scores: its scores.
        targets: label k of each image, shape `(num,)`.
        direction: `"remove"` or `"add"`.
        patient_ids: patient of each image.

    Returns:
        `before`, `after`, `null` (mean score of the target); `diff`, `diff_vs_null`, `logit_diff`; `other_diff`,
        `other_diff_vs_null`, `other_diff_of_means` (the paper's variant) and `null_other_diff` (x0 against x);
        `flip_rate`, over the `num_eligible` images on which the classifier decided the other way at first; and
        `diff_interval_95`, `other_diff_interval_95` and `flip_rate_interval_95`, over patients. NaN where a figure
        does not exist.
    """
    rows = np.arange(len(targets))
    diff = target_change(scores.before, scores.after, targets)
    other_diff = other_change(scores.before, scores.after, targets)
    flipped = flips(scores, targets, direction)
    return {
        "before": mean_of_known(scores.before[rows, targets]),
        "after": mean_of_known(scores.after[rows, targets]),
        "null": mean_of_known(scores.null[rows, targets]),
        "diff": mean_of_known(diff),
        "diff_interval_95": _ends(bootstrap_mean(diff, patient_ids)),
        "diff_vs_null": mean_of_known(target_change(scores.null, scores.after, targets)),
        "logit_diff": mean_of_known(logit_change(scores.before, scores.after, targets)),
        "other_diff": mean_of_known(other_diff),
        "other_diff_interval_95": _ends(bootstrap_mean(other_diff, patient_ids)),
        "other_diff_vs_null": mean_of_known(other_change(scores.null, scores.after, targets)),
        "other_diff_of_means": other_change_of_means(scores.before, scores.after, targets),
        "null_other_diff": mean_of_known(other_change(scores.before, scores.null, targets)),
        "flip_rate": mean_of_known(flipped),
        "flip_rate_interval_95": _ends(bootstrap_mean(flipped, patient_ids)),
        "num_eligible": int((~np.isnan(flipped)).sum()),
    }


def mean_of_known(values: np.ndarray) -> float:
    """Mean without NaN; NaN if nothing is left."""
    values = np.asarray(values, dtype=np.float64)
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def _ends(interval: Interval) -> list[float]:
    return [interval.low, interval.high]
