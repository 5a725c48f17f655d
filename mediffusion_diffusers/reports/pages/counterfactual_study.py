"""The page of a counterfactual study: its pictures, tables and provenance."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from ...atomic_files import write_json
from ...evaluation.finished_study import CounterfactualStudy
from ..measure_tables import has_measures, measures_caption, measures_table, sanity_sentences
from ..pictures.counterfactual_study import draw_study
from ..pictures.drawing import save_picture
from ..tables import HEADINGS, study_caption, study_introduction, study_label_caption, study_label_table, study_table
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
        save_picture(figure, folder / f"{name}.png")
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
        report.add_section(HEADINGS[direction], study_introduction(direction, part))
        report.add_figure(figures[f"panel-{direction}"], _panel_caption(direction, part), HEADINGS[direction])
        report.add_table(*study_table(part), caption=study_caption(part), strong_rows=[0])
        if has_measures(part):
            report.add_table(*measures_table(part), caption=measures_caption(part), strong_rows=[0])
        if checks := sanity_sentences(part):
            report.add_text(checks)
        if f"oracle-{direction}" in figures:
            report.add_figure(
                figures[f"oracle-{direction}"],
                "Mean change of the outside classifier's probability of the target, by finding. A counterfactual "
                "that shows the finding moves it far; the null edit and random noise should hardly move it. The plain "
                "gradient, which flips the model just as well without any diffusion, is the bar to beat.",
            )
        report.add_table(*study_label_table(part), caption=study_label_caption(part))
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


def _panel_caption(direction: str, part: Mapping[str, Any]) -> str:
    text = (
        "Each row is one held-out image, the first of its finding by the rule above. The difference is counterfactual "
        "minus original: blue became darker, red brighter. Numbers are probabilities of the finding before → after, "
        "by the model and, if present, by an outside classifier (oracle) that was trained on other patients."
    )
    if part["change"]["null_l1"]:
        text += " The null edit went the same way without guidance: it shows what the method changes by itself."
    if direction == "remove" and "localisation" in part:
        text += " The lime box marks where the finding is."
    if "truth" in part:
        text += (
            " Beside it the true counterfactual: the same generated patient drawn anew, with this one finding toggled."
        )
        if direction == "add":
            text += " An addition has many true answers, on either side and of any size: this is one of them."
    return text
