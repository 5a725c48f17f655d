"""Pictures of counterfactual studies, training and samples; every function returns a PIL image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...metrics_log import read_metrics
from .drawing import (
    INK,
    MUTED,
    PALETTE,
    difference_bar,
    difference_limit,
    draw_boxes,
    grey,
    new_figure,
    show_difference,
    show_picture,
    to_image,
)


_DIFFERENCES = ("Difference", "True difference")
_COLUMNS = ("Original", "Counterfactual", "True counterfactual", *_DIFFERENCES, "Null edit")


@dataclass(frozen=True)
class PanelRow:
    """One counterfactual in a panel.

    Args:
        label: the target finding, e.g. `"Mass"`.
        action: what was done to it, `"removed"` or `"added"`.
        original: x, shape `(channels, height, width)` or `(height, width)`, in [0, 1].
        counterfactual: x', same shape.
        null_edit: x0, same shape.
        probability: the model's probability of the target, before and after.
        oracle_probability: the outside classifier's, before and after, if there is one.
        truth: the true counterfactual, where it is known (phantoms).
        boxes: `{"x", "y", "width", "height"}` of the target finding, in relative units.
    """

    label: str
    action: str
    original: np.ndarray
    counterfactual: np.ndarray
    null_edit: np.ndarray
    probability: tuple[float, float]
    oracle_probability: tuple[float, float] | None = None
    truth: np.ndarray | None = None
    boxes: Sequence[Mapping[str, float]] = field(default_factory=tuple)


def panel(rows: Sequence[PanelRow], title: str | None = None) -> Image.Image:
    """Original | counterfactual | difference (| null edit), one row per image; a known truth beside what was made.

    The difference is counterfactual minus original, the true one true counterfactual minus original. Null edits are
    left out if they are the originals. Boxes of the target finding are drawn in lime on the original and the
    differences. On the left stand the model's probabilities of the target and, if known, the outside classifier's.

    Raises:
        ValueError: for no row.
    """
    if not rows:
        raise ValueError("`rows` must hold at least one counterfactual.")
    columns = [_panel_columns(row) for row in rows]
    shown_names = [name for name in _COLUMNS if any(column.get(name) is not None for column in columns)]
    if all(np.array_equal(row.null_edit, row.original) for row in rows):
        shown_names.remove("Null edit")
    differences = [column[name] for column in columns for name in _DIFFERENCES if column.get(name) is not None]
    limit = difference_limit(differences)
    side, label_width, header = 1.55, 1.75, 0.62 if title else 0.34
    width, height = label_width + side * len(shown_names) + 0.75, header + (side + 0.08) * len(rows) + 0.1
    with new_figure(width, height) as figure:
        if title:
            figure.text(0.12 / width, 1 - 0.2 / height, title, fontsize=12, fontweight="bold", va="center")
        for place, name in enumerate(shown_names):
            x = (label_width + side * (place + 0.5)) / width
            figure.text(x, 1 - (header - 0.14) / height, name, ha="center", va="center", color=MUTED, fontsize=9)
        shown = None
        for index, (row, column) in enumerate(zip(rows, columns, strict=True)):
            top = header + (side + 0.08) * index
            _row_text(figure, row, 0.12 / width, 1 - (top + side / 2) / height, 1 / height)
            for place, name in enumerate(shown_names):
                left = (label_width + side * place + 0.04) / width
                axes = figure.add_axes(
                    (left, 1 - (top + side - 0.04) / height, (side - 0.08) / width, (side - 0.08) / height)
                )
                picture = column.get(name)
                if picture is None:
                    axes.axis("off")
                elif name in _DIFFERENCES:
                    shown = show_difference(axes, picture, limit)
                else:
                    show_picture(axes, picture)
                if picture is not None and name in ("Original", *_DIFFERENCES):
                    draw_boxes(axes, row.boxes, picture)
        bar_height = min(2.6, side * len(rows) - 0.5)
        bottom = 1 - (header + (side + 0.08) * len(rows) / 2 + bar_height / 2) / height
        axes = figure.add_axes(
            ((label_width + side * len(shown_names) + 0.1) / width, bottom, 0.1 / width, bar_height / height)
        )
        difference_bar(figure, shown, axes)
        return to_image(figure)


def _panel_columns(row: PanelRow) -> dict[str, np.ndarray]:
    """A row's pictures by the name of their column."""
    columns = {
        "Original": row.original,
        "Counterfactual": row.counterfactual,
        "Difference": grey(row.counterfactual) - grey(row.original),
        "Null edit": row.null_edit,
    }
    if row.truth is not None:
        columns |= {"True counterfactual": row.truth, "True difference": grey(row.truth) - grey(row.original)}
    return columns


def learning_curves(metrics_jsonl: str | Path) -> Image.Image:
    """Losses and validation AUROC over the steps of a training run.

    Args:
        metrics_jsonl: the run's `metrics.jsonl`: records with `kind` ("train" or "validation") and `step`.

    Raises:
        ValueError: if the file holds no curve.
    """
    records = read_metrics(Path(metrics_jsonl))
    plots: list[tuple[str, dict[str, list[tuple[float, float]]]]] = []
    for key, name in (("diffusion_loss", "Diffusion loss"), ("classification_loss", "Classification loss")):
        curves = {kind: _curve(records, kind, key) for kind in ("train", "validation")}
        plots.append((name, {kind: curve for kind, curve in curves.items() if curve}))
    plots.append(("Validation AUROC (macro)", {"validation": _curve(records, "validation", "macro_auroc")}))
    plots = [plot for plot in plots if any(plot[1].values())]
    if not plots:
        raise ValueError(f"`metrics_jsonl` must hold losses or AUROC, but {str(metrics_jsonl)!r} has none.")
    colours = {"train": PALETTE[0], "validation": PALETTE[1]}
    with new_figure(3.3 * len(plots), 2.5) as figure:
        grid = figure.subplots(1, len(plots), squeeze=False)[0]
        for axes, (name, curves) in zip(grid, plots, strict=True):
            for kind, curve in curves.items():
                steps, values = zip(*curve, strict=True)
                marker = "o" if len(steps) <= 30 else None
                if kind == "train":
                    axes.plot(steps, values, color=colours[kind], alpha=0.25, linewidth=0.8)
                    axes.plot(steps, _smooth(values), color=colours[kind], label=kind, linewidth=1.6)
                else:
                    axes.plot(steps, values, color=colours[kind], label=kind, marker=marker, markersize=3)
            axes.set_title(name)
            axes.set_xlabel("step")
            if len(curves) > 1:
                axes.legend()
            if "AUROC" in name:
                last = curves["validation"][-1]
                axes.annotate(f"{last[1]:.3f}", last, (-4, -14), textcoords="offset points", ha="right")
        figure.tight_layout()
        return to_image(figure)


def score_change_chart(changes: Mapping[str, Mapping[str, float]], title: str, unit: str = "change") -> Image.Image:
    """Grouped horizontal bars, e.g. the outside classifier's score change by finding, beside the controls.

    Args:
        changes: `{group: {series: value}}`, the same series in every group; NaN or missing values have no bar.
        title: heading.
        unit: label of the axis.
    """
    if not changes:
        raise ValueError("`changes` must hold at least one group.")
    series = list(dict.fromkeys(name for values in changes.values() for name in values))
    thickness = 0.8 / len(series)
    height = 1.25 + 0.19 * len(series) * len(changes)
    with new_figure(7.2, height) as figure:
        axes = figure.add_axes((0.19, 0.5 / height, 0.78, 1 - 1.15 / height))
        for place, name in enumerate(series):
            values = [float(group.get(name, float("nan"))) for group in changes.values()]
            positions = np.arange(len(changes)) + (place - (len(series) - 1) / 2) * thickness
            colour = PALETTE[place % len(PALETTE)]
            axes.barh(positions, np.nan_to_num(values), thickness * 0.9, color=colour, label=name)
        axes.set_yticks(range(len(changes)), list(changes))
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.invert_yaxis()
        axes.axvline(0, color=INK, linewidth=0.8)
        axes.grid(axis="y", visible=False)
        axes.set_axisbelow(True)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(unit)
        figure.text(0.02, 1 - 0.2 / height, title, fontsize=11, fontweight="bold", va="center")
        handles, names = axes.get_legend_handles_labels()
        top = (0.012, 1 - 0.3 / height)
        figure.legend(
            handles, names, loc="upper left", bbox_to_anchor=top, ncols=len(series), fontsize=8, handlelength=1
        )
        return to_image(figure)


def _row_text(figure: Any, row: PanelRow, x: float, y: float, inch: float) -> None:
    """Beside a row of a panel: the finding, what was done to it, and probabilities as "0.93 → 0.04"."""
    entries = [("model", row.probability)]
    entries += [("oracle", row.oracle_probability)] if row.oracle_probability is not None else []
    top = y + (0.29 + 0.17 * len(entries)) * inch
    figure.text(x, top, row.label, fontsize=10, fontweight="bold", va="center")
    figure.text(x, top - 0.18 * inch, row.action, fontsize=9, color=MUTED, va="center")
    for index, (name, (before, after)) in enumerate(entries):
        line = top - (0.46 + 0.37 * index) * inch
        figure.text(x, line, name, fontsize=7.5, color=MUTED, va="center")
        figure.text(x, line - 0.16 * inch, f"{before:.2f} → {after:.2f}", fontsize=10, va="center")


def _curve(records: Sequence[Mapping[str, Any]], kind: str, key: str) -> list[tuple[float, float]]:
    return [
        (record["step"], record[key])
        for record in records
        if record.get("kind") == kind and record.get(key) is not None
    ]


def _smooth(values: Sequence[float]) -> np.ndarray:
    """A running mean over a twentieth of the curve."""
    window = max(1, len(values) // 20)
    padded = np.pad(np.asarray(values, dtype=np.float64), (window // 2, window - 1 - window // 2), mode="edge")
    return np.convolve(padded, np.ones(window) / window, mode="valid")
