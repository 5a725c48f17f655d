"""What a reader study found: figures as JSON, box plots, and a page of both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...atomic_files import write_json
from ...evaluation.classification import nan_to_none
from ...reader_study.answers import Answer
from ...reader_study.design import GRADES
from ...reader_study.pairs import DIRECTIONS
from ...reader_study.results import study_results
from ..pictures.drawing import save_picture
from ..pictures.reader_study import grade_box_plots
from ..tables import HEADINGS
from .report import HtmlReport


RESULTS_FILE, PICTURE_FILE, PAGE_FILE = "reader_study.json", "reader_study.png", "reader_study.html"
_ALPHA = (
    "Agreement is Krippendorff's alpha for ordinal grades: 1 if all readers give each pair the same grade, 0 for what "
    "chance gives. Below 0.67 little can be concluded from single grades."
)
_TESTS = (
    "Differences are first minus second method, averaged over the readers of a case; p-values are of Wilcoxon's "
    "signed-rank test over cases, two-sided, the last column corrected for the number of comparisons (Holm)."
)


def write_reader_study(answers: Sequence[Answer], output_dir: str | Path) -> Path:
    """Write `reader_study.json`, the box plots as `reader_study.png`, and the page.

    Args:
        answers: of all readers, joined with the key.
        output_dir: where the files go.

    Returns:
        Path of the page.
    """
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    results = nan_to_none(study_results(answers))
    picture = grade_box_plots(answers, results["methods"])
    save_picture(picture, folder / PICTURE_FILE)
    report = HtmlReport("Reader study", f"{results['num_answers']} answers of {results['num_readers']} readers")
    report.add_text(
        "Readers saw an original and a changed image, did not know which method had changed it, and said how visible "
        f"the finding is in the changed image, from 1 ({GRADES[0].lower()} than in the original) to {len(GRADES)} "
        f"({GRADES[-1].lower()})."
    )
    report.add_figure(
        picture,
        "Grades by method, as Fig. 6 of the paper. Boxes hold the middle half, thick lines are medians, diamonds "
        "means; dots are as large as the share of answers with that grade.",
    )
    for direction in DIRECTIONS:
        if direction in results:
            _add_direction(report, direction, results[direction])
    alpha = {"agreement of all answers": results["alpha"], "median seconds per pair": results["median_seconds"]}
    report.add_section("Readers", _ALPHA).add_provenance(alpha)
    page = report.save(folder / PAGE_FILE)
    write_json(folder / RESULTS_FILE, results)  # last: it says that all is there
    return page


def _add_direction(report: HtmlReport, direction: str, part: Mapping[str, Any]) -> None:
    report.add_section(HEADINGS[direction], f"{part['num_cases']} cases; {part['meaning']}.")
    columns = ["method", "answers", "mean", "median", "middle half", *(str(grade + 1) for grade in range(len(GRADES)))]
    rows = []
    for method, grades in part["grades"].items():
        quartiles = grades["quartiles"] or [None] * 3
        counts = [grades["counts"].get(str(grade + 1), 0) for grade in range(len(GRADES))]
        middle_half = [quartiles[0], quartiles[2]]
        rows.append([_shown(method), grades["num_answers"], grades["mean"], quartiles[1], middle_half, *counts])
    report.add_table(columns, rows, caption="Grades, and on the right how many answers had each.")
    names = ("num_cases", "mean_difference", "p_value", "p_value_holm")
    tests = [
        [_shown(test["first"]), _shown(test["second"]), *(test[name] for name in names)] for test in part["tests"]
    ]
    report.add_table(["first", "second", "cases", "mean difference", "p", "p corrected"], tests, caption=_TESTS)
    alpha = part["alpha"]
    report.add_text("Agreement between readers: " + ("not defined." if alpha is None else f"alpha {alpha:.2f}."))


def _shown(method: str) -> str:
    return method.replace("_", " ")
