"""The final model appears in the folder of its run as a whole."""

import os

import pytest

from mediffusion_diffusers.training.run.output import holds_run, new_model


def write(folder, text):
    with new_model(folder) as aside:
        (aside / "unet").mkdir()
        for name in ("README.md", "model_index.json", "unet/config.json"):
            (aside / name).write_text(text)


def content(folder):
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_a_model_replaces_the_one_before_it(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("kept")
    write(tmp_path, "old")
    write(tmp_path, "new")
    names = ("README.md", "model_index.json", "unet/config.json")
    assert content(tmp_path) == {"metrics.jsonl": "kept", **dict.fromkeys(names, "new")}


def test_a_model_that_could_not_be_written_changes_nothing(tmp_path):
    write(tmp_path, "old")
    before = content(tmp_path)
    with pytest.raises(OSError, match="full"), new_model(tmp_path) as aside:
        (aside / "model_index.json").write_text("new")
        raise OSError("full")
    assert content(tmp_path) == before


@pytest.mark.parametrize("num_moved", [0, 1, 2])
def test_a_model_of_which_a_part_is_missing_is_not_taken_for_one(tmp_path, monkeypatch, num_moved):
    """At whichever entry the run ends; the same command again makes it whole."""
    write(tmp_path, "old")
    moved, replace = [], os.replace

    def move(source, target):
        if len(moved) == num_moved:
            raise OSError("gone")
        replace(source, target)
        moved.append(target)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="gone"):
        patch.setattr(os, "replace", move)
        write(tmp_path, "new")
    assert not holds_run(tmp_path)
    write(tmp_path, "new")
    assert set(content(tmp_path).values()) == {"new"} and holds_run(tmp_path)
