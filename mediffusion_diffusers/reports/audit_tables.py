"""Audits as tables and sentences, for pages and model cards: `audit.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .tables import Table


SUBGROUP_CAPTION = (
    "AUROC by what is known of patients and pictures. Groups that differ by more than their intervals are served "
    "unequally; a marker that decides shows as a model that is worse within each of its groups than over all."
)
PLACE_CAPTION = (
    "Places that counterfactuals without the finding change again and again. Suspect: in at least half of the images, "
    "with less than a fifth of the change within the finding's boxes."
)


def subgroup_table(results: Mapping[str, Any]) -> Table:
    """A row for all images, then one for each subgroup."""
    rows = []
    for group in results["subgroups"]:
        macro = group["macro_auroc"]
        name = "all" if group["key"] == "all" else f"{group['key'].replace('_', ' ')}: {group['group']}"
        interval = [macro["low"], macro["high"]]
        rows.append([name, group["num_images"], macro["estimate"], interval, *group["auroc"].values()])
    return ["group", "images", "macro AUROC", "95 % interval", *results["subgroups"][0]["auroc"]], rows


def place_table(part: Mapping[str, Any], first: tuple[str, ...] = ()) -> Table:
    """The places of one finding.

    Args:
        part: of the finding.
        first: cells that every row begins with.
    """
    columns = ["place", "share of images", "share of energy", "of it in the finding's boxes", "suspect"]
    keys = ("name", "share_of_images", "share_of_energy", "share_in_boxes")
    rows = [
        [*first, *(place[key] for key in keys), "unknown" if place["is_suspect"] is None else place["is_suspect"]]
        for place in part["places"]
    ]
    return columns, rows


def all_places_table(results: Mapping[str, Any]) -> Table:
    """The places of every finding in one table."""
    tables = {name: place_table(part, (name,)) for name, part in results["findings"].items()}
    columns = next(iter(tables.values()))[0]
    return ["finding", *columns], [row for _, rows in tables.values() for row in rows]


def has_patient_groups(results: Mapping[str, Any]) -> bool:
    """Whether sex, age or view of the images is known; a planted marker tells nothing of patients."""
    return any(group["key"] in ("sex", "age", "view") for group in results["subgroups"])
