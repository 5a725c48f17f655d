"""The final model appears in the folder of its run as a whole."""

import json
import os

import pytest

from mediffusion_diffusers.training.run import output
from mediffusion_diffusers.training.run.output import (
    CONFIG_FILE,
    holds_run,
    new_model,
    prepare_output_folder,
    warn_about_changes,
)


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


def test_a_run_whose_parts_are_links_can_be_replaced(tmp_path):
    """As they are where checkpoints lie on another disk."""
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    for folder in (run, elsewhere / "checkpoint-2", elsewhere / "samples", elsewhere / "unet"):
        folder.mkdir(parents=True)
    for target in elsewhere.iterdir():
        (run / target.name).symlink_to(target)
    write(run, "new")
    assert not (run / "unet").is_symlink() and list((elsewhere / "unet").iterdir()) == []
    prepare_output_folder(run, overwrite=True)
    assert not holds_run(run) and not os.path.lexists(run / "samples")
    assert sorted(os.listdir(elsewhere)) == ["checkpoint-2", "samples", "unet"]


@pytest.mark.parametrize("content", ["{bad", "[]", '{"arguments": 3}', "[" * 100_000, "\udcff", "{}"])
def test_a_damaged_record_of_the_options_does_not_end_a_resumed_run(tmp_path, monkeypatch, content):
    (tmp_path / CONFIG_FILE).write_text(content, errors="surrogateescape")
    said = []
    monkeypatch.setattr(output.logger, "warning", said.append)
    warn_about_changes(tmp_path, {"seed": 1})
    assert len(said) == 1 and f"{CONFIG_FILE} is damaged" in said[0]


def test_options_that_have_changed_are_named(tmp_path, monkeypatch):
    (tmp_path / CONFIG_FILE).write_text(json.dumps({"arguments": {"seed": 0, "betas": [1, 2], "output_dir": "a"}}))
    said = []
    monkeypatch.setattr(output.logger, "warning", said.append)
    warn_about_changes(tmp_path, {"seed": 1, "betas": (1, 2), "output_dir": "b", "new": 3})
    assert said == ["Resuming with `seed` = 1, but the run began with 0."]
