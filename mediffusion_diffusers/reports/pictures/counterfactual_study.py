"""The pictures of a counterfactual study: panels of its first images, charts of the outside classifier's scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from ...evaluation.finished_study import CounterfactualStudy, StudiedDirection
from ..tables import CONTROLS, HEADINGS
from .figures import PanelRow, panel, score_change_chart


MAX_PANEL_ROWS = 8
_SHOWN_CONTROLS = ("plain_gradient", "random_noise")  # more would hide one another
_ACTIONS = {"remove": "removed", "add": "added"}


def draw_study(study: CounterfactualStudy) -> dict[str, Image.Image]:
    """A panel and, with an outside classifier, a chart for each direction: `panel-remove`, `oracle-remove`, ..."""
    figures = {}
    for direction, studied in study.directions.items():
        figures[f"panel-{direction}"] = panel(panel_rows(study, studied, direction), HEADINGS[direction])
        changes = _oracle_changes(study, direction)
        if changes:
            figures[f"oracle-{direction}"] = score_change_chart(
                changes, "What the outside classifier says", "change of the target's probability"
            )
    return figures


def load_figures(folder: str | Path) -> dict[str, Image.Image]:
    """The pictures that `write_study` wrote, by name."""
    return {path.stem: Image.open(path) for path in sorted(Path(folder).glob("*.png"))}


def panel_rows(study: CounterfactualStudy, studied: StudiedDirection, direction: str) -> list[PanelRow]:
    """Rows for a panel: the first image of each label, then the second, up to `MAX_PANEL_ROWS`; none picked by eye."""
    targets = studied.counterfactuals.targets
    place = np.array([np.sum(targets[:index] == target) for index, target in enumerate(targets)])
    order = np.lexsort((targets, place))
    num_labels = len(np.unique(targets))
    num_rows = min(MAX_PANEL_ROWS, max(num_labels, 4), len(order))
    chosen = sorted(order[:num_rows].tolist(), key=lambda index: (targets[index], place[index]))
    return [_panel_row(study, studied, index, _ACTIONS[direction]) for index in chosen]


def _panel_row(study: CounterfactualStudy, studied: StudiedDirection, index: int, action: str) -> PanelRow:
    counterfactuals = studied.counterfactuals
    target = int(counterfactuals.targets[index])
    own, oracle = counterfactuals.own, counterfactuals.oracle
    return PanelRow(
        label=study.label_names[target],
        action=action,
        original=counterfactuals.originals[index],
        counterfactual=counterfactuals.images[index],
        null_edit=counterfactuals.null_images[index],
        probability=(float(own.before[index, target]), float(own.after[index, target])),
        oracle_probability=(
            None if oracle is None else (float(oracle.before[index, target]), float(oracle.after[index, target]))
        ),
        truth=None if studied.truth is None else studied.truth[index],
        boxes=studied.boxes[index],
    )


def _oracle_changes(study: CounterfactualStudy, direction: str) -> dict[str, dict[str, float]]:
    """Mean change of the oracle's score by label and kind of change; empty without an oracle."""
    counterfactuals = study.directions[direction].counterfactuals
    if counterfactuals.oracle is None:
        return {}
    after = {"counterfactual": counterfactuals.oracle.after}
    after |= {
        f"{CONTROLS[name]}, same size": scores
        for name, scores in study.directions[direction].control_scores.items()
        if name in _SHOWN_CONTROLS
    }
    after["null edit"] = counterfactuals.oracle.null
    changes: dict[str, dict[str, float]] = {}
    for target in np.unique(counterfactuals.targets).tolist():
        rows = counterfactuals.targets == target
        before = counterfactuals.oracle.before[rows, target]
        changes[study.label_names[target]] = {
            name: float((scores[rows, target] - before).mean()) for name, scores in after.items()
        }
    return changes
