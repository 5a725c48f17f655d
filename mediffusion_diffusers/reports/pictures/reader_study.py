"""Box plots of a reader study (Fig. 6)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from ...reader_study.answers import Answer
from ...reader_study.design import GRADES
from ...reader_study.pairs import DIRECTIONS
from ..tables import HEADINGS
from .drawing import INK, MUTED, PALETTE, new_figure, to_image


_DOT = 420.0  # points squared of the dot of all answers of a method


def grade_box_plots(answers: Sequence[Answer], methods: Sequence[str]) -> Image.Image:
    """A box plot of each method's grades, removals above additions.

    Dots behind the boxes are as large as the share of answers with that grade; diamonds are means.

    Args:
        answers: of all readers.
        methods: in the order of the rows.
    """
    directions = [direction for direction in DIRECTIONS if any(one.direction == direction for one in answers)]
    height = 0.75 + len(directions) * (0.55 + 0.42 * len(methods))
    with new_figure(7.4, height) as figure:
        all_axes = figure.subplots(len(directions), 1, sharex=True, squeeze=False)[:, 0]
        for axes, direction in zip(all_axes, directions, strict=True):
            for row, method in enumerate(methods):
                grades = [one.grade for one in answers if one.direction == direction and one.method == method]
                if grades:
                    _draw_row(axes, row, np.array(grades), PALETTE[row % len(PALETTE)])
            axes.set_yticks(range(len(methods)), [method.replace("_", " ") for method in methods])
            axes.tick_params(axis="y", length=0, labelcolor=INK)
            axes.set(ylim=(len(methods) - 0.4, -0.6), xlim=(0.6, len(GRADES) + 0.4))
            axes.axvline((len(GRADES) + 1) / 2, color=MUTED, linewidth=0.8, linestyle=":")
            axes.grid(axis="y", visible=False)
            axes.set_title(HEADINGS[direction])
        shown = [
            grade.removeprefix("To ").replace(" extent", "").replace("a ", "").replace("the ", "") for grade in GRADES
        ]
        all_axes[-1].set_xticks(range(1, len(GRADES) + 1), shown)
        all_axes[-1].set_xlabel("visible to ... extent than in the original image")
        figure.tight_layout()
        return to_image(figure)


def _draw_row(axes: Any, row: int, grades: np.ndarray, colour: str) -> None:
    values, counts = np.unique(grades, return_counts=True)
    axes.scatter(values, [row] * len(values), s=_DOT * counts / counts.sum(), color=colour, alpha=0.25, linewidth=0)
    axes.boxplot(
        grades,
        positions=[row],
        orientation="horizontal",
        widths=0.5,
        showmeans=True,
        showfliers=False,
        manage_ticks=False,
        boxprops={"color": colour, "linewidth": 1.4},
        whiskerprops={"color": colour},
        capprops={"color": colour},
        medianprops={"color": colour, "linewidth": 2.4},
        meanprops={"marker": "D", "markerfacecolor": colour, "markeredgecolor": "white", "markersize": 6},
    )
