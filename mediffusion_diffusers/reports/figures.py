"""Pictures of counterfactuals, training and samples; every function returns a PIL image.

Greys are shown on the fixed scale 0 to 1, differences on a symmetric diverging scale: red is brighter than before,
blue darker, white unchanged.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..metrics_log import read_metrics


DPI = 130
DIFFERENCE_COLOURS = "RdBu_r"
MIN_DIFFERENCE_SCALE = 0.05  # of the full intensity range: weaker changes stay pale
_BOX_COLOUR = "lime"
_INK, _MUTED, _GRID = "#1b2430", "#5b6775", "#e4e8ed"
_PALETTE = ("#2563a8", "#d9730d", "#2f8f6b", "#8a4fbf", "#b3263a", "#6b7280")
_STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": _INK,
    "axes.labelcolor": _MUTED,
    "axes.edgecolor": _GRID,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": _GRID,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "legend.frameon": False,
    "figure.facecolor": "white",
}


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
    """Original | counterfactual | difference | null edit (| true counterfactual), one row per image.

    The difference is counterfactual minus original. Boxes of the target finding are drawn in lime on the original and
    the difference. On the left stand the model's probabilities of the target and, if known, the outside classifier's.

    Raises:
        ValueError: for no row.
    """
    if not rows:
        raise ValueError("`rows` must hold at least one counterfactual.")
    has_truth = any(row.truth is not None for row in rows)
    names = ["Original", "Counterfactual", "Difference", "Null edit"] + ["True counterfactual"] * has_truth
    differences = [_grey(row.counterfactual) - _grey(row.original) for row in rows]
    limit = difference_limit(differences)
    side, label_width, header = 1.55, 1.75, 0.62 if title else 0.34
    width, height = label_width + side * len(names) + 0.75, header + (side + 0.08) * len(rows) + 0.1
    with _figure(width, height) as figure:
        if title:
            figure.text(0.12 / width, 1 - 0.2 / height, title, fontsize=12, fontweight="bold", va="center")
        for column, name in enumerate(names):
            x = (label_width + side * (column + 0.5)) / width
            figure.text(x, 1 - (header - 0.14) / height, name, ha="center", va="center", color=_MUTED, fontsize=9)
        shown = None
        for index, (row, difference) in enumerate(zip(rows, differences, strict=True)):
            top = header + (side + 0.08) * index
            _row_text(figure, row, 0.12 / width, 1 - (top + side / 2) / height, 1 / height)
            pictures = [row.original, row.counterfactual, difference, row.null_edit]
            pictures += [row.truth] if has_truth else []
            for column, picture in enumerate(pictures):
                left = (label_width + side * column + 0.04) / width
                axes = figure.add_axes(
                    (left, 1 - (top + side - 0.04) / height, (side - 0.08) / width, (side - 0.08) / height)
                )
                if picture is None:
                    axes.axis("off")
                elif column == 2:
                    shown = _show_difference(axes, picture, limit)
                else:
                    _show_picture(axes, picture)
                if column in (0, 2):
                    _draw_boxes(axes, row.boxes, picture)
        bar_height = min(2.6, side * len(rows) - 0.5)
        bottom = 1 - (header + (side + 0.08) * len(rows) / 2 + bar_height / 2) / height
        axes = figure.add_axes(
            ((label_width + side * len(names) + 0.1) / width, bottom, 0.1 / width, bar_height / height)
        )
        _colour_bar(figure, shown, axes)
        return _to_image(figure)


def difference_map(
    difference: np.ndarray, limit: float | None = None, boxes: Sequence[Mapping[str, float]] = ()
) -> Image.Image:
    """A signed difference with its colour bar.

    Args:
        difference: shape `(channels, height, width)` or `(height, width)`, in units of the full intensity range;
            channels are averaged.
        limit: end of the symmetric scale; by default fitted to the difference.
        boxes: boxes to draw, in relative units.
    """
    grey = _grey(difference)
    with _figure(3.9, 3.2) as figure:
        axes = figure.add_axes((0.03, 0.04, 0.92 * 3.2 / 3.9, 0.92))
        shown = _show_difference(axes, grey, limit or difference_limit([grey]))
        _draw_boxes(axes, boxes, grey)
        _colour_bar(figure, shown, figure.add_axes((0.81, 0.14, 0.035, 0.72)))
        return _to_image(figure)


def difference_limit(differences: Sequence[np.ndarray]) -> float:
    """One scale for several differences: the 99.5th percentile of their size, at least `MIN_DIFFERENCE_SCALE`."""
    size = np.concatenate([np.abs(difference).ravel() for difference in differences])
    return float(max(np.quantile(size, 0.995), MIN_DIFFERENCE_SCALE))


def image_grid(images: Sequence[np.ndarray], titles: Sequence[str] | None = None, num_columns: int = 8) -> Image.Image:
    """A grid of pictures.

    Args:
        images: each `(channels, height, width)` or `(height, width)`, in [0, 1].
        titles: one short line per picture.
        num_columns: pictures per row.

    Raises:
        ValueError: for no picture, or another number of titles.
    """
    if len(images) == 0:
        raise ValueError("`images` must hold at least one picture.")
    if titles is not None and len(titles) != len(images):
        raise ValueError(f"`titles` must be as many as `images`, {len(images)}, but got {len(titles)}.")
    num_columns = min(num_columns, len(images))
    num_rows = -(-len(images) // num_columns)
    side, gap, text = 1.15, 0.06, 0.22 if titles else 0.0
    width, height = num_columns * (side + gap) + gap, num_rows * (side + gap + text) + gap
    with _figure(width, height) as figure:
        for index, image in enumerate(images):
            row, column = divmod(index, num_columns)
            left = gap + column * (side + gap)
            top = gap + row * (side + gap + text)
            axes = figure.add_axes((left / width, 1 - (top + text + side) / height, side / width, side / height))
            _show_picture(axes, image)
            if titles:
                x, y = (left + side / 2) / width, 1 - (top + text * 0.55) / height
                figure.text(x, y, titles[index], ha="center", va="center", fontsize=7.5, color=_MUTED)
        return _to_image(figure)


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
    colours = {"train": _PALETTE[0], "validation": _PALETTE[1]}
    with _figure(3.3 * len(plots), 2.5) as figure:
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
        return _to_image(figure)


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
    with _figure(7.2, height) as figure:
        axes = figure.add_axes((0.19, 0.5 / height, 0.78, 1 - 1.15 / height))
        for place, name in enumerate(series):
            values = [float(group.get(name, float("nan"))) for group in changes.values()]
            positions = np.arange(len(changes)) + (place - (len(series) - 1) / 2) * thickness
            colour = _PALETTE[place % len(_PALETTE)]
            axes.barh(positions, np.nan_to_num(values), thickness * 0.9, color=colour, label=name)
        axes.set_yticks(range(len(changes)), list(changes))
        axes.tick_params(axis="y", length=0, labelcolor=_INK)
        axes.invert_yaxis()
        axes.axvline(0, color=_INK, linewidth=0.8)
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
        return _to_image(figure)


@contextmanager
def _figure(width: float, height: float) -> Iterator[Any]:
    """A matplotlib figure in our style, in inches; the caller's pyplot state is left alone."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), dpi=DPI)
        FigureCanvasAgg(figure)
        yield figure


def _to_image(figure: Any) -> Image.Image:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    buffer.seek(0)
    return Image.open(buffer).convert("RGB")


def _grey(picture: np.ndarray) -> np.ndarray:
    """`(height, width)`: the mean over channels."""
    array = np.asarray(picture, dtype=np.float64)
    return array.mean(0) if array.ndim == 3 else array


def _show_picture(axes: Any, picture: np.ndarray) -> None:
    array = np.asarray(picture, dtype=np.float64).clip(0, 1)
    array = array[0] if array.ndim == 3 and array.shape[0] == 1 else array
    array = array.transpose(1, 2, 0) if array.ndim == 3 else array
    axes.imshow(array, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.axis("off")


def _show_difference(axes: Any, difference: np.ndarray, limit: float) -> Any:
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(visible=True, color=_GRID)
    return axes.imshow(difference, cmap=DIFFERENCE_COLOURS, vmin=-limit, vmax=limit, interpolation="nearest")


def _colour_bar(figure: Any, shown: Any, axes: Any) -> None:
    bar = figure.colorbar(shown, cax=axes)
    limit = shown.norm.vmax
    bar.set_ticks([-limit, 0, limit], labels=[f"−{limit:.2f}\ndarker", "0", f"+{limit:.2f}\nbrighter"])
    bar.ax.tick_params(labelsize=7.5, length=0)
    bar.outline.set_visible(False)


def _draw_boxes(axes: Any, boxes: Sequence[Mapping[str, float]], picture: np.ndarray) -> None:
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import Normal, Stroke

    height, width = np.asarray(picture).shape[-2:]
    for box in boxes:
        axes.add_patch(
            Rectangle(
                (box["x"] * width - 0.5, box["y"] * height - 0.5),
                box["width"] * width,
                box["height"] * height,
                fill=False,
                edgecolor=_BOX_COLOUR,
                linewidth=1.2,
                path_effects=[Stroke(linewidth=2.2, foreground="#00000080"), Normal()],
            )
        )


def _row_text(figure: Any, row: PanelRow, x: float, y: float, inch: float) -> None:
    """Beside a row of a panel: the finding, what was done to it, and probabilities as "0.93 → 0.04"."""
    entries = [("model", row.probability)]
    entries += [("oracle", row.oracle_probability)] if row.oracle_probability is not None else []
    top = y + (0.29 + 0.17 * len(entries)) * inch
    figure.text(x, top, row.label, fontsize=10, fontweight="bold", va="center")
    figure.text(x, top - 0.18 * inch, row.action, fontsize=9, color=_MUTED, va="center")
    for index, (name, (before, after)) in enumerate(entries):
        line = top - (0.46 + 0.37 * index) * inch
        figure.text(x, line, name, fontsize=7.5, color=_MUTED, va="center")
        figure.text(x, line - 0.16 * inch, f"{before:.2f} → {after:.2f}", fontsize=10, va="center")


def _curve(records: Sequence[Mapping[str, Any]], kind: str, key: str) -> list[tuple[float, float]]:
    return [
        (record["step"], record[key]) for record in records if record["kind"] == kind and record.get(key) is not None
    ]


def _smooth(values: Sequence[float]) -> np.ndarray:
    """A running mean over a twentieth of the curve."""
    window = max(1, len(values) // 20)
    padded = np.pad(np.asarray(values, dtype=np.float64), (window // 2, window - 1 - window // 2), mode="edge")
    return np.convolve(padded, np.ones(window) / window, mode="valid")
