"""The page of a counterfactual study: its pictures, tables and provenance."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from ...atomic_files import write_json
from ...evaluation.counterfactual_study import CounterfactualStudy
from ..pictures.counterfactual_study import CONTROLS, HEADINGS, draw_study
from .report import HtmlReport


RESULTS_FILE = "counterfactuals.json"
REPORT_FILE = "report.html"


def write_study(study: CounterfactualStudy, output_dir: str | Path) -> Path:
    """Write `counterfactuals.json`, the pictures as PNG and `report.html`.

    Returns:
        Path of the report.
    """
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    figures = draw_study(study)
    for name, figure in figures.items():
        figure.save(folder / f"{name}.png", optimize=True)
    results = study.to_dict()
    report = HtmlReport("Counterfactuals", f"{results['provenance']['data']}, split {results['provenance']['split']}")
    add_counterfactuals(report, results, figures)
    report.add_section("Provenance").add_provenance(shown_provenance(results["provenance"]))
    path = report.save(folder / REPORT_FILE)
    write_json(folder / RESULTS_FILE, results)  # last: it says that the study is complete
    return path


def add_counterfactuals(
    report: HtmlReport, results: Mapping[str, Any], figures: Mapping[str, Image.Image]
) -> HtmlReport:
    """Add a section for each direction of a study.

    Args:
        report: where to add them.
        results: `CounterfactualStudy.to_dict()`, or the JSON file that holds it.
        figures: `draw_study(study)`, or `load_figures(folder)`.
    """
    for direction in ("remove", "add"):
        if direction not in results:
            continue
        part = results[direction]
        report.add_section(HEADINGS[direction], _introduction(direction, part))
        report.add_figure(figures[f"panel-{direction}"], _panel_caption(direction, part), HEADINGS[direction])
        report.add_table(*_main_table(part), caption=_main_caption(part), strong_rows=[0])
        if f"oracle-{direction}" in figures:
            report.add_figure(
                figures[f"oracle-{direction}"],
                "Mean change of the outside classifier's probability of the target, by finding. A counterfactual "
                "that shows the finding moves it far; the null edit and random noise should hardly move it. The plain "
                "gradient, which flips the model just as well without any diffusion, is the bar to beat.",
            )
        report.add_table(*_label_table(part), caption=_label_caption(part))
    for note in results["notes"]:
        report.add_text(f"Note: {note}")
    return report


def shown_provenance(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """The provenance without long lists, for a table."""
    shown = {key: value for key, value in provenance.items() if key != "image_ids"}
    for key in ("settings", "selection"):
        if isinstance(shown.get(key), Mapping):
            shown[key] = "; ".join(f"{name}: {value}" for name, value in shown[key].items())
    return shown


def _introduction(direction: str, part: Mapping[str, Any]) -> str:
    text = f"{part['num_images']} images: {part['selection']}."
    if direction == "add":
        return text + " There is no box to find here: a finding may be added in other places than an expert's."
    return text


def _panel_caption(direction: str, part: Mapping[str, Any]) -> str:
    text = (
        "Each row is one held-out image, the first of its finding by the rule above. The difference is counterfactual "
        "minus original: blue became darker, red brighter. The null edit went the same way without guidance: it shows "
        "what the method changes by itself. Numbers are probabilities of the finding before → after, by the model "
        "and, if present, by an outside classifier (oracle) that was trained on other patients."
    )
    if direction == "remove" and "localisation" in part:
        text += " The lime box marks where the finding is."
    if "truth" in part:
        text += " The true counterfactual is the same generated patient drawn anew, with this one finding toggled."
    return text


def _main_table(part: Mapping[str, Any]) -> tuple[list[str], list[list[Any]]]:
    """Counterfactual, null edit, controls and truth, side by side."""
    has_oracle, has_boxes, has_truth = "oracle" in part, "localisation" in part, "truth" in part
    columns = ["", "own flips"]
    columns += ["oracle Diff", "oracle Other diff", "oracle flips"] if has_oracle else []
    columns += ["L1", "high frequency"] + (["inside / outside", "in a wrong box"] if has_boxes else [])
    columns += ["cosine to truth"] if has_truth else []

    def row(name: str, summary: Mapping[str, Any], localisation: Mapping[str, Any] | None) -> list[Any]:
        cells: list[Any] = [name, summary["own"]["flip_rate"]]
        if has_oracle:
            oracle = summary["oracle"]
            cells += [oracle["diff"], oracle["other_diff"], oracle["flip_rate"]]
        cells += [summary["change"]["l1"], summary["change"]["high_frequency_share"]]
        if has_boxes:
            cells += [(localisation or {}).get(key) for key in ("ratio", "wrong_box_ratio")]
        return [*cells, summary.get("cosine_to_truth")] if has_truth else cells

    rows = [row("counterfactual", part, part.get("localisation", {}).get("vs_original"))]
    null: list[Any] = ["null edit", None]
    if has_oracle:
        null += [part["oracle"]["null"] - part["oracle"]["before"], part["oracle"]["null_other_diff"], None]
    rows.append(null + [part["change"]["null_l1"]] + [None] * (1 + 2 * has_boxes + has_truth))
    for name, control in part["controls"].items():
        rows.append(row(CONTROLS[name].partition(",")[0], control, control.get("localisation")))
    if has_truth:
        rows.append(row("true counterfactual", part["truth"], None))
    return columns, rows


def _main_caption(part: Mapping[str, Any]) -> str:
    text = (
        "Own flips: share of the model's decisions that turned over; any change can do that. Diff: mean change of the "
        "target's probability (Tables 4 to 7). Other diff: mean absolute change of the other findings'. L1: mean "
        "absolute change of a pixel, as a share of the intensity range. High frequency: share of the change's "
        "energy above half of the highest frequency; white noise has 0.80. Gradient and noise are scaled, image by "
        "image, to the counterfactual's L1."
    )
    if "localisation" in part:
        text += (
            " Inside/outside: median ratio of the change inside the true box to that outside. In a wrong box: the "
            "same in boxes of other findings. An image-independent change of the central body would earn "
            f"{part['localisation']['vs_original']['central_body_ratio']:.2f}."
        )
    if "truth" in part:
        text += (
            " Cosine to truth: between the change made and the one that the true counterfactual makes; 1 is perfect."
        )
    return text


def _label_table(part: Mapping[str, Any]) -> tuple[list[str], list[list[Any]]]:
    has_oracle, has_boxes = "oracle" in part, "localisation" in part
    columns = ["finding", "images", "own before", "own after", "own flips"]
    columns += ["oracle before", "oracle after", "Diff", "Other diff"] if has_oracle else []
    columns += ["inside / outside", "wrong box", "average box"] if has_boxes else []
    rows = []
    for name, summary in part["per_label"].items():
        own = summary["own"]
        cells = [name, summary["num_images"], own["before"], own["after"], own["flip_rate"]]
        if has_oracle:
            cells += [summary["oracle"][key] for key in ("before", "after", "diff", "other_diff")]
        if has_boxes:
            local = part["localisation"]["vs_original"]["per_label"].get(name, {})
            cells += [local.get(key) for key in ("ratio", "wrong_box_ratio", "average_box_ratio")]
        rows.append(cells)
    return columns, rows


def _label_caption(part: Mapping[str, Any]) -> str:
    text = "By finding, as Tables 4 to 7 of the paper."
    if "localisation" in part:
        text += " Average box: what the finding's mean box over the other images, which sees no image, would earn."
    return text
