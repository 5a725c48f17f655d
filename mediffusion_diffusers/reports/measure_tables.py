"""What tells truth from attack, as tables and sentences: of `counterfactuals.json`, for pages and model cards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .tables import CONTROLS, Table, format_value


_CHECKS = {
    "reversibility": "Edited there and back, an image ends {error} of the way from its original (0: there again).",
    "diversity": (
        "Edits of different seeds lie {distance} of their length apart (0: always the same; 1.4: nothing in common), "
        "with a cosine of {cosine} between their changes."
    ),
    "head_randomisation": (
        "With the classifier's head shuffled, the change has a cosine of {cosine} with the trained one's, and its "
        "region an overlap of {region_iou} (of different images: {region_iou_by_chance}): a map that stayed would not "
        "be about the decision."
    ),
}


def has_measures(part: Mapping[str, Any]) -> bool:
    """Whether a study of one direction holds what `measures_table` shows; those of earlier versions do not."""
    return "validity" in part


def measures_table(part: Mapping[str, Any]) -> Table:
    """Distance to the truth, realism and validity of counterfactual, controls and truth of one direction."""
    columns: dict[str, tuple[str, str]] = {}
    if "to_truth" in part:
        columns |= {
            "error": ("to_truth", "error"),
            "cosine": ("to_truth", "cosine"),
            "region IoU": ("to_truth", "region_iou"),
        }
        columns |= {"nearest error": ("to_truth", "nearest_error")} if "nearest_error" in part["to_truth"] else {}
    if "realism" in part:
        columns |= {"edited or real": ("realism", "detector_auroc")}
        columns |= {"KID": ("realism", "kid")} if "kid" in part["realism"] else {}
    columns |= {
        "flips denoised": ("validity", "denoised_flip_rate"),
        "flips smoothed": ("validity", "smoothed_flip_rate"),
        "COUT": ("validity", "cout"),
    }

    def row(name: str, summary: Mapping[str, Any]) -> list[Any]:
        return [name, *(summary.get(family, {}).get(key) for family, key in columns.values())]

    rows = [row("counterfactual", part), *(row(CONTROLS[name], one) for name, one in part["controls"].items())]
    if "truth" in part:
        rows.append(row("true counterfactual", part["truth"]))
    return ["", *columns], rows


def measures_caption(part: Mapping[str, Any]) -> str:
    """How to read `measures_table`."""
    return " ".join(_sentences(part))


def _sentences(part: Mapping[str, Any]) -> Iterator[str]:
    if "to_truth" in part:
        yield (
            "Error: distance to the true counterfactual as a share of the original's own; 1 is no closer than not "
            "editing at all. Cosine: of the change made with the one that should be. Region IoU: overlap of where "
            "they are. The counterfactuals' error lies in "
            f"{format_value(part['to_truth']['error_interval_95'])} (95 %, over patients)."
        )
        if "nearest_error" in part["to_truth"]:
            yield f"Nearest error: to the nearest of {part['to_truth']['num_ways']} true ways to add the finding."
    realism = part.get("realism", {})
    if realism:
        yield (
            f"Edited or real: AUROC of a detector ({realism['detector']}) against {realism['compared_with']}; 0.5 "
            "cannot be told."
        )
    if "kid" in realism:
        yield (
            f"KID to them in the features of the outside classifier ({realism['network']}); real images among "
            f"themselves have {format_value(realism['kid_floor'])}. FID (of halves): {format_value(realism['fid'])}, "
            f"of real images {format_value(realism['fid_floor'])}."
        )
    yield (
        "Flips denoised: decisions that turn over if original and edit are noised and denoised alike; flips smoothed: "
        "if the classifier is averaged over noise; COUT: how early the most changed pixels turn the decision over, "
        "from -1 to 1."
    )
    against = part["controls"].get("plain_gradient", {}).get("ours_minus_it", {})
    if "error" in against:
        yield (
            f"Counterfactual minus plain gradient: error {format_value(against['error'])} "
            f"({format_value(against['error_interval_95'])}), cosine {format_value(against['cosine'])} "
            f"({format_value(against['cosine_interval_95'])})."
        )


def sanity_sentences(part: Mapping[str, Any]) -> str:
    """What the sanity checks found; empty without any."""
    checks = part.get("checks") or {}
    sentences = []
    for name, text in _CHECKS.items():
        if name in checks:
            figures = {key: format_value(value) for key, value in checks[name].items()}
            sentences.append(f"{text.format(**figures)} ({checks['num_images']} images.)")
    return " ".join(sentences)
