"""Evaluations as tables and sentences, for pages and model cards: `classification.json` and `counterfactuals.json`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


Table = tuple[list[str], list[list[Any]]]  # headings, and rows of cells
HEADINGS = {"remove": "Removing a finding", "add": "Adding a finding"}
CONTROLS = {
    "plain_gradient": "plain gradient",
    "random_noise": "random noise",
    "average_change": "others' average change",
    "random_region": "same edit, random region",
    "inverse_region": "same edit, inverse region",
}
CLASSIFICATION_CAPTION = (
    "Sensitivity at the threshold that gave 90 % or 95 % specificity on the validation patients, and the specificity "
    "that it gives here. A random score has AUROC 0.5 and an AUPRC of the prevalence. ECE: expected calibration "
    "error; slope and intercept of a calibrated model are 1 and 0."
)
CALIBRATED_CAPTION = (
    "Calibrated: by what the checkpoint stores, fitted on validation images and used where it is asked for."
)
OPERATING_CAPTION = (
    "Thresholds were chosen on the validation images; sensitivity and specificity are those they give here."
)
_SPECIFICITIES = {"0.90": "90 %", "0.95": "95 %"}


def format_value(value: Any) -> str:
    """A cell's text: three decimals for fractions, thousands separators for counts, a dash for nothing.

    Example:
        >>> [format_value(value) for value in (0.12345, -0.5, 10.0, 12000, None, float("nan"), "Mass", [0.1, 0.2])]
        ['0.123', '−0.500', '10', '12,000', '–', '–', 'Mass', '0.100 to 0.200']
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}".replace("-", "−")
    if isinstance(value, float):
        digits = 0 if abs(value) >= 100 or (abs(value) >= 10 and value.is_integer()) else 3
        return f"{value:.{digits}f}".replace("-", "−")
    if isinstance(value, (list, tuple)) and len(value) == 2:
        return f"{format_value(value[0])} to {format_value(value[1])}"
    return str(value)


def classification_introduction(result: Mapping[str, Any]) -> str:
    """Images, patients and the figures over all labels."""
    interval = result["macro_auroc_interval"]
    text = (
        f"{_counted(result['num_images'], interval.get('num_patients'))}. Macro AUROC "
        f"{format_value(result['macro_auroc'])}, 95 % interval {format_value([interval['low'], interval['high']])} "
        f"(bootstrap over patients); macro AUPRC {format_value(result['macro_auprc'])}"
    )
    return text + (f"; accuracy {format_value(result['accuracy'])}." if "accuracy" in result else ".")


def classification_table(result: Mapping[str, Any]) -> Table:
    """The figures of each label."""
    columns = ["finding", "positives", "AUROC", "AUPRC", "prevalence"]
    for name in _SPECIFICITIES.values():
        columns += [f"sensitivity ({name})", "at specificity"]
    rows = []
    for name, label in result["per_label"].items():
        cells = [name, *(label[key] for key in ("num_positives", "auroc", "auprc", "prevalence"))]
        for level in _SPECIFICITIES:
            cells += [label["sensitivity_at_specificity"][level], label["specificity_reached"][level]]
        rows.append(cells + [label[key] for key in ("brier", "ece", "calibration_slope", "calibration_intercept")])
    return [*columns, "Brier", "ECE", "slope", "intercept"], rows


def operating_table(result: Mapping[str, Any]) -> Table:
    """Where to put the threshold of each label for a stated sensitivity or specificity, and what it gives here."""
    columns = ["finding", "threshold of the labels"]
    for level in _SPECIFICITIES.values():
        columns += [f"for specificity {level}", "sensitivity", f"for sensitivity {level}", "specificity"]
    rows = []
    for name, label in result["per_label"].items():
        cells = [name, label["threshold"]]
        for key in _SPECIFICITIES:
            cells += [label["thresholds"][f"specificity {key}"], label["sensitivity_at_specificity"][key]]
            cells += [label["thresholds"][f"sensitivity {key}"], label["specificity_at_sensitivity"][key]]
        rows.append(cells)
    return columns, rows


def calibrated_table(result: Mapping[str, Any]) -> Table:
    """Probabilities as trained, and as the checkpoint's stored calibration corrects them."""
    keys = {"brier": "Brier", "ece": "ECE", "slope": "slope", "intercept": "intercept"}
    rows = []
    for name, after in result["calibrated"]["per_label"].items():
        label = result["per_label"][name]
        before = {**label, "slope": label["calibration_slope"], "intercept": label["calibration_intercept"]}
        rows.append([name, *(value for key in keys for value in (before[key], after[key]))])
    return ["finding", *(text for name in keys.values() for text in (name, "calibrated"))], rows


def calibration_table(results: Mapping[str, Any]) -> Table:
    """The setting chosen for each direction, and what it does on the images it was chosen on."""
    columns = {
        "direction": "direction",
        "strength": "strength",
        "region": "mask",
        "guidance scale": "guidance_scale",
        "own probability": "probability",
        "of real images": "wanted",
        "own flips": "flip_rate",
        "L1": "l1",
        "images": "num_images",
    }
    rows = [[trial.get(key) for key in columns.values()] for trial in results["chosen"]]
    return list(columns), rows


def study_introduction(direction: str, part: Mapping[str, Any]) -> str:
    """Which images, and how many, a direction was studied on."""
    text = f"{_counted(part['num_images'], part.get('num_patients'))}: {part['selection']}."
    if direction == "add":
        return text + " There is no box to find here: a finding may be added in other places than an expert's."
    return text


def study_table(part: Mapping[str, Any]) -> Table:
    """What classifiers say of counterfactual, null edit, controls and truth of one direction, side by side."""
    has_oracle, has_boxes = "oracle" in part, "localisation" in part
    columns = ["", "own flips"]
    columns += ["oracle Diff", "oracle Other diff", "oracle flips"] if has_oracle else []
    columns += ["L1", "high frequency"] + (["inside / outside", "in a wrong box"] if has_boxes else [])

    def row(name: str, summary: Mapping[str, Any], localisation: Mapping[str, Any] | None) -> list[Any]:
        cells: list[Any] = [name, summary["own"]["flip_rate"]]
        if has_oracle:
            oracle = summary["oracle"]
            cells += [oracle["diff"], oracle["other_diff"], oracle["flip_rate"]]
        cells += [summary["change"]["l1"], summary["change"]["high_frequency_share"]]
        if has_boxes:
            cells += [(localisation or {}).get(key) for key in ("ratio", "wrong_box_ratio")]
        return cells

    rows = [row("counterfactual", part, part.get("localisation", {}).get("vs_original"))]
    null: list[Any] = ["null edit", None]
    if has_oracle:
        null += [part["oracle"]["null"] - part["oracle"]["before"], part["oracle"]["null_other_diff"], None]
    rows.append(null + [part["change"]["null_l1"]] + [None] * (1 + 2 * has_boxes))
    for name, control in part["controls"].items():
        rows.append(row(CONTROLS[name], control, control.get("localisation")))
    if "truth" in part:
        rows.append(row("true counterfactual", part["truth"], None))
    return columns, rows


def study_caption(part: Mapping[str, Any]) -> str:
    """How to read `study_table`."""
    text = (
        "Own flips: share of the model's decisions that turned over; any change can do that. Diff: mean change of the "
        "target's probability (Tables 4 to 7). Other diff: mean absolute change of the other findings'. L1: mean "
        "absolute change of a pixel, as a share of the intensity range. High frequency: share of the change's "
        "energy above half of the highest frequency; white noise has 0.80. Gradient, noise and average change are "
        "scaled, image by image, to the counterfactual's L1; the gradient is confined to its region."
    )
    if "localisation" in part:
        text += (
            " Inside/outside: median ratio of the change inside the true box to that outside. In a wrong box: the "
            "same in boxes of other findings. An image-independent change of the central body would earn "
            f"{format_value(part['localisation']['vs_original'].get('central_body_ratio'))}."
        )
    return text


def study_label_table(part: Mapping[str, Any]) -> Table:
    """The figures of one direction by finding, as Tables 4 to 7 of the paper."""
    has_oracle, has_boxes = "oracle" in part, "localisation" in part
    columns = ["finding", "images", "own before", "own after", "own flips"]
    columns += ["oracle before", "oracle after", "Diff", "Other diff"] if has_oracle else []
    columns += ["error to truth", "cosine"] if "to_truth" in part else []
    columns += ["inside / outside", "wrong box", "average box"] if has_boxes else []
    rows = []
    for name, summary in part["per_label"].items():
        own = summary["own"]
        cells = [name, summary["num_images"], own["before"], own["after"], own["flip_rate"]]
        if has_oracle:
            cells += [summary["oracle"][key] for key in ("before", "after", "diff", "other_diff")]
        if "to_truth" in part:
            cells += [summary["to_truth"][key] for key in ("error", "cosine")]
        if has_boxes:
            local = part["localisation"]["vs_original"].get("per_label", {}).get(name, {})
            cells += [local.get(key) for key in ("ratio", "wrong_box_ratio", "average_box_ratio")]
        rows.append(cells)
    return columns, rows


def study_label_caption(part: Mapping[str, Any]) -> str:
    """How to read `study_label_table`."""
    text = "By finding, as Tables 4 to 7 of the paper."
    if "localisation" in part:
        text += " Average box: what the finding's mean box over the other images, which sees no image, would earn."
    return text


def _counted(num_images: int, num_patients: int | None) -> str:
    text = f"{num_images:,} image{'' if num_images == 1 else 's'}"
    if num_patients is None:
        return text
    return f"{text} of {num_patients:,} patient{'' if num_patients == 1 else 's'}"
