"""Where counterfactuals change the image: inside or outside expert boxes (Fig. 4 and 8), beside changes that know
nothing.

A change that ignores the image altogether earns an inside/outside ratio well above 1 where findings lie in the middle
of the body. So every figure stands beside three nulls: a fixed change of the central body, the average box of the
finding in *other* images, and the same change measured in the box of *another* finding.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .bootstrap import bootstrap_median, patient_numbers


# The outside change is taken to be at least this (a fortieth of one 8-bit grey level), so that no ratio is infinite
# and a change of nothing has ratio 0.
MIN_OUTSIDE_CHANGE = 1e-4
CENTRAL_BODY_SIGMA = 0.25  # of the fixed central change, as a share of the image's side


def box_mask(boxes: Sequence[Mapping[str, float]], label: int, height: int, width: int) -> np.ndarray:
    """The pixels in the boxes of one finding.

    Args:
        boxes: `{"label", "x", "y", "width", "height"}` in relative units, as in a prepared dataset.
        label: index of the finding.
        height: height of the mask in pixels.
        width: width of the mask in pixels.

    Returns:
        Shape `(height, width)`, bool; a pixel belongs to a box if its centre lies in it, and every box has a pixel.
    """
    mask = np.zeros((height, width), dtype=bool)
    for box in boxes:
        if int(box["label"]) != label:
            continue
        top, bottom = _pixel_range(box["y"], box["height"], height)
        left, right = _pixel_range(box["x"], box["width"], width)
        mask[top:bottom, left:right] = True
    return mask


def _pixel_range(start: float, length: float, size: int) -> tuple[int, int]:
    """First and last + 1 pixel whose centres lie in a relative interval; at least one pixel."""
    first = int(np.clip(np.ceil(start * size - 0.5 - 1e-6), 0, size - 1))
    last = int(np.clip(np.ceil((start + length) * size - 0.5 - 1e-6), first + 1, size))
    return first, last


def central_body_change(height: int, width: int) -> np.ndarray:
    """A fixed smooth change in the middle of the image, shape `(height, width)`: the null that knows no image."""
    y = ((np.arange(height) + 0.5) / height - 0.5)[:, None]
    x = ((np.arange(width) + 0.5) / width - 0.5)[None]
    return np.exp(-(x**2 + y**2) / (2 * CENTRAL_BODY_SIGMA**2))


def average_box_changes(masks: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """For each image the average box of its finding over the *other* images; shape of `masks`, in [0, 1].

    Zero everywhere for a finding with a single image.
    """
    averages = np.zeros(masks.shape)
    for target in np.unique(targets):
        rows = np.flatnonzero(targets == target)
        if len(rows) > 1:
            total = masks[rows].sum(0)
            averages[rows] = (total - masks[rows]) / (len(rows) - 1)
    return averages


def absolute_change(difference: np.ndarray) -> np.ndarray:
    """Mean absolute change over the channels: `(num, channels, height, width)` to `(num, height, width)`."""
    return np.abs(difference).mean(1)


def inside_outside(change: np.ndarray, masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean absolute change inside and outside the boxes (Fig. 4 and 8), per image.

    Args:
        change: absolute changes, shape `(num, height, width)`.
        masks: boxes, same shape, bool.

    Returns:
        Two arrays of shape `(num,)`; NaN where a box covers nothing (inside) or everything (outside).
    """
    area = masks.sum((1, 2))
    total_area = masks.shape[1] * masks.shape[2]
    with np.errstate(invalid="ignore", divide="ignore"):
        inside = (change * masks).sum((1, 2)) / np.where(area > 0, area, np.nan)
        outside = (change * ~masks).sum((1, 2)) / np.where(area < total_area, total_area - area, np.nan)
    return inside, outside


def change_ratio(inside: np.ndarray, outside: np.ndarray) -> np.ndarray:
    """Inside over outside, finite: the outside change counts as at least `MIN_OUTSIDE_CHANGE`."""
    return inside / np.maximum(outside, MIN_OUTSIDE_CHANGE)


def energy_share_inside(change: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Share of the squared change that lies in the boxes, per image; 0 for no change."""
    energy = change.astype(np.float64) ** 2
    total = energy.sum((1, 2))
    return np.where(total > 0, (energy * masks).sum((1, 2)) / np.where(total > 0, total, 1), 0.0)


def top_change_iou(change: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Overlap (intersection over union) of the boxes with the equally many most changed pixels, per image."""
    result = np.zeros(len(change))
    for row, (values, mask) in enumerate(zip(change, masks, strict=True)):
        values, mask = values.ravel(), mask.ravel()
        area = int(mask.sum())
        top = np.argsort(-values, kind="stable")[:area]
        hits = int(mask[top].sum())
        result[row] = hits / (2 * area - hits) if area else np.nan
    return result


def pointing_hit(change: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """1 if the most changed pixel lies in a box, else 0 (the pointing game), per image; 0 for no change."""
    flat = change.reshape(len(change), -1)
    hits = masks.reshape(len(masks), -1)[np.arange(len(flat)), flat.argmax(1)]
    return np.where(flat.max(1) > 0, hits.astype(np.float64), 0.0)


@dataclass(frozen=True)
class LocalisationCase:
    """Changes and the boxes they are measured in.

    Args:
        difference: signed changes, shape `(num, channels, height, width)`.
        masks: boxes of the target finding, shape `(num, height, width)`, bool.
        targets: target of each image, shape `(num,)`.
        wrong_masks: boxes of another finding, shape `(num, num_draws, height, width)`, bool; several draws per image
            steady the control.
    """

    difference: np.ndarray
    masks: np.ndarray
    targets: np.ndarray
    wrong_masks: np.ndarray | None = None

    def select(self, rows: np.ndarray) -> LocalisationCase:
        """Some of the changes."""
        wrong = None if self.wrong_masks is None else self.wrong_masks[rows]
        return LocalisationCase(self.difference[rows], self.masks[rows], self.targets[rows], wrong)


def measure_localisation(case: LocalisationCase) -> dict[str, np.ndarray]:
    """Every image's localisation figures, with its nulls; NaN where a box is empty or covers everything.

    Returns:
        Arrays of shape `(num,)`: `inside`, `outside`, `ratio`, `energy_share_inside`, `iou`, `pointing`, and the
        ratios of the nulls `central_body_ratio` and `average_box_ratio`; `wrong_box_ratios` has shape
        `(num, num_draws)`.
    """
    num, *size = case.masks.shape
    num_draws = 0 if case.wrong_masks is None else case.wrong_masks.shape[1]
    area = case.masks.reshape(num, -1).mean(1)
    is_measured = (area > 0) & (area < 1)
    change, masks = absolute_change(case.difference), case.masks
    inside, outside = inside_outside(change, masks)
    central = np.broadcast_to(central_body_change(*size), masks.shape)
    average = average_box_changes(masks, case.targets)
    figures = {
        "inside": inside,
        "outside": outside,
        "ratio": change_ratio(inside, outside),
        "energy_share_inside": energy_share_inside(change, masks),
        "iou": top_change_iou(change, masks),
        "pointing": pointing_hit(change, masks),
        "central_body_ratio": change_ratio(*inside_outside(central, masks)),
        "average_box_ratio": np.where(average.any((1, 2)), change_ratio(*inside_outside(average, masks)), np.nan),
    }
    figures = {name: np.where(is_measured, values, np.nan) for name, values in figures.items()}
    wrong = np.full((num, num_draws), np.nan)
    for draw in range(num_draws):
        in_wrong_box = change_ratio(*inside_outside(change, case.wrong_masks[:, draw]))  # type: ignore[index]
        wrong[:, draw] = np.where(is_measured, in_wrong_box, np.nan)
    return {**figures, "wrong_box_ratios": wrong}


def summarize_localisation(figures: Mapping[str, np.ndarray], patient_ids: Sequence[Hashable]) -> dict[str, Any]:
    """All localisation figures of a set of changes, with their nulls.

    Images whose boxes are empty or cover everything are left out.

    Args:
        figures: of `measure_localisation`.
        patient_ids: patient of each image.

    Returns:
        `num_images`, `num_patients`; `inside`, `outside` (means), `ratio` (median of the per-image ratios) with its
        interval over patients, `ratio_interval_95`; `share_above_1`, `energy_share_inside`, `iou`, `pointing`; and the
        median ratio of each null: `central_body_ratio`, `average_box_ratio`, `wrong_box_ratio`. NaN where a figure
        does not exist.
    """
    is_measured = ~np.isnan(figures["ratio"])
    if not is_measured.any():
        return {"num_images": 0, "num_patients": 0}
    patients = patient_numbers(patient_ids)
    of = {name: np.asarray(values)[is_measured] for name, values in figures.items()}
    interval = bootstrap_median(of["ratio"], patients[is_measured].tolist())
    result: dict[str, Any] = {
        "num_images": int(is_measured.sum()),
        "num_patients": interval.num_patients,
        "inside": float(of["inside"].mean()),
        "outside": float(of["outside"].mean()),
        "ratio": interval.estimate,
        "ratio_interval_95": [interval.low, interval.high],
        "share_above_1": float((of["ratio"] > 1).mean()),
        "energy_share_inside": float(of["energy_share_inside"].mean()),
        "iou": float(of["iou"].mean()),
        "pointing": float(of["pointing"].mean()),
        "central_body_ratio": _median_of_known(of["central_body_ratio"]),
        "average_box_ratio": _median_of_known(of["average_box_ratio"]),
    }
    if of["wrong_box_ratios"].size:
        result["wrong_box_ratio"] = _median_of_known(of["wrong_box_ratios"])
    return result


def _median_of_known(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(np.median(known)) if len(known) else float("nan")
