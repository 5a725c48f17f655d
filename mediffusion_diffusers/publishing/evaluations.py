"""What was measured of a checkpoint, kept beside it in `evaluation/`: what the evaluation scripts wrote, as JSON."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..atomic_files import read_json, write_json
from ..evaluation.provenance import checkpoint_hash
from ..privacy import is_local_path


FOLDER = "evaluation"
KINDS = ("classification", "calibration", "counterfactuals", "generation", "audit")  # in the order of a card
_NEEDED = ("data", "split", "checkpoint")


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of a checkpoint.

    Args:
        kind: one of `KINDS`.
        results: content of `classification.json`, `guidance_calibration.json`, `counterfactuals.json`,
            `generation.json` or `audit.json`.

    Raises:
        ValueError: for another kind, or results whose provenance does not name data, split and checkpoint, or that are
            damaged.
    """

    kind: str
    results: Mapping[str, Any]

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"`kind` must be one of {', '.join(map(repr, KINDS))}, but got {self.kind!r}.")
        found = self.results.get("provenance") if isinstance(self.results, Mapping) else None
        provenance = found if isinstance(found, Mapping) else {}
        missing = [name for name in _NEEDED if not isinstance(provenance.get(name), str)]
        if missing:
            raise ValueError(
                f"`results` must name {', '.join(missing)} in their provenance, but do not. Pass what the evaluation "
                "scripts write."
            )
        macro_auroc, notes = self.results.get("macro_auroc"), self.results.get("notes")
        if not isinstance(macro_auroc, (int, float, type(None))) or not isinstance(notes, (list, tuple, type(None))):
            raise ValueError("`macro_auroc` of `results` must be a number, and `notes` a list.")

    @property
    def provenance(self) -> Mapping[str, Any]:
        """Where the results come from."""
        return self.results["provenance"]

    @property
    def file_name(self) -> str:
        """Name of the file: a new evaluation of the same kind, data and split takes the place of the former one."""
        words = [re.sub(r"[^\w.-]+", "-", self.provenance[name]).strip("-.") for name in ("data", "split")]
        return "-".join([self.kind, *words]) + ".json"


def keep_evaluation(pipeline_folder: str | Path, evaluation: Evaluation) -> Path:
    """Write an evaluation beside the checkpoint, without the images' names, which may name patients.

    Args:
        pipeline_folder: folder of the evaluated pipeline.
        evaluation: what was measured.

    Returns:
        Path of the file.

    Raises:
        ValueError: if the evaluation is of another checkpoint.
    """
    folder = Path(pipeline_folder)
    checkpoint = checkpoint_hash(folder)
    if evaluation.provenance["checkpoint"] != checkpoint:
        raise ValueError(
            f"`results` are of checkpoint {evaluation.provenance['checkpoint']}, but {str(folder)!r} holds "
            f"{checkpoint} by now. Evaluate it again."
        )
    public = {
        name: value
        for name, value in evaluation.provenance.items()
        if name in _NEEDED or not (name == "image_ids" or is_local_path(value))
    }
    path = folder / FOLDER / evaluation.file_name
    path.parent.mkdir(exist_ok=True)
    write_json(path, {"kind": evaluation.kind, **evaluation.results, "provenance": public})
    return path


def kept_evaluations(pipeline_folder: str | Path) -> list[Evaluation]:
    """The evaluations of the checkpoint that a folder holds; those of a former checkpoint are left out.

    Args:
        pipeline_folder: folder of a pipeline.

    Raises:
        ValueError: for a file that holds no evaluation, naming it.
    """
    folder = Path(pipeline_folder)
    paths = sorted((folder / FOLDER).glob("*.json"))
    checkpoint = checkpoint_hash(folder) if paths else ""
    evaluations = []
    for path in paths:
        try:
            content = read_json(path)
            evaluation = Evaluation(content.pop("kind"), content)
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ValueError(f"{str(path)!r} holds no evaluation: {error}. Delete it, or evaluate again.") from error
        if evaluation.provenance["checkpoint"] == checkpoint:
            evaluations.append(evaluation)
    return sorted(evaluations, key=lambda one: KINDS.index(one.kind))
