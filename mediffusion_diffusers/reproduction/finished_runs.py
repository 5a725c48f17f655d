"""Results that runs have left in their folders: `classification.json`, `counterfactuals.json`, `generation.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..atomic_files import read_json
from ..options import Range, check_number
from ..publishing.evaluations import Evaluation


OURS, WITHOUT_DIFFUSION = "Mediffusion", "U-Net without diffusion"
# By kind, what the tables take of a results file beside its provenance, at its top.
_TABLED = {
    "classification": {"macro_auroc", "macro_auroc_interval"},
    "counterfactuals": set[str](),
    "generation": {"guided", "unguided", "real", "per_label", "num_images_per_label", "memorisation", "notes"},
}
KINDS = tuple(_TABLED)


@dataclass(frozen=True)
class FinishedRun:
    """What was measured of one checkpoint.

    Args:
        method: what the tables call it.
        results: content of the results file.
    """

    method: str
    results: Mapping[str, Any]

    @property
    def provenance(self) -> Mapping[str, Any]:
        """Data, split, checkpoint, labelled share, seed."""
        return self.results["provenance"]

    @property
    def share(self) -> float:
        """Percent of the training labels that were used; all of them where no split was drawn."""
        share = self.provenance.get("labelled_share_percent")
        return 100.0 if share is None else float(share)


def find_runs(sources: Sequence[str], kind: str) -> list[FinishedRun]:
    """Results of one kind in folders and all folders in them, each once, in the order of the folders and names.

    A results file also lies beside the model, where its name says data and split: the same results count once.

    Args:
        sources: folders; `NAME=FOLDER` gives the method a name, unless that is a folder as it stands.
        kind: of `KINDS`, what the files' names begin with.

    Raises:
        ValueError: for a folder that does not exist, or a file that holds no results with their provenance.
    """
    found: dict[tuple[Any, ...], FinishedRun] = {}
    for source in sources:
        name, folder = _named_folder(source)
        for path in sorted(Path(folder).rglob(f"{kind}*.json")):
            results = read_json(path)
            try:
                provenance = Evaluation(kind, results).provenance
                if missing := sorted(_TABLED[kind] - results.keys()):
                    raise ValueError(f"there is no {', '.join(missing)}.")
                if (share := provenance.get("labelled_share_percent")) is not None:
                    check_number("labelled_share_percent", share, Range(above=0, at_most=100))
            except ValueError as error:
                raise ValueError(
                    f"{str(path)!r} must hold results with their provenance, but does not: {error} Evaluate again, or "
                    "move it out of the folders in `run`."
                ) from error
            run = FinishedRun(name or _method_of(provenance), results)
            keys = ("checkpoint", "data", "split", "study_seed", "oracle", "settings")
            found.setdefault((name, *(str(provenance.get(key)) for key in keys)), run)
    return list(found.values())


def _named_folder(source: str) -> tuple[str, str]:
    """Name and folder of `NAME=FOLDER`, either of which may hold an equals sign; no name for what is a folder."""
    for place in (-1, *(place for place, letter in enumerate(source) if letter == "=")):
        name, folder = source[: max(place, 0)], source[place + 1 :]
        if folder and Path(folder).is_dir():
            return name, folder
    raise ValueError(f"`run` must name folders, or NAME=FOLDER, but {source!r} names none that is there.")


def nearest_share(runs: Sequence[FinishedRun], share: float | None) -> list[FinishedRun]:
    """The runs whose labelled share is nearest to the paper's; all of them without one."""
    if share is None or not runs:
        return list(runs)
    nearest = min((run.share for run in runs), key=lambda one: (abs(one - share), one))
    return [run for run in runs if run.share == nearest]


def of_same_data(runs: Sequence[FinishedRun], data: str) -> list[FinishedRun]:
    """The runs on the paper's dataset; all of them if there is none."""
    return [run for run in runs if run.provenance.get("data") == data] or list(runs)


def _method_of(provenance: Mapping[str, Any]) -> str:
    return WITHOUT_DIFFUSION if provenance.get("diffusion_loss_weight") == 0 else OURS
