"""Reliability of probabilities and decision curves, a small plot for each label."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from PIL import Image

from .drawing import INK, MUTED, PALETTE, new_figure, to_image


_NUM_COLUMNS = 4
_LARGEST_DOT = 60  # square points, of the fullest bin

Curves = Mapping[str, Mapping[str, Any]]


def reliability_plot(curves: Curves, calibrated: Curves | None = None) -> Image.Image:
    """Observed share against predicted probability; the diagonal is a model whose probabilities mean what they say.

    Args:
        curves: of `curves_of`, by label.
        calibrated: likewise, after calibration.
    """

    def draw(axes: Any, name: str) -> None:
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8)
        both = (("as trained", curves), ("calibrated", calibrated or {}))
        for colour, (text, some) in zip(PALETTE, both, strict=False):
            if name in some:
                found = some[name]["reliability"]
                sizes = _LARGEST_DOT * np.asarray(found["num_images"]) / max(found["num_images"], default=1)
                axes.plot(found["predicted"], found["observed"], color=colour, linewidth=0.8, alpha=0.45)
                axes.scatter(found["predicted"], found["observed"], s=np.maximum(sizes, 3), color=colour, label=text)
        axes.set(xlim=(-0.04, 1.04), ylim=(-0.04, 1.04))

    below = "observed share against mean predicted probability of ten bins; dots by their number of images"
    return _grid(list(curves), "Reliability of the probabilities", below, draw)


def decision_curves(curves: Curves) -> Image.Image:
    """Net benefit of acting on the model, beside acting on every image and on none.

    Args:
        curves: of `curves_of`, by label.
    """

    def draw(axes: Any, name: str) -> None:
        found = curves[name]["net_benefit"]
        top = max([0.01, *(value for value in found["model"] if value is not None)])
        axes.plot(found["threshold"], found["model"], color=PALETTE[0], label="model")
        axes.plot(found["threshold"], found["treat_all"], color=PALETTE[1], linewidth=1, label="every image")
        axes.axhline(0, color=INK, linewidth=0.8, label="no image")
        axes.set(xlim=(0, 1), ylim=(-0.3 * top, 1.15 * top))

    below = "net benefit, in true positives per image, against the threshold p: a finding is worth (1 - p) / p alarms"
    return _grid(list(curves), "Decision curves", below, draw)


def _grid(names: list[str], title: str, below: str, draw: Callable[[Any, str], None]) -> Image.Image:
    """A plot per label, with one legend."""
    num_columns = min(_NUM_COLUMNS, len(names))
    num_rows = -(-len(names) // num_columns)
    width, height = max(2.2 * num_columns, 6.6), 0.95 + 2.15 * num_rows
    with new_figure(width, height) as figure:
        grid = figure.subplots(num_rows, num_columns, squeeze=False).ravel()
        for axes, name in zip(grid, names, strict=False):
            draw(axes, name)
            axes.set_title(name, fontsize=9)
            axes.tick_params(labelsize=7)
        for axes in grid[len(names) :]:
            axes.axis("off")
        figure.tight_layout(rect=(0, 0, 1, 1 - 0.8 / height))
        figure.text(0.02, 1 - 0.18 / height, title, fontsize=11, fontweight="bold", va="center")
        figure.text(0.02, 1 - 0.42 / height, below, fontsize=7.5, color=MUTED, va="center")
        handles, texts = grid[0].get_legend_handles_labels()
        figure.legend(
            handles, texts, loc="upper left", bbox_to_anchor=(0.012, 1 - 0.5 / height), ncols=len(texts), fontsize=8
        )
        return to_image(figure)
