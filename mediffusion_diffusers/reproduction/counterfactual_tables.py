"""Tables 4 to 7: what an outside classifier says of counterfactuals. Figures 4 and 8: where they change the image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from ..reports.measure_tables import has_measures, measures_caption, measures_table
from ..reports.pictures.figures import score_change_chart
from ..reports.tables import Table, study_caption, study_introduction, study_table
from .finished_runs import FinishedRun, nearest_share, of_same_data
from .published import PublishedItem
from .reproduction import Reproduction
from .sources import MissingSource, Sources


_SCORES = ("before", "after", "diff", "diff_interval_95", "other_diff", "other_diff_of_means")
_PLACES = ("inside", "outside", "ratio", "ratio_interval_95", "central_body_ratio", "average_box_ratio")
_TABLE_CAPTION = (
    "Mean score of the outside classifier. Other diff: mean size of the change of the other findings; of means: the "
    "paper's way, the size of the mean change, in which signs cancel between images."
)
_FIGURE_CAPTION = (
    "Mean absolute change (0 to 1) inside and outside the boxes; ratio: median over images, with its 95 % interval "
    "over patients. Beside it what two changes earn that see no image: one of the central body, and the finding's "
    "mean box over other images."
)


def make_score_table(item: PublishedItem, sources: Sources) -> Reproduction:
    """Diff and Other diff by finding, beside the printed ones; below, the controls.

    Args:
        item: one of the kind `"counterfactuals"`.
        sources: a study, or what it takes to make one.
    """
    direction = item.content["direction"]
    runs = _runs_of(item, sources.studies(direction))
    printed = item.content["rows"]
    own, tables = [], list[tuple[Table, str]]()
    for run in runs:
        part = run.results[direction]
        per_label = {
            name: {"num_images": found["num_images"], **{key: found["oracle"].get(key) for key in _SCORES}}
            for name, found in part["per_label"].items()
        }
        own.append({**_origin(run), "per_label": per_label, "controls": _controls(part)})
        tables.append((_score_table(per_label, printed), f"{_title(run)}. {_TABLE_CAPTION}"))
        tables.append((study_table(part), f"{study_introduction(direction, part)} {study_caption(part)}"))
        if has_measures(part):
            tables.append((measures_table(part), measures_caption(part)))
    bars = _bars(own[0]["per_label"], printed)
    unit = "change of the outside classifier's score"
    draw = partial(score_change_chart, bars, _picture_title(item, runs[0]), unit)
    return Reproduction(item, own, draw, tables, _notes(runs, item))


def make_localisation_figure(item: PublishedItem, sources: Sources) -> Reproduction:
    """Change inside and outside expert boxes by finding, beside its nulls.

    Args:
        item: one of the kind `"localisation"`.
        sources: a study with boxes, or what it takes to make one.

    Raises:
        MissingSource: if no study has boxes.
    """
    judged = sources.studies("remove")
    runs = _runs_of(item, [run for run in judged if run.results["remove"].get("localisation")])
    if not runs:
        raise MissingSource(
            "No study in `run` has images with boxes: evaluate counterfactuals of a dataset with boxes."
        )
    own, tables = [], list[tuple[Table, str]]()
    for run in runs:
        found = run.results["remove"]["localisation"]["vs_original"]
        per_label = {
            name: {key: label.get(key) for key in ("num_images", *_PLACES)}
            for name, label in found["per_label"].items()
        }
        own.append({**_origin(run), "per_label": per_label, "all": {key: found.get(key) for key in _PLACES}})
        rows = [[name, label["num_images"], *(label[key] for key in _PLACES)] for name, label in per_label.items()]
        columns = ["finding", "images", "inside", "outside", "ratio", "95 % interval", "central body", "average box"]
        tables.append(((columns, rows), f"{_title(run)}. {_FIGURE_CAPTION}"))
    bars = {
        f"{name}, {label['ratio']:.1f}": {"inside": label["inside"], "outside": label["outside"]}
        for name, label in own[0]["per_label"].items()
        if label["inside"] is not None
    }
    unit = "mean absolute change (0 to 1); beside the finding: median ratio of inside to outside"
    draw = partial(score_change_chart, bars, _picture_title(item, runs[0]), unit)
    return Reproduction(item, own, draw, tables, _notes(runs, item))


def _runs_of(item: PublishedItem, runs: Sequence[FinishedRun]) -> list[FinishedRun]:
    return nearest_share(of_same_data(runs, item.content["data"]), item.share)


def _origin(run: FinishedRun) -> dict[str, Any]:
    """What a table must name."""
    keys = ("data", "split", "checkpoint", "oracle", "patients_shared_with_oracle", "study_seed", "settings")
    return {"labelled_share_percent": run.share, **{key: run.provenance.get(key) for key in keys}}


def _title(run: FinishedRun) -> str:
    return f"Own: {run.provenance['data']}, {run.provenance['split']}, {run.share:g} % of the labels"


def _picture_title(item: PublishedItem, run: FinishedRun) -> str:
    title = item.title.removesuffix(f", {item.share} % of the labels")
    return f"{title}; own: {run.provenance['data']}, {run.share:g} %"


def _notes(runs: Sequence[FinishedRun], item: PublishedItem) -> list[str]:
    notes = []
    for run in runs:
        if run.share != item.share:
            notes.append(
                f"The own model was trained on {run.share:g} % of the labels, the paper's on {item.share:g} %."
            )
        if run.provenance["data"] != item.content["data"]:
            notes.append(f"Own images are of {run.provenance['data']}: no figure compares with the printed ones.")
        notes += run.results.get("notes", [])
    return list(dict.fromkeys(notes))


def _controls(part: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Diff and Other diff of the null edit and of what explains nothing."""
    oracle = part["oracle"]
    null = {"diff": oracle["null"] - oracle["before"], "other_diff": oracle["null_other_diff"]}
    controls = {
        name: {key: control["oracle"][key] for key in ("diff", "other_diff")}
        for name, control in part["controls"].items()
    }
    return {"null_edit": null, **controls}


def _score_table(per_label: Mapping[str, Any], printed: Mapping[str, Any]) -> Table:
    names = [*per_label, *(name for name in printed if name not in per_label)]
    keys = ("before", "after", "diff", "other_diff")
    rows = [
        [
            name,
            *(per_label.get(name, {}).get(key) for key in ("num_images", *_SCORES)),
            *(None if name not in printed else f"{printed[name][key]:.2f}" for key in keys),
        ]
        for name in names
    ]
    own = ["images", "before", "after", "Diff", "95 % interval", "Other diff", "of means"]
    return ["finding", *own, *(f"paper: {name}" for name in ("before", "after", "Diff", "Other diff"))], rows


def _bars(per_label: Mapping[str, Any], printed: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Diff and Other diff, own and printed, by finding."""
    bars: dict[str, dict[str, float]] = {}
    for name in [*per_label, *(name for name in printed if name not in per_label)]:
        bars[name] = {}
        for key, text in (("diff", "Diff"), ("other_diff", "Other diff")):
            for whose, figures in (("own", per_label), ("paper", printed)):
                value = figures.get(name, {}).get(key)
                bars[name][f"{text}, {whose}"] = float("nan") if value is None else float(value)
    return bars
