"""Table 11, the distance of generated images to real ones, and Figures 3, 5 and 7, which are pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from ..reports.generation_tables import (
    generation_caption,
    generation_introduction,
    generation_label_table,
    generation_table,
    memorisation_caption,
    memorisation_table,
)
from ..reports.pictures.figures import panel
from ..reports.pictures.generation import distance_chart, guidance_sweep
from ..reports.tables import Table, format_value
from .finished_runs import nearest_share, of_same_data
from .published import PublishedItem
from .reproduction import Reproduction
from .sources import Sources


NUM_PANEL_ROWS = 6


def make_generation_table(item: PublishedItem, sources: Sources) -> Reproduction:
    """KID first, FID beside it, the floor, and whether generated images are copies.

    Args:
        item: one of the kind `"generation"`.
        sources: a study of generated images, or what it takes to make one.
    """
    runs = nearest_share(of_same_data(sources.generations(), item.content["data"]), item.share)
    tables: list[tuple[Table, str]] = []
    for run in runs:
        results = run.results
        share = f"Own: {run.provenance['data']}, {run.share:g} % of the labels."
        introduction = f"{share} {generation_introduction(results)} {generation_caption(results)}"
        tables += [(generation_table(results), introduction), (generation_label_table(results), "")]
        if results["memorisation"] is not None:
            tables.append((memorisation_table(results), memorisation_caption(results)))
    printed = [[name, found["kid"], f"{found['fid']:.2f}"] for name, found in item.content["rows"].items()]
    tables.append(((["paper", "KID", "FID"], printed), f"As printed, in other features: {item.content['network']}."))
    notes = [note for run in runs for note in run.results["notes"]]
    return Reproduction(item, [run.results for run in runs], partial(distance_chart, runs[0].results), tables, notes)


def make_panel(item: PublishedItem, sources: Sources) -> Reproduction:
    """Counterfactuals of the first images that fit, beside originals and differences.

    Args:
        item: one of the kind `"panel"`.
        sources: with a model and a dataset.
    """
    rows = sources.panel_rows(item.content["direction"], item.content["labels"], NUM_PANEL_ROWS)
    own = [
        {"label": row.label, "action": row.action, "probability": row.probability, "oracle": row.oracle_probability}
        for row in rows
    ]
    cells = [[row.label, row.action, *row.probability, *(row.oracle_probability or (None, None))] for row in rows]
    columns = ["finding", "", "own before", "own after", "outside before", "outside after"]
    caption = "Probability of the finding, by the model and by an outside classifier."
    draw = partial(panel, rows, item.title)
    return Reproduction(item, own, draw, [((columns, cells), caption)], [_labels_note(item, own)])


def make_sweep(item: PublishedItem, sources: Sources) -> Reproduction:
    """Images from one noise at growing guidance.

    Args:
        item: one of the kind `"sweep"`.
        sources: with a model.
    """
    labels, scales, pictures, probabilities = sources.sweep(item.content["labels"])
    own = [
        {"label": name, "guidance_scale": scales, "probability": [float(each) for each in row]}
        for name, row in zip(labels, probabilities, strict=True)
    ]
    columns = ["own probability at scale", *map(format_value, scales)]
    table = (columns, [[name, *map(float, row)] for name, row in zip(labels, probabilities, strict=True)])
    draw = partial(guidance_sweep, labels, scales, pictures, probabilities, item.title)
    return Reproduction(item, own, draw, [(table, "")], [_labels_note(item, own)])


def _labels_note(item: PublishedItem, own: Sequence[Mapping[str, Any]]) -> str:
    shown = list(dict.fromkeys(str(row["label"]) for row in own))
    return f"Shown: {', '.join(shown)}; the paper shows {', '.join(item.content['labels'])}."
