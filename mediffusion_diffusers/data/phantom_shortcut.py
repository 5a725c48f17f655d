"""A shortcut planted into phantoms: a lead marker in a corner that means nothing, but goes with a finding.

A classifier that learns the marker instead of the finding looks good on pictures of the same kind, and fails on
others: what an audit should find, and a repair mend.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from .phantom_anatomy import PHANTOM_LABELS, patient_generator


MARKER_BRIGHTNESS = 0.95
MARKER_SIZE = 0.14  # side, as a share of the picture's
_CORNER = ((0.04, 0.12), (0.04, 0.10))  # uniform ranges of its left and upper edge
_STREAM_SHORTCUT = 2  # after those of patients and noise


@dataclass(frozen=True)
class Shortcut:
    """Which finding the marker goes with, and how often.

    Args:
        label: the finding.
        share: of the images with the finding that have the marker, in [0, 1]; of those without, `1 - share` have it.
            So 0.5 is a marker that tells nothing.

    Raises:
        ValueError: for an unknown finding, or a share out of range.
    """

    label: str
    share: float

    def __post_init__(self) -> None:
        if self.label not in PHANTOM_LABELS or not 0 <= self.share <= 1:
            raise ValueError(
                f"`shortcut` must be a finding among {', '.join(PHANTOM_LABELS)} and a share in [0, 1], such as "
                f"Effusion:0.9, but got {self.label}:{self.share:g}."
            )

    @classmethod
    def parse(cls, text: str) -> Shortcut:
        """From a text such as `Effusion:0.9`.

        Raises:
            ValueError: for any other.
        """
        label, _, share = text.partition(":")
        try:
            number = float(share)
        except ValueError:
            raise ValueError(
                f"`shortcut` must name a finding and a share, such as Effusion:0.9, but got {text!r}."
            ) from None
        return cls(label, number)

    def markers(
        self, seed: int, index: Sequence[int] | np.ndarray, labels: torch.Tensor
    ) -> list[dict[str, float] | None]:
        """The box of each patient's marker, or None.

        Args:
            seed: the population.
            index: number of each patient in it.
            labels: their findings, shape `(num, 5)`.
        """
        boxes: list[dict[str, float] | None] = []
        for number, row in zip(index, labels, strict=True):
            chance, *place = patient_generator(seed, int(number), _STREAM_SHORTCUT).random(3).tolist()
            has_finding = bool(row[PHANTOM_LABELS.index(self.label)] == 1)
            x, y = (low + (high - low) * one for (low, high), one in zip(_CORNER, place, strict=True))
            box = {"x": x, "y": y, "width": MARKER_SIZE, "height": MARKER_SIZE}
            boxes.append(box if chance < (self.share if has_finding else 1 - self.share) else None)
        return boxes

    def sentence(self) -> str:
        """What a dataset says about it."""
        return (
            f"A marker that means nothing goes with {self.label}: {100 * self.share:g} % of the images with it and "
            f"{100 * (1 - self.share):g} % of those without have it; its box stands in the metadata."
        )


def paint_markers(images: torch.Tensor, boxes: Sequence[Mapping[str, float] | None]) -> torch.Tensor:
    """Paint markers over pictures; a pixel that one covers in part is mixed.

    Args:
        images: shape `(num, 1, height, width)`, in [0, 1].
        boxes: of each picture's marker in relative units, or None.
    """
    height, width = images.shape[-2:]
    painted = images.clone()
    for picture, box in zip(painted, boxes, strict=True):
        if box is not None:
            rows, columns = _cover(box["y"], box["height"], height), _cover(box["x"], box["width"], width)
            picture.lerp_(torch.full_like(picture, MARKER_BRIGHTNESS), rows[:, None] * columns[None])
    return painted


def _cover(start: float, length: float, num_pixels: int) -> torch.Tensor:
    """How much of each pixel along one side lies between two places, in [0, 1]."""
    edges = torch.arange(num_pixels + 1, dtype=torch.float32).clamp(start * num_pixels, (start + length) * num_pixels)
    return edges.diff()
