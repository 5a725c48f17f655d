"""The figures of a set of counterfactuals, put together from the package's metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..controls import high_frequency_share
from .classification import nan_to_none
from .counterfactual_selection import Selection, target_masks, wrong_masks
from .counterfactuals import Counterfactuals, Scores, is_present, mean_absolute_change, mean_of_known
from .localisation import LocalisationCase, measure_localisation
from .metrics import CounterfactualImageChange, CounterfactualScoreChange, Localisation
from .truth import summarize_truth


def summarize(counterfactuals: Counterfactuals) -> dict[str, Any]:
    """All figures of a set of counterfactuals; means over its images, None where a figure does not exist.

    Returns:
        `num_images` and how many patients they are of, `num_patients`; for `own` and `oracle` each the figures of
        `summarize_scores`; `agreement`, the share of counterfactuals on which both decide alike about the target; and
        `change`, of `CounterfactualImageChange`.
    """
    targets, own, oracle = counterfactuals.targets, counterfactuals.own, counterfactuals.oracle
    originals, images, null = counterfactuals.originals, counterfactuals.images, counterfactuals.null_images
    change = CounterfactualImageChange(keep_in_memory=True).compute(
        l1=mean_absolute_change(images, originals),
        l1_vs_null=mean_absolute_change(images, null),
        null_l1=mean_absolute_change(null, originals),
        high_frequency_share=high_frequency_share(images - originals),
        high_frequency_share_vs_null=high_frequency_share(images - null),
    )
    result: dict[str, Any] = {
        "num_images": len(counterfactuals),
        "num_patients": len(set(counterfactuals.patients)),
        "own": _summarize_scores(own, counterfactuals),
        "change": change,
    }
    if oracle is not None:
        result["oracle"] = _summarize_scores(oracle, counterfactuals)
        own_sees = is_present(own.after, targets, own.thresholds)
        result["agreement"] = mean_of_known(own_sees == is_present(oracle.after, targets, oracle.thresholds))
    return nan_to_none(result)


def summarize_per_label(
    counterfactuals: Counterfactuals, label_names: Sequence[str], truth: np.ndarray | None = None
) -> dict[str, dict[str, Any]]:
    """`summarize` for each target label that has images, by its name; with the truth, the distance to it."""
    results = {}
    for target in np.unique(counterfactuals.targets).tolist():
        rows = np.flatnonzero(counterfactuals.targets == target)
        some = counterfactuals.select(rows)
        results[label_names[target]] = summarize(some)
        if truth is not None:
            figures = summarize_truth(some.images, some.originals, truth[rows], some.patients)
            results[label_names[target]]["to_truth"] = nan_to_none(figures)
    return results


@dataclass(frozen=True)
class LocalisedDirection:
    """Changed images of one direction with the boxes of their targets.

    Args:
        images: changed images, shape `(num, channels, height, width)`.
        targets: target of each.
        patients: patient of each.
        boxes: of each image's target.
        masks: the same as masks, shape `(num, height, width)`.
        wrong_masks: boxes of other findings, as `wrong_masks` draws them.
    """

    images: np.ndarray
    targets: np.ndarray
    patients: Sequence[str]
    boxes: list[list[dict[str, float]]]
    masks: np.ndarray
    wrong_masks: np.ndarray | None

    @classmethod
    def of(
        cls,
        boxes: Sequence[Sequence[dict[str, float]]],
        selection: Selection,
        counterfactuals: Counterfactuals,
        seed: int,
    ) -> LocalisedDirection:
        """From the boxes of every image of the split; `seed` draws the wrong ones."""
        height, width = counterfactuals.images.shape[-2:]
        pairs = zip(selection.rows.tolist(), selection.targets.tolist(), strict=True)
        return cls(
            counterfactuals.images,
            selection.targets,
            counterfactuals.patients,
            [[box for box in boxes[row] if int(box["label"]) == target] for row, target in pairs],
            target_masks(boxes, selection, height, width),
            wrong_masks(boxes, selection, height, width, seed),
        )

    @property
    def has_boxes(self) -> bool:
        """Whether any target has a box."""
        return bool(self.masks.any())

    def localise(self, references: np.ndarray, label_names: Sequence[str] | None = None) -> dict[str, Any]:
        """Where the images differ from others; with names also `per_label`."""
        case = LocalisationCase(self.images - references, self.masks, self.targets, self.wrong_masks)
        results = localise(case, self.patients)
        if label_names is not None:
            results["per_label"] = localise_per_label(case, self.patients, label_names)
        return results


def localise(case: LocalisationCase, patient_ids: Sequence[str]) -> dict[str, Any]:
    """All localisation figures of a set of changes, with their nulls; None where a figure does not exist.

    Args:
        case: changes and boxes.
        patient_ids: patient of each image.

    Returns:
        As `summarize_localisation`.
    """
    measured = measure_localisation(case)
    return nan_to_none(Localisation(keep_in_memory=True).compute(**measured, patient_ids=list(patient_ids)))


def localise_per_label(
    case: LocalisationCase, patient_ids: Sequence[str], label_names: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """`localise` for each target label, by its name."""
    per_label = {}
    for target in np.unique(case.targets).tolist():
        rows = np.flatnonzero(case.targets == target)
        patients = [patient_ids[row] for row in rows.tolist()]
        per_label[label_names[target]] = localise(case.select(rows), patients)
    return per_label


def _summarize_scores(scores: Scores, counterfactuals: Counterfactuals) -> dict[str, Any]:
    metric = CounterfactualScoreChange("study", keep_in_memory=True)
    metric.add_batch(
        predictions=scores.after,
        references=scores.before,
        null_scores=scores.null,
        targets=counterfactuals.targets,
        patient_ids=counterfactuals.patients,
    )
    return metric.compute(direction=counterfactuals.direction, thresholds=scores.thresholds)
