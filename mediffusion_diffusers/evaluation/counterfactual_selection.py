"""Which images are explained: the fixed rule behind every counterfactual table, so that nothing is picked by eye."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..options import Range, check_number
from .bootstrap import patient_numbers
from .localisation import box_mask


_TURNS = (
    "drawn in turns, in each turn the finding with the fewest such images left first: it takes the first one in the "
    "order of the split that none has taken, of a patient of whom none has taken any as long as there is one; so no "
    "image serves twice"
)
SELECTION_RULE = {
    "remove": "the first images, in the order of the split, that have the finding and that the model calls positive",
    "add": f"images with no finding at all, that the model calls negative, {_TURNS}",
}
NUM_WRONG_BOXES = 8  # boxes of other findings that each image's change is also measured in


@dataclass(frozen=True)
class Selection:
    """Images to explain, and the label to change in each.

    Args:
        rows: position of each image in the split.
        targets: label of each.
    """

    rows: np.ndarray
    targets: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)


def select_images(
    labels: np.ndarray,
    is_present: np.ndarray,
    direction: str,
    num_images_per_label: int,
    single_label: bool = False,
    candidates: Mapping[int, np.ndarray] | None = None,
    patient_ids: Sequence[Hashable] | None = None,
) -> Selection:
    """Select images by `SELECTION_RULE`.

    For one class per image, `"add"` takes images of any *other* class instead of images without a finding. An image
    with two findings may serve in the removal of either; every image without a finding would fit every addition.

    Args:
        labels: 1, 0 or NaN, shape `(num, num_labels)`.
        is_present: the model's decisions, bool, same shape.
        direction: `"remove"` or `"add"`.
        num_images_per_label: at most so many images for each label.
        single_label: whether there is one class per image.
        candidates: by label, the rows that may be taken (for example those with a box); None for all.
        patient_ids: patient of each image; None if each is its own.

    Returns:
        Label by label, each label's images in the order of the split.

    Raises:
        ValueError: if the direction is unknown or the number is no whole one from 1.
    """
    if direction not in SELECTION_RULE:
        raise ValueError(f"`direction` must be 'remove' or 'add', but got {direction!r}.")
    check_number("num_images_per_label", num_images_per_label, Range(at_least=1), whole=True)
    if direction == "remove":
        fits = (labels == 1) & is_present
    elif single_label:
        fits = (labels == 0) & ~is_present
    else:
        fits = (labels == 0).all(1, keepdims=True) & ~is_present
    if candidates is not None:
        for label in range(labels.shape[1]):
            fits[:, label] &= np.isin(np.arange(len(labels)), candidates[label])
    if direction == "remove":
        taken = [np.flatnonzero(column)[:num_images_per_label].tolist() for column in fits.T]
    else:
        patients = patient_numbers(range(len(labels)) if patient_ids is None else patient_ids)
        taken = _draw_in_turns(fits, patients, num_images_per_label)
    rows = np.array([row for chosen in taken for row in sorted(chosen)], dtype=np.int64)
    return Selection(rows, np.repeat(np.arange(len(taken)), [len(chosen) for chosen in taken]))


def _draw_in_turns(fits: np.ndarray, patients: np.ndarray, most: int) -> list[list[int]]:
    """By label, the rows it takes; see `SELECTION_RULE`.

    Args:
        fits: whether a label may take a row, bool, shape `(num, num_labels)`.
        patients: number of each row's patient, shape `(num,)`.
        most: rows that a label may take.
    """
    taken: list[list[int]] = [[] for _ in range(fits.shape[1])]
    is_free, is_new = np.ones(len(fits), dtype=bool), np.ones(len(fits), dtype=bool)
    num_left = fits.sum(0)
    while waiting := {label for label, rows in enumerate(taken) if num_left[label] and len(rows) < most}:
        while able := [label for label in sorted(waiting) if num_left[label]]:
            label = min(able, key=lambda one: num_left[one])
            free = np.flatnonzero(fits[:, label] & is_free)
            new = free[is_new[patients[free]]]
            row = int(new[0] if len(new) else free[0])
            taken[label].append(row)
            is_free[row] = is_new[patients[row]] = False
            num_left -= fits[row]
            waiting.remove(label)
    return taken


def first_of_each(targets: np.ndarray, num: int) -> np.ndarray:
    """Places of `num` images, the first of each label, then the second, and so on, in their own order."""
    turn = np.array([np.sum(targets[:place] == target) for place, target in enumerate(targets)], dtype=np.int64)
    return np.sort(np.lexsort((targets, turn))[:num])


def matching_rows(labels: np.ndarray, selection: Selection, direction: str) -> np.ndarray:
    """For each image another one, that shows what its counterfactual should: its labels, with the target toggled.

    Where none is left with all these labels, one that has (`"add"`) or lacks (`"remove"`) the target. None serves
    twice, and none that is itself explained.

    Args:
        labels: 1, 0 or NaN, shape `(num, num_labels)`; unknown ones match.
        selection: the images.
        direction: `"remove"` or `"add"`.

    Returns:
        Rows, at most as many as there are images.
    """
    is_free = ~np.isin(np.arange(len(labels)), selection.rows)
    wanted_value = 1.0 if direction == "add" else 0.0
    rows: list[int] = []
    for row, target in zip(selection.rows.tolist(), selection.targets.tolist(), strict=True):
        wanted = labels[row].copy()
        wanted[target] = wanted_value
        fits = is_free & (labels[:, target] == wanted_value)
        differs = np.nan_to_num(np.abs(labels - wanted)).sum(1)
        candidates = np.flatnonzero(fits)
        if len(candidates):
            rows.append(int(candidates[differs[candidates].argmin()]))
            is_free[rows[-1]] = False
    return np.array(rows, dtype=np.int64)


def rows_with_box(boxes: Sequence[Sequence[Mapping[str, float]]], num_labels: int) -> dict[int, np.ndarray]:
    """By label, the rows that have a box of it."""
    found: dict[int, list[int]] = {label: [] for label in range(num_labels)}
    for row, row_boxes in enumerate(boxes):
        for label in {int(box["label"]) for box in row_boxes}:
            found[label].append(row)
    return {label: np.array(rows, dtype=np.int64) for label, rows in found.items()}


def target_masks(
    boxes: Sequence[Sequence[Mapping[str, float]]], selection: Selection, height: int, width: int
) -> np.ndarray:
    """Boxes of each image's target finding as masks, shape `(num, height, width)`; empty where there is none."""
    pairs = zip(selection.rows.tolist(), selection.targets.tolist(), strict=True)
    masks = [box_mask(boxes[row], target, height, width) for row, target in pairs]
    return np.stack(masks) if masks else np.zeros((0, height, width), dtype=bool)


def wrong_masks(
    boxes: Sequence[Sequence[Mapping[str, float]]], selection: Selection, height: int, width: int, seed: int = 0
) -> np.ndarray | None:
    """Boxes of *other* findings, drawn at random from all images of the split, as masks.

    Args:
        boxes: boxes of every image of the split.
        selection: the images.
        height: height of the masks in pixels.
        width: width of the masks in pixels.
        seed: of the draw.

    Returns:
        Shape `(num, NUM_WRONG_BOXES, height, width)`, bool; None if fewer than two findings have boxes.
    """
    by_label: dict[int, list[np.ndarray]] = {}
    for row_boxes in boxes:
        for label in {int(box["label"]) for box in row_boxes}:
            by_label.setdefault(label, []).append(box_mask(row_boxes, label, height, width))
    if len(by_label) < 2:
        return None
    generator = np.random.default_rng(seed)
    result = np.zeros((len(selection), NUM_WRONG_BOXES, height, width), dtype=bool)
    for index, target in enumerate(selection.targets.tolist()):
        # A finding first, then one of its boxes: common findings do not crowd out rare ones.
        others = [masks for label, masks in sorted(by_label.items()) if label != target]
        for draw in range(NUM_WRONG_BOXES):
            masks = others[generator.integers(len(others))]
            result[index, draw] = masks[generator.integers(len(masks))]
    return result
