"""What edited images should look like: true counterfactuals where they are known, else real images that show it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from ..data.metadata import read_metadata
from ..data.phantom import PHANTOM_VERSION, true_counterfactual, true_ways
from .counterfactual_selection import Selection, matching_rows
from .held_out import HeldOutSplit


@dataclass(frozen=True)
class RealImages:
    """Real images that show what the edited ones should.

    Args:
        images: shape `(num, channels, height, width)` in [0, 1].
        patient_ids: patient of each.
        origin: what they are, in words.
    """

    images: np.ndarray
    patient_ids: Sequence[str]
    origin: str


class References:
    """The references that a split offers.

    Args:
        held_out: the split.
        pipeline: whose size and colours they are read at.
    """

    def __init__(self, held_out: HeldOutSplit, pipeline: Any):
        self.held_out, self.pipeline = held_out, pipeline

    @property
    def know_truth(self) -> bool:
        """Whether the split's images are phantoms, whose true counterfactuals are known; the first stands for all."""
        return _is_phantom(self.held_out.dataset[0])

    def truth(self, chosen: Selection) -> np.ndarray | None:
        """True counterfactuals, shape `(num, 1, height, width)`, if the dataset is a phantom's."""
        pairs = self._phantoms(chosen)
        size = self.pipeline.image_size[0]
        return np.stack([true_counterfactual(row, label, size).numpy() for row, label in pairs]) if pairs else None

    def true_ways(self, chosen: Selection, num_ways: int) -> list[np.ndarray] | None:
        """For each phantom ways to show its target, shape `(num_ways, 1, height, width)`; None for other data."""
        size = self.pipeline.image_size[0]
        pairs = tqdm(self._phantoms(chosen), desc="True ways", unit="image", leave=False)
        return [true_ways(row, label, num_ways, size).numpy() for row, label in pairs] or None

    def real_images(self, chosen: Selection, direction: str, truth: np.ndarray | None) -> RealImages | None:
        """What edited images should look like.

        Args:
            chosen: images that were edited.
            direction: `"remove"` or `"add"`.
            truth: their true counterfactuals, which are taken if they are known.

        Returns:
            As many images, if there are, of the same labels but for the target; None if there are fewer than two.
        """
        patients = self.held_out.patient_ids
        if truth is not None:
            return RealImages(truth, [patients[row] for row in chosen.rows.tolist()], "true counterfactuals")
        wanted = matching_rows(self.held_out.labels, chosen, direction)
        rows, images = self.held_out.read(wanted, self.pipeline)
        if len(rows) < 2:
            return None
        origin = "other images of the split, with the wanted labels where there are any"
        return RealImages(images.numpy(), [patients[row] for row in rows.tolist()], origin)

    def _phantoms(self, chosen: Selection) -> list[tuple[dict[str, Any], str]]:
        """Rows and targets of the dataset; none if they are no phantoms of this version."""
        rows = [self.held_out.dataset[row] for row in chosen.rows.tolist()]
        if not all(map(_is_phantom, rows)):
            return []
        names = self.held_out.info.label_names
        return [(row, names[target]) for row, target in zip(rows, chosen.targets.tolist(), strict=True)]


def _is_phantom(row: Mapping[str, Any]) -> bool:
    """Whether a row of a prepared dataset is a phantom of this version."""
    return read_metadata(row["metadata"]).get("phantom_version") == PHANTOM_VERSION
