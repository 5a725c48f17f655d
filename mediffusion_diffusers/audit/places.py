"""Where counterfactuals change images: places with a name, in one image and over many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..regions import boxes_to_mask, region_of_change


ENERGY_SHARE = 0.7  # of a change's energy that its places hold together
MIN_SHARE = 0.1  # of the energy that a place holds by itself
MAX_PLACES = 3
MIN_COVER = 0.25  # of a box that a place covers to be there
MAX_AREA = 0.25  # of the picture: a larger place names nothing
_ROWS, _COLUMNS = ("upper", "middle", "lower"), ("left", "centre", "right")


@dataclass(frozen=True, eq=False)
class Place:
    """A connected place of an image.

    Args:
        name: in thirds of the picture, such as `"upper left"`; left is the picture's left.
        mask: where it is, bool, shape `(height, width)`.
        share: of the change's energy (its square) that lies here, in [0, 1].
    """

    name: str
    mask: np.ndarray
    share: float

    @property
    def box(self) -> dict[str, float]:
        """The smallest box around it, in relative units."""
        height, width = self.mask.shape
        rows, columns = np.flatnonzero(self.mask.any(1)), np.flatnonzero(self.mask.any(0))
        return {
            "x": float(columns[0] / width),
            "y": float(rows[0] / height),
            "width": float((columns[-1] + 1 - columns[0]) / width),
            "height": float((rows[-1] + 1 - rows[0]) / height),
        }

    def covers(self, box: dict[str, float]) -> bool:
        """Whether it covers at least `MIN_COVER` of a box, without covering everything else too."""
        inside = pixels_in([box], self.mask.shape)
        return bool(self.mask.mean() <= MAX_AREA and (self.mask & inside).sum() >= MIN_COVER * max(1, inside.sum()))


def pixels_in(boxes: Sequence[Mapping[str, float]], shape: tuple[int, ...]) -> np.ndarray:
    """The pixels that boxes in relative units touch, bool, of a shape `(height, width)`."""
    return boxes_to_mask(boxes, *shape).numpy() > 0


def energy_of_change(images: np.ndarray, originals: np.ndarray) -> np.ndarray:
    """Squared change of each pixel as a share of the image's; all 0 for an image that did not change.

    Args:
        images: shape `(num, channels, height, width)`.
        originals: same shape.

    Returns:
        Shape `(num, height, width)`, each summing to 1.
    """
    energy = ((images.astype(np.float64) - originals) ** 2).mean(1)
    total = energy.sum((1, 2), keepdims=True)
    return np.divide(energy, total, out=np.zeros_like(energy), where=total > 0)


def places_of_change(energy: np.ndarray) -> list[Place]:
    """The places that hold most of a change: few connected parts, the strongest first.

    Args:
        energy: shape `(height, width)`, summing to 1 (or to 0: no place).
    """
    from scipy.ndimage import label as connected

    size = torch.from_numpy(np.sqrt(energy))[None, None]
    numbered, num_parts = connected(region_of_change(size, ENERGY_SHARE)[0, 0].numpy() > 0, np.ones((3, 3)))
    masks = [numbered == number for number in range(1, num_parts + 1)]
    places = [Place(_name(mask, energy), mask, float(energy[mask].sum())) for mask in masks]
    places.sort(key=lambda place: -place.share)
    return [place for place in places if place.share >= MIN_SHARE][:MAX_PLACES]


def recurring_places(energies: np.ndarray, boxes: list[list[dict[str, float]]]) -> list[dict[str, Any]]:
    """The places that counterfactuals of many images change, and whether the finding lies there.

    Args:
        energies: of all images, shape `(num, height, width)`.
        boxes: of the finding in each image, perhaps none.

    Returns:
        For each place of the mean energy `name`, `box`, `share_of_energy`, `share_of_images` (one of whose own places
        overlaps it) and `share_in_boxes`: of its energy in images with boxes, what lies inside them; None if there
        are none.
    """
    own = [places_of_change(energy) for energy in energies]
    with_boxes = [row for row, of_image in enumerate(boxes) if of_image]
    found = []
    for place in places_of_change(energies.mean(0)):
        overlaps = [any((place.mask & one.mask).any() for one in of_image) for of_image in own]
        here = energies[with_boxes][:, place.mask].sum() if with_boxes else 0.0
        inside = sum(energies[row][place.mask & pixels_in(boxes[row], place.mask.shape)].sum() for row in with_boxes)
        found.append(
            {
                "name": place.name,
                "box": place.box,
                "share_of_energy": place.share,
                "share_of_images": float(np.mean(overlaps)),
                "share_in_boxes": float(inside / here) if here > 0 else None,
            }
        )
    return found


def share_that_names(energies: np.ndarray, boxes: list[dict[str, float]]) -> float:
    """Share of images one of whose places covers the box.

    Args:
        energies: shape `(num, height, width)`.
        boxes: one for each image.
    """
    named = [
        any(place.covers(box) for place in places_of_change(energy))
        for energy, box in zip(energies, boxes, strict=True)
    ]
    return float(np.mean(named)) if named else float("nan")


def mirrored(box: dict[str, float]) -> dict[str, float]:
    """The same box on the other side of the picture: what a place would name by chance."""
    return {**box, "x": 1 - box["x"] - box["width"]}


def _name(mask: np.ndarray, energy: np.ndarray) -> str:
    if mask.mean() > MAX_AREA:
        return "all over"
    weights = np.where(mask, energy, 0)
    shares = [
        np.average((np.arange(length) + 0.5) / length, weights=weights.sum(axis))
        for length, axis in zip(mask.shape, (1, 0), strict=True)
    ]
    row, column = (min(2, int(3 * share)) for share in shares)
    return "centre" if row == column == 1 else f"{_ROWS[row]} {_COLUMNS[column]}"
