"""The table as a picture: every draw of every method, and what ours gains over each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from mediffusion_diffusers.reports.pictures.drawing import GRID, INK, MUTED, PALETTE, new_figure, to_image

from . import METHODS
from .table import COMPARED


_OURS, _OTHERS = PALETTE[0], PALETTE[1]
_ROW, _WIDTH = 0.34, 10.0  # inches


def draw_table(table: Mapping[str, Any]) -> Image.Image:
    """Methods from best to worst: the test AUROC of each draw, and the first of ours minus each, with its interval.

    Args:
        table: what `label_efficiency.py` writes.
    """
    methods, draws = table["methods"], table["test_macro_auroc_of_each_draw"]
    titles = sorted(methods, key=lambda title: methods[title]["test_macro_auroc"]["mean"])
    ours = METHODS[COMPARED[0]].title
    height = 1.5 + _ROW * len(titles)
    with new_figure(_WIDTH, height) as figure:
        bottom, share = 0.55 / height, _ROW * len(titles) / height
        left = figure.add_axes((0.3, bottom, 0.36, share))
        right = figure.add_axes((0.7, bottom, 0.28, share))
        for row, title in enumerate(titles):
            colour = _OURS if title.startswith("ours") else _OTHERS
            values = list(draws[title].values())
            left.scatter(values, [row] * len(values), s=14, color=colour, alpha=0.45, linewidth=0)
            left.plot([np.mean(values)] * 2, [row - 0.3, row + 0.3], color=colour, linewidth=2.5)
            pair = table["differences"].get(f"{ours}, minus {title}")
            if pair is None:
                continue
            right.plot([pair["points"]["mean"]], [row], "o", color=INK, markersize=4)
            if pair["interval_95_over_draws"] is not None:
                right.plot(pair["interval_95_over_draws"], [row, row], color=INK, linewidth=1.5)
        names = [f"{title} ({methods[title]['num_draws']})" for title in titles]
        for axes, labels in ((left, names), (right, [""] * len(titles))):
            axes.set_yticks(range(len(titles)), labels, color=INK)
            axes.set_ylim(-0.6, len(titles) - 0.4)
            axes.tick_params(length=0)
        right.axvline(0, color=MUTED, linewidth=0.8)
        right.spines["left"].set_color(GRID)
        left.set_xlabel("test macro AUROC: each draw, and the mean")
        right.set_xlabel("points, 95 % interval over draws")
        heading = f"{table['num_labelled_images']} labelled images ({table['data']}); in brackets the draws"
        figure.text(0.02, 1 - 0.25 / height, heading, fontsize=11, fontweight="bold", va="center")
        figure.text(0.3, 1 - 0.65 / height, "how well", fontsize=9, color=MUTED, va="center")
        figure.text(0.7, 1 - 0.65 / height, f"{ours}, minus each", fontsize=9, color=MUTED, va="center")
        return to_image(figure)
