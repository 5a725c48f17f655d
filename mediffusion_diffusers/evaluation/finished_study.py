"""What a counterfactual study leaves: images, scores and figures, by direction."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .counterfactuals import Counterfactuals


@dataclass
class StudiedDirection:
    """Counterfactuals of one direction, with what belongs to each image.

    Args:
        counterfactuals: images and scores.
        image_ids: name of each image.
        boxes: boxes of each image's target finding.
        truth: true counterfactuals, shape of the images, where they are known (phantoms).
        control_scores: the oracle's scores for each control, shape `(num, num_labels)`; empty without an oracle.
        results: the figures, for JSON.
    """

    counterfactuals: Counterfactuals
    image_ids: list[str]
    boxes: list[list[dict[str, float]]]
    truth: np.ndarray | None
    control_scores: dict[str, np.ndarray]
    results: dict[str, Any]


@dataclass
class CounterfactualStudy:
    """A finished study.

    Args:
        label_names: the model's labels.
        directions: by `"remove"` and `"add"`; a direction without a suitable image is missing.
        provenance: data, seed, checkpoint, settings.
        notes: what the reader must know.
    """

    label_names: list[str]
    directions: dict[str, StudiedDirection] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The figures and where they come from, for JSON."""
        results = {direction: studied.results for direction, studied in self.directions.items()}
        return {"provenance": self.provenance, "notes": self.notes, **results}
