"""Generation studies as tables and sentences, for pages and model cards: `generation.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .tables import Table, format_value


SETS = {"unguided": "generated, unguided", "guided": "generated, guided", "real": "other real images: the floor"}


def generation_introduction(result: Mapping[str, Any]) -> str:
    """How many images, in whose features."""
    used = result["provenance"]["settings"]
    counts = sorted(set(result["num_images_per_label"].values()))
    each = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return (
        f"{result['guided']['num_images']:,} images, {each} of each label, in {used['num_inference_steps']} "
        f"steps, guided at scale {format_value(used['guidance_scale'])}, against as many real ones. Features: "
        f"{result['network']}; resized: {result['resize']}."
    )


def generation_table(result: Mapping[str, Any]) -> Table:
    """Distance of each set to the real images, as Table 11 of the paper."""
    keys = ("kid", "kid_interval_95", "fid", "num_images")
    rows = [[text, *(result[name][key] for key in keys)] for name, text in SETS.items()]
    return ["", "KID", "95 % interval", "FID", "images"], rows


def generation_label_table(result: Mapping[str, Any]) -> Table:
    """KID of the images of each label to real ones of that label, and what an outside classifier sees in them."""
    columns = ["finding", "images", *(f"KID, {name}" for name in SETS), *(f"oracle sees it, {name}" for name in SETS)]
    rows = []
    for label, found in result["per_label"].items():
        seen = result["oracle_probability"].get(label, {})
        rows.append(
            [
                label,
                result["num_images_per_label"][label],
                *(found[name]["kid"] for name in SETS),
                *(seen.get(name) for name in SETS),
            ]
        )
    return columns, rows


def generation_caption(result: Mapping[str, Any]) -> str:
    """How to read `generation_table`."""
    return (
        "KID is unbiased, so that real images may lie a little below 0; FID grows as images get fewer, so that it is "
        "read against the floor of as many. Both depend on the network: they compare with no other network's."
    )


def memorisation_table(result: Mapping[str, Any]) -> Table:
    """Whether generated images lie nearer to training images than to held-out ones."""
    rows = []
    for view in ("pixels", "features"):
        for name, found in result["memorisation"][view].items():
            share = found["share_nearer_to_training"], found["share_nearer_to_training_interval_95"]
            rows.append([f"{name.replace('_', ' ')}, by {view}", *share, found["distance_ratio"], found["num_images"]])
    return ["", "nearer to training", "95 % interval", "distance ratio", "images"], rows


def memorisation_caption(result: Mapping[str, Any]) -> str:
    """How to read `memorisation_table`."""
    found = result["memorisation"]
    return (
        f"Nearest of {found['num_training_images']:,} training images against nearest of as many held-out ones. "
        "Nearer to training: share of the images; 0.5 if none was learnt by heart. Distance ratio: median of the "
        "distance to training over that to held-out images."
    )
