"""The notebooks are run, each in an empty folder: Python as it stands, commands at a tiny size."""

import json
from pathlib import Path

import pytest
from execute_notebooks import NOTEBOOKS, execute
from support.documents import run_command_line


PATHS = sorted(NOTEBOOKS.glob("*.ipynb"))


def load(path):
    return json.loads(path.read_text(encoding="utf-8"))


def code_cells(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def kinds(notebook):
    """What each cell shows: printed lines, pictures, values."""
    outputs = [cell["outputs"] for cell in code_cells(notebook)]
    return [[sorted(output.get("data", {"printed": ""})) for output in shown] for shown in outputs]


@pytest.mark.parametrize("path", PATHS, ids=[path.stem for path in PATHS])
def test_notebook_runs_and_shows_what_it_shows(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    notebook = load(path)
    assert kinds(execute(notebook, lambda line: run_command_line(line, monkeypatch))) == kinds(notebook)
    assert any("image/png" in shown for cell in kinds(notebook) for shown in cell)


@pytest.mark.parametrize("path", PATHS, ids=[path.stem for path in PATHS])
def test_a_notebook_is_small_and_names_no_machine(path):
    text = path.read_text(encoding="utf-8")
    assert len(text) < 500_000 and str(Path.home()) not in text and "/tmp/" not in text
    assert all(cell["execution_count"] for cell in code_cells(load(path)))


def test_there_are_three():
    assert [path.stem for path in PATHS] == ["audit", "few_labels", "first_explanation"]


def test_a_cell_shows_its_last_value_and_what_it_prints(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = []
    cells = [
        {"cell_type": "markdown", "source": ["# Title"]},
        {"cell_type": "code", "source": ["print(1)\n", "number = 2\n", "number + 1"]},
        {"cell_type": "code", "source": ["!mediffusion explain \\\n", "    a.png --away Mass"]},
    ]
    ran = execute({"cells": cells}, lines.append)["cells"]
    assert lines == [["mediffusion", "explain", "a.png", "--away", "Mass"]]
    printed, value = ran[1]["outputs"]
    assert printed["text"] == ["1\n"] and value["data"] == {"text/plain": ["3"]} and ran[2]["outputs"] == []
