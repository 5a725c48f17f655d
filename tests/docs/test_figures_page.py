"""The page of figures and the README's table are what the results say, and nothing of them is by hand."""

import json
from pathlib import Path

import pytest
from figures_page import (
    BEGIN,
    MEASURED,
    PAGE,
    README,
    measured_with_table,
    page,
    readme_with_table,
    section,
)
from results_text import cell, number


ROOT = Path(__file__).parents[2]
RESULTS = sorted((ROOT / "benchmarks/results").glob("*.json"))


def test_the_page_is_what_the_results_say():
    assert PAGE.read_text(encoding="utf-8") == page(), "Run `make figures-page`."


@pytest.mark.parametrize(("document", "written"), [(README, readme_with_table), (MEASURED, measured_with_table)])
def test_tables_show_what_the_results_say(document, written):
    text = document.read_text(encoding="utf-8")
    assert written(text) == text, "Run `make figures-page`."


def test_every_results_file_has_its_section():
    text = page()
    assert RESULTS and all(f"results/{path.name})" in text for path in RESULTS)


def test_a_readme_without_the_marks_is_refused():
    with pytest.raises(ValueError, match=r"README\.md must hold the lines"):
        readme_with_table("# A readme\n" + BEGIN)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.12345, "0.123"),
        (83649253, "83,649,253"),
        (4862.3, "4,862"),
        (True, "yes"),
        (None, ""),
        ([0.5, 0.75], "(0.5 to 0.75)"),
        ({"mean": 0.5, "sd": 0.25}, "0.5 ± 0.25"),
        ({"estimate": -0.5, "interval_95": [-0.75, -0.25]}, "-0.5 (-0.75 to -0.25)"),
        ("a | b <c>", "a \\| b &lt;c>"),
        ({"a": 1}, None),
    ],
)
def test_a_value_as_a_cell(value, text):
    assert cell(value) == text


def test_numbers_keep_three_digits():
    assert [number(value) for value in (0.00094, 76.6, 1416.0, 0)] == ["0.00094", "76.6", "1416", "0"]


def test_a_file_nobody_introduced_is_shown_whole(tmp_path):
    path = tmp_path / "new_measure.json"
    path.write_text(json.dumps({"what": "A test.", "ours": {"l1": 0.5}, "theirs": {"l1": 0.75}, "seed": 3}))
    text = "\n".join(section(path))
    assert text.startswith("## new measure\n") and "A test." in text
    assert "seed 3" in text and "| ours | 0.5 |\n| theirs | 0.75 |" in text
