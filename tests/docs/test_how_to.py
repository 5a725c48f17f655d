"""The how-tos are run, each in an empty folder: Python blocks as they stand, commands at a tiny size."""

from pathlib import Path

import pytest
from support.documents import run_document


HOW_TOS = sorted((Path(__file__).parents[2] / "docs/how-to").glob("*.md"))


@pytest.mark.parametrize("document", HOW_TOS, ids=[path.stem for path in HOW_TOS])
def test_how_to_runs_as_it_stands(document, tmp_path, monkeypatch, hub):
    monkeypatch.chdir(tmp_path)
    if document.stem == "publish":
        (tmp_path / "space").symlink_to(document.parents[2] / "space")  # it is run from a clone
    with hub.this_process(hub.token):
        names = run_document(document, monkeypatch)
    assert names and any(tmp_path.iterdir())


def test_there_are_how_tos():
    assert {"own_folder", "dicom", "few_labels", "million_images", "reader_study", "publish"} == {
        path.stem for path in HOW_TOS
    }
