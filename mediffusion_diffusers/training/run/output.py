"""The folder of a run: that two runs do not mix, what belongs to one, and files that appear whole."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...atomic_files import SUFFIX
from ..config import HubOptions, RunOptions
from .checkpoints import find_checkpoint, list_checkpoints
from .hub_checkpoints import hub_source


CONFIG_FILE = "training_config.json"
METRICS_FILE = "metrics.jsonl"
# Written last; one of them says that there is a finished model.
_MODEL_FILES = ("model_index.json", "config.json")


def holds_run(output_dir: Path) -> bool:
    """Whether a folder holds checkpoints, metrics or the model of a run."""
    names = (METRICS_FILE, *_MODEL_FILES)
    return bool(list_checkpoints(output_dir)) or any((output_dir / name).exists() for name in names)


def check_output_folder(run: RunOptions, hub: HubOptions) -> None:
    """Refuse to mix two runs, before any work.

    Raises:
        ValueError: if `output_dir` holds a run that is neither to be resumed nor overwritten, or a model that has
            nothing to be resumed from.
    """
    assert run.output_dir is not None
    folder, resume_from = Path(run.output_dir), run.resume_from_checkpoint
    source = hub_source(resume_from, hub.hub_model_id)
    if holds_run(folder) and not run.overwrite_output_dir:
        if resume_from is None:
            raise ValueError(
                f"`output_dir` {run.output_dir!r} holds another run. Continue it with `--resume_from_checkpoint "
                "latest`, delete it with `--overwrite_output_dir`, or choose another folder."
            )
        if source is None and resume_from == "latest" and _holds_only_a_model(folder):
            raise ValueError(
                f"`output_dir` {run.output_dir!r} holds a finished model and no checkpoint to go on from. Replace it "
                "with `--overwrite_output_dir`, or choose another folder."
            )
    if resume_from not in (None, "latest") and source is None and not run.overwrite_output_dir:
        find_checkpoint(folder, str(resume_from))


def prepare_output_folder(folder: Path, overwrite: bool) -> None:
    """Delete another run's files if asked to, and what a killed run left half written.

    Args:
        folder: of the run.
        overwrite: whether an earlier run is deleted.
    """
    if holds_run(folder) and overwrite:
        for path in list_checkpoints(folder):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        for name in (METRICS_FILE, CONFIG_FILE, "README.md", *_MODEL_FILES):
            (folder / name).unlink(missing_ok=True)
        for name in ("samples", "logs"):
            shutil.rmtree(folder / name, ignore_errors=True)
    for partial in folder.glob(f".*{SUFFIX}"):
        shutil.rmtree(partial) if partial.is_dir() else partial.unlink()


@contextmanager
def new_model(output_dir: Path) -> Iterator[Path]:
    """A folder to write the final model into, whose entries replace those of the run's folder at the end of the block.

    What says that there is a finished model goes first and comes last: a killed run leaves no model of two halves.

    Args:
        output_dir: of the run.

    Yields:
        An empty folder inside `output_dir`.
    """
    with tempfile.TemporaryDirectory(dir=output_dir, prefix=".model.", suffix=SUFFIX) as aside:
        yield Path(aside)
        for name in _MODEL_FILES:
            (output_dir / name).unlink(missing_ok=True)
        for entry in sorted(Path(aside).iterdir(), key=lambda entry: entry.name in _MODEL_FILES):
            target = output_dir / entry.name
            if target.is_dir():
                shutil.rmtree(target)
            os.replace(entry, target)


def _holds_only_a_model(folder: Path) -> bool:
    return not list_checkpoints(folder) and any((folder / name).exists() for name in _MODEL_FILES)
