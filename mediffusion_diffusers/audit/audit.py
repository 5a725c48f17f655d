"""An audit: whom a classifier serves how well, and where its counterfactuals change images of each finding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..data.metadata import read_metadata
from ..evaluation.classification import nan_to_none
from ..evaluation.counterfactual_selection import SELECTION_RULE, Selection, select_images
from ..evaluation.counterfactual_study import CounterfactualStudyRunner
from ..evaluation.counterfactuals import Counterfactuals
from .places import energy_of_change, mirrored, places_of_change, recurring_places, share_that_names
from .subgroups import subgroup_aurocs


# A place that counterfactuals change in at least half of the images, while the finding lies elsewhere.
SUSPECT_IMAGES, SUSPECT_IN_BOXES = 0.5, 0.2


@dataclass(frozen=True, eq=False)
class AuditedLabel:
    """The counterfactuals of one finding.

    Args:
        label: the finding.
        counterfactuals: of images that have it and are called positive, with the finding removed.
        energies: of their changes, shape `(num, height, width)`; see `energy_of_change`.
        results: figures, for JSON.
    """

    label: str
    counterfactuals: Counterfactuals
    energies: np.ndarray
    results: dict[str, Any]


@dataclass
class Audit:
    """What was found.

    Args:
        subgroups: of `subgroup_aurocs`.
        labels: one entry per audited finding.
        provenance: data, checkpoint, settings.
        notes: what is missing, in sentences.
    """

    subgroups: list[dict[str, Any]]
    labels: list[AuditedLabel]
    provenance: dict[str, Any]
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """As plain types for JSON."""
        findings = {one.label: one.results for one in self.labels}
        return nan_to_none(
            {
                "provenance": self.provenance,
                "subgroups": self.subgroups,
                "findings": findings,
                "notes": self.notes,
            }
        )


def run_audit(
    runner: CounterfactualStudyRunner, labels: Sequence[str] | None, num_images_per_label: int, num_resamples: int
) -> Audit:
    """Audit a classifier.

    Args:
        runner: model, dataset and settings.
        labels: findings whose counterfactuals are looked at; None for all.
        num_images_per_label: counterfactuals of each at most.
        num_resamples: for intervals.

    Raises:
        ValueError: for an unknown finding, or if there is nothing to look at.
    """
    metadata = [read_metadata(text) for text in runner.dataset["metadata"]]
    chosen = select_labels(runner, "remove", labels, num_images_per_label)
    if not len(chosen):
        raise ValueError(f"No image of split {runner.split!r} fits: {SELECTION_RULE['remove']}.")
    audit = Audit(
        subgroup_aurocs(
            *(runner.labels, runner.own_probabilities, metadata, runner.patient_ids, runner.label_names),
            num_resamples,
        ),
        [],
        runner.provenance,
    )
    for column in np.unique(chosen.targets).tolist():
        of_label = chosen.targets == column
        part = Selection(chosen.rows[of_label], chosen.targets[of_label])
        made = runner.explain(part, "remove")
        energies = energy_of_change(made.images, made.originals)
        markers = [planted_box(metadata[row]) for row in part.rows.tolist()]
        boxes = [[box for box in runner.boxes[row] if int(box["label"]) == column] for row in part.rows.tolist()]
        results = {"num_images": len(part), **_places(energies, boxes), **_planted(energies, markers)}
        audit.labels.append(AuditedLabel(runner.label_names[column], made, energies, results))
        audit.provenance = {**audit.provenance, "settings": runner.used_settings}
    audit.provenance["selection"] = SELECTION_RULE["remove"]
    audit.notes += runner.held_out.notes()
    missing = set(labels or runner.label_names) - {one.label for one in audit.labels}
    audit.notes += [f"No image has {name} and is called positive." for name in sorted(missing)]
    return audit


def select_labels(
    runner: CounterfactualStudyRunner, direction: str, labels: Sequence[str] | None, num_images_per_label: int
) -> Selection:
    """Images by the rule of counterfactual studies, for some findings alone.

    Args:
        runner: model and dataset.
        direction: `"remove"` or `"add"`.
        labels: the findings; None for all.
        num_images_per_label: at most.

    Raises:
        ValueError: for an unknown finding.
    """
    names = runner.label_names
    unknown = sorted(set(labels or ()) - set(names))
    if unknown:
        raise ValueError(f"`labels` must be among {', '.join(names)}, but got {', '.join(unknown)}.")
    decisions, everything = runner.decisions, np.arange(len(runner.labels))
    candidates = {
        column: everything if labels is None or name in labels else everything[:0] for column, name in enumerate(names)
    }
    return select_images(
        *(runner.labels, decisions, direction, num_images_per_label),
        *(runner.single_label, candidates, runner.patient_ids),
    )


def _places(energies: np.ndarray, boxes: list[list[dict[str, float]]]) -> dict[str, Any]:
    """Recurring places, and which of them are suspect; None where no box says where the finding is."""
    places = recurring_places(energies, boxes)
    for place in places:
        in_boxes = place["share_in_boxes"]
        often = place["share_of_images"] >= SUSPECT_IMAGES
        place["is_suspect"] = (often and in_boxes < SUSPECT_IN_BOXES) if in_boxes is not None else None
    names: dict[str, int] = {}
    for energy in energies:
        for name in {place.name for place in places_of_change(energy)}:
            names[name] = names.get(name, 0) + 1
    by_name = {name: count / len(energies) for name, count in sorted(names.items(), key=lambda one: -one[1])}
    return {"places": places, "share_of_images_by_place": by_name}


def planted_box(metadata: Mapping[str, Any]) -> dict[str, float] | None:
    """The box of a phantom's marker; other datasets may call anything a marker."""
    marker = metadata.get("marker")
    return marker if isinstance(marker, dict) and {"x", "y", "width", "height"} <= marker.keys() else None


def _planted(energies: np.ndarray, markers: Sequence[dict[str, float] | None]) -> dict[str, Any]:
    """How often the places name a marker whose box is known, and its mirror image, which means nothing."""
    rows = [row for row, marker in enumerate(markers) if marker is not None]
    if not rows:
        return {}
    boxes = [marker for marker in markers if marker is not None]
    return {
        "planted": {
            "num_images": len(rows),
            "share_named": share_that_names(energies[rows], boxes),
            "share_mirrored_named": share_that_names(energies[rows], [mirrored(box) for box in boxes]),
        }
    }
