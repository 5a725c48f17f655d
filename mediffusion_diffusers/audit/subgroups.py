"""AUROC by what is known of patients and pictures: view, sex, age, and a planted marker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..evaluation.bootstrap import bootstrap_macro_auroc
from ..evaluation.classification import auroc


KEYS = ("view", "sex", "age", "has_marker")
AGE_BANDS = ((0, 40), (40, 60), (60, 200))  # years, the upper end excluded


def subgroup_aurocs(
    labels: np.ndarray,
    probabilities: np.ndarray,
    metadata: Sequence[Mapping[str, Any]],
    patient_ids: Sequence[str],
    label_names: Sequence[str],
    num_resamples: int = 500,
) -> list[dict[str, Any]]:
    """AUROC of all images and of each subgroup.

    Args:
        labels: 1, 0 or NaN, shape `(num, num_labels)`.
        probabilities: the model's, same shape; NaN rows (unreadable images) are left out.
        metadata: of each image.
        patient_ids: of each image.
        label_names: names of the columns.
        num_resamples: of patients, for the interval of the macro AUROC.

    Returns:
        For each group `key`, `group`, `num_images`, `macro_auroc` (an `Interval` as a dict) and `auroc` by label, NaN
        without both a positive and a negative image.
    """
    groups: dict[tuple[str, str], list[int]] = {}
    for row in np.flatnonzero(~np.isnan(probabilities).any(1)).tolist():
        groups.setdefault(("all", "all"), []).append(row)
        for key in KEYS:
            group = _group(key, metadata[row].get(key))
            if group is not None:
                groups.setdefault((key, group), []).append(row)
    results = []
    for (key, group), rows in sorted(groups.items(), key=lambda one: (one[0][0] != "all", one[0])):
        interval = bootstrap_macro_auroc(
            labels[rows], probabilities[rows], [patient_ids[row] for row in rows], num_resamples=num_resamples
        )
        results.append(
            {
                "key": key,
                "group": group,
                "num_images": len(rows),
                "macro_auroc": interval.to_dict(),
                "auroc": {
                    name: auroc(labels[rows, column], probabilities[rows, column])
                    for column, name in enumerate(label_names)
                },
            }
        )
    return results


def _group(key: str, value: Any) -> str | None:
    """The subgroup that a value belongs to; None if it is unknown."""
    if value is None:
        return None
    if key == "age":
        known = isinstance(value, (int, float)) and not isinstance(value, bool)
        bands = [(low, high) for low, high in AGE_BANDS if known and low <= value < high]
        return f"{bands[0][0]} to {bands[0][1]}" if bands else None
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
