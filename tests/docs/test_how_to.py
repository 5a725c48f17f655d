"""The how-tos are run: the Python blocks of each, in their order, in an empty folder."""

import re
from pathlib import Path

import pytest


HOW_TOS = sorted((Path(__file__).parents[2] / "docs/how-to").glob("*.md"))


@pytest.mark.parametrize("document", HOW_TOS, ids=[path.stem for path in HOW_TOS])
def test_how_to_runs_as_it_stands(document, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = document.read_text(encoding="utf-8")
    names = {}
    for block in re.finditer(r"```python\n(.*?)```", text, flags=re.S):
        first_line = text[: block.start(1)].count("\n")  # so that a traceback names the document's line
        exec(compile("\n" * first_line + block[1], str(document), "exec"), names)
    assert names and any(tmp_path.iterdir())


def test_there_are_how_tos():
    assert "dicom" in [path.stem for path in HOW_TOS]
