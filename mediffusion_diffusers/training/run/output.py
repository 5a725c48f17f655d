"""The folder of a run: that two runs do not mix, what belongs to one, and files that appear whole."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffusers.utils import logging

from ...atomic_files import SUFFIX, read_json, remove
from ..config import HubOptions, RunOptions
from .checkpoints import find_checkpoint, list_checkpoints
from .hub_checkpoints import hub_source


logger = logging.get_logger(__name__)

CONFIG_FILE = "training_config.json"
METRICS_FILE = "metrics.jsonl"
# Written last; one of them says that there is a finished model.
_MODEL_FILES = ("model_index.json", "config.json")
# Arguments that may differ between the first run and the one that resumes it without a word.
_FREE_ARGUMENTS = frozenset(
    (
        *("resume_from_checkpoint", "overwrite_output_dir", "dry_run", "output_dir", "report_to", "hub_model_id"),
        *("push_to_hub", "hub_strategy", "hub_private_repo", "tracker_project_name", "checkpoints_total_limit"),
        *("cache_images", "dataloader_num_workers", "validation_batch_size", "latent_cache_dir"),
    )
)


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
            remove(path)
        for name in (METRICS_FILE, CONFIG_FILE, "README.md", *_MODEL_FILES, "samples", "logs"):
            remove(folder / name)
    for partial in folder.glob(f".*{SUFFIX}"):
        remove(partial)


def warn_about_changes(folder: Path, arguments: Mapping[str, Any]) -> None:
    """Name the options in which a resumed run differs from its beginning, as far as its record can be read.

    Args:
        folder: of the run.
        arguments: all options by name, as they are now.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        return
    try:
        before = dict(read_json(path)["arguments"])
    except (ValueError, TypeError, KeyError):
        logger.warning(f"{path} is damaged, so that nobody can tell which options have changed. It is written anew.")
        return
    now = json.loads(json.dumps(arguments))
    changed = [name for name in now if name in before and before[name] != now[name]]
    for name in sorted(set(changed) - _FREE_ARGUMENTS):
        logger.warning(f"Resuming with `{name}` = {now[name]}, but the run began with {before[name]}.")


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
                remove(target)
            os.replace(entry, target)


def _holds_only_a_model(folder: Path) -> bool:
    return not list_checkpoints(folder) and any((folder / name).exists() for name in _MODEL_FILES)
