"""Tables 1 to 3 and 8 to 10: AUROC by labelled share, own runs beside the printed methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from ..reports.pictures.curves import Curve, curves_by_share
from ..reports.tables import Table
from .finished_runs import OURS, WITHOUT_DIFFUSION, FinishedRun, of_same_data
from .published import PublishedItem
from .reproduction import Reproduction
from .sources import Sources


CHEST_TEST_IMAGES = 25_596  # of NIH's official test split


def make_classification_table(item: PublishedItem, sources: Sources) -> Reproduction:
    """AUROC of all finished runs by method and labelled share.

    Args:
        item: one of the kind `"classification"`.
        sources: the runs.
    """
    runs = of_same_data(sources.classifications(), item.content["data"])
    methods = {method: _by_share([run for run in runs if run.method == method]) for method in _methods(runs)}
    own = {
        "data": sorted({run.provenance["data"] for run in runs}),
        "split": sorted({run.provenance["split"] for run in runs}),
        "same_test_images": all(map(_is_official_test, runs)) and item.content["data"] == "chestxray14",
        "methods": methods,
        "gain_of_diffusion": _gain(methods),
    }
    notes = _notes(item, own)
    title = f"{item.title}: macro AUROC in %"
    curves = [*_printed_curves(item), *_own_curves(methods)]
    draw = partial(curves_by_share, curves, title, notes[0])
    return Reproduction(item, own, draw, [(_table(item, methods), _CAPTION)], notes)


_CAPTION = (
    "Macro AUROC in percent by labelled share. Own: one run with its 95 % interval over patients, or mean ± standard "
    "deviation of several runs."
)


def _methods(runs: Sequence[FinishedRun]) -> list[str]:
    """Names of the methods, those of the paper first."""
    names = dict.fromkeys(run.method for run in runs)
    return sorted(names, key=lambda name: (name != WITHOUT_DIFFUSION, name != OURS, name))


def _by_share(runs: Sequence[FinishedRun]) -> dict[str, dict[str, Any]]:
    """By labelled share, as text: `mean`, `sd` (of at least two runs) and every run's figure and interval."""
    shares: dict[str, dict[str, Any]] = {}
    for share in sorted({run.share for run in runs}):
        some = [run for run in runs if run.share == share]
        values = [float("nan") if run.results["macro_auroc"] is None else run.results["macro_auroc"] for run in some]
        shares[f"{share:g}"] = {
            "mean": float(np.mean(values)),
            "sd": float(np.std(values, ddof=1)) if len(values) > 1 else None,
            "runs": [
                {
                    "macro_auroc": run.results["macro_auroc"],
                    "interval_95": [run.results["macro_auroc_interval"][end] for end in ("low", "high")],
                    "labelled_by": run.provenance.get("labelled_by"),
                    "labelled_split_hash": run.provenance.get("labelled_split_hash"),
                    "num_labelled_images": run.provenance.get("num_labelled_images"),
                    "seed": run.provenance.get("seed"),
                    "checkpoint": run.provenance["checkpoint"],
                }
                for run in some
            ],
        }
    return shares


def _gain(methods: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """By share, mean AUROC with the diffusion task minus that of the same U-Net without it."""
    ours, without = methods.get(OURS, {}), methods.get(WITHOUT_DIFFUSION, {})
    return {share: ours[share]["mean"] - without[share]["mean"] for share in ours if share in without}


def _is_official_test(run: FinishedRun) -> bool:
    return run.provenance["split"] == "test" and run.provenance.get("num_images_in_split") == CHEST_TEST_IMAGES


def _notes(item: PublishedItem, own: Mapping[str, Any]) -> list[str]:
    data = ", ".join(own["data"])
    if own["same_test_images"]:
        return [f"Own runs: {data}, the official test split, as the paper's."]
    return [f"Own runs: {data}, other test images than the paper's ({item.content['protocol']}): no comparison."]


def _percent(value: float | None) -> str | None:
    return None if value is None or np.isnan(value) else f"{100 * value:.2f}"


def _table(item: PublishedItem, methods: Mapping[str, Mapping[str, Any]]) -> Table:
    """The printed methods, then the own ones."""
    printed = item.content["rows"]
    shares = {share for row in (*(row["values"] for row in printed), *methods.values()) for share in row}
    columns = sorted(shares, key=float)
    rows: list[list[Any]] = []
    for row in printed:
        name = f"paper: {row['method']}" + (f", {row['pretraining']}" if row.get("pretraining") == "ImageNet" else "")
        rows.append([name, *(f"{row['values'][share]:.2f}" if share in row["values"] else None for share in columns)])
    for method, found in methods.items():
        rows.append([f"own: {method}", *(_own_cell(found[share]) if share in found else None for share in columns)])
    return ["", *(f"{share} %" for share in columns)], rows


def _own_cell(found: Mapping[str, Any]) -> str | None:
    mean = _percent(found["mean"])
    if mean is None:
        return None
    if found["sd"] is not None:
        return f"{mean} ± {_percent(found['sd'])} ({len(found['runs'])} runs)"
    low, high = map(_percent, found["runs"][0]["interval_95"])
    return mean if low is None else f"{mean} ({low} to {high})"


def _printed_curves(item: PublishedItem) -> list[Curve]:
    curves = []
    for row in item.content["rows"]:
        if row.get("pretraining") == "ImageNet":
            continue
        points = [(float(share), value) for share, value in row["values"].items()]
        curves.append(
            Curve(f"paper: {row['method']}", points, is_printed=True, is_the_papers_own=row["method"] == OURS)
        )
    return curves


def _own_curves(methods: Mapping[str, Mapping[str, Any]]) -> list[Curve]:
    curves = []
    for method, found in methods.items():
        known = {share: each for share, each in found.items() if not np.isnan(each["mean"])}
        points = [(float(share), 100 * each["mean"]) for share, each in known.items()]
        ends = []
        for each in known.values():
            low, high = each["runs"][0]["interval_95"]
            spread = each["sd"]
            if spread is not None:
                low, high = each["mean"] - spread, each["mean"] + spread
            ends.append(None if low is None else (100 * low, 100 * high))
        curves.append(Curve(f"own: {method}", points, ends))
    return curves
