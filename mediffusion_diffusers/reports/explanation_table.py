"""Explained images as rows of numbers, for a table beside the pictures."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..atomic_files import write_json, write_text
from .pictures.explained_image import ExplainedImage


TABLE_FILE, JSON_FILE = "explanations.csv", "explanations.json"


def explanation_rows(explained: Sequence[ExplainedImage]) -> list[dict[str, Any]]:
    """What was asked of each image, and what the model says before and after.

    Args:
        explained: the images.

    Returns:
        A row per image: its `name`, the `label` and `action`; `probability_before`, `probability_after` and
        `probability_null`, in [0, 1]; `change` and `null_change`, the mean absolute change of a pixel as a share of
        the intensity range; `guidance_scale`. What there is not is None.
    """
    rows = []
    for one in explained:
        null = one.null_edit
        rows.append(
            {
                "name": one.name,
                "label": one.label,
                "action": one.action,
                "probability_before": one.original.probability,
                "probability_after": one.counterfactual.probability,
                "probability_null": None if null is None else null.probability,
                "change": one.change_size(one.counterfactual),
                "null_change": None if null is None else one.change_size(null),
                "guidance_scale": None if one.sweep is None else one.sweep.scales[-1],
            }
        )
    return rows


def write_explanation_table(
    explained: Sequence[ExplainedImage], folder: str | Path, settings: Mapping[str, Any] | None = None
) -> None:
    """Write the rows as `explanations.csv`, and with the settings as `explanations.json`.

    Args:
        explained: the images.
        folder: where the files go.
        settings: how the explanations were made.
    """
    rows = explanation_rows(explained)
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(Path(folder) / TABLE_FILE, text.getvalue())
    write_json(Path(folder) / JSON_FILE, {"settings": dict(settings or {}), "explanations": rows})
