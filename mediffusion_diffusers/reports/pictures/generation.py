"""The pictures of a generation study: distances beside their floor, and the nearest training images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from ...evaluation.generation_study import Suspects
from ..generation_tables import SETS
from .drawing import GRID, INK, MUTED, PALETTE, new_figure, show_picture, to_image


def distance_chart(result: Mapping[str, Any], title: str = "Distance to real images (KID)") -> Image.Image:
    """KID of unguided, guided and other real images with its interval, over all labels and by label.

    Args:
        result: content of `generation.json`.
        title: heading.
    """
    groups = {"all labels": result, **result["per_label"]}
    height = 1.15 + 0.55 * len(groups)
    with new_figure(7.2, height) as figure:
        axes = figure.add_axes((0.19, 0.5 / height, 0.78, 1 - 1.15 / height))
        for place, (name, text) in enumerate(SETS.items()):
            rows = [(index, group[name]) for index, group in enumerate(groups.values())]
            known = [(index, found) for index, found in rows if found["kid"] is not None]
            values = [found["kid"] for _, found in known]
            ends = np.array([found["kid_interval_95"] for _, found in known]).reshape(-1, 2)
            errors = [values - ends[:, 0], ends[:, 1] - values]
            positions = [index + (place - 1) * 0.24 for index, _ in known]
            colour = PALETTE[place % len(PALETTE)]
            axes.errorbar(values, positions, xerr=errors, fmt="o", color=colour, markersize=5, label=text)
        axes.set_yticks(range(len(groups)), list(groups))
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.set_ylim(len(groups) - 0.5, -0.5)
        axes.axvline(0, color=INK, linewidth=0.8)
        axes.grid(axis="y", visible=False)
        axes.set_axisbelow(True)
        for line in np.arange(len(groups) - 1) + 0.5:
            axes.axhline(line, color=GRID, linewidth=0.8)
        axes.set_xlabel("KID with its 95 % interval; less is nearer")
        figure.text(0.02, 1 - 0.2 / height, title, fontsize=11, fontweight="bold", va="center")
        handles, names = axes.get_legend_handles_labels()
        place_of_legend = (0.012, 1 - 0.3 / height)
        figure.legend(handles, names, loc="upper left", bbox_to_anchor=place_of_legend, ncols=3, fontsize=8)
        return to_image(figure)


def nearest_images(suspects: Suspects) -> Image.Image:
    """The generated images that are most like a training image, each above it and above the nearest held-out image."""
    rows = {
        "generated": suspects.generated,
        "nearest training": suspects.training,
        "nearest held-out": suspects.held_out,
    }
    num = len(suspects.generated)
    side, left, header = 1.15, 1.25, 0.62
    width, height = left + side * num + 0.1, header + side * len(rows) + 0.3
    with new_figure(width, height) as figure:
        title = "Are they copies? Those nearest to a training image"
        figure.text(0.12 / width, 1 - 0.2 / height, title, fontsize=11, fontweight="bold", va="center")
        for row, (name, pictures) in enumerate(rows.items()):
            top = header + side * row
            figure.text(0.12 / width, 1 - (top + side / 2) / height, name, fontsize=9, color=MUTED, va="center")
            _row(figure, pictures, left, top, side, width, height)
        for column, ratio in enumerate(suspects.ratios.tolist()):
            x = (left + side * (column + 0.5)) / width
            figure.text(x, 1 - (header - 0.14) / height, f"{ratio:.2f}", ha="center", va="center", fontsize=8)
        below = "Numbers: distance to the training image over that to the held-out one; a copy is near 0."
        figure.text(0.12 / width, 0.13 / height, below, fontsize=7.5, color=MUTED, va="center")
        return to_image(figure)


def _row(
    figure: Any, pictures: Sequence[np.ndarray] | np.ndarray, left: float, top: float, side: float, *size: float
) -> None:
    """Pictures side by side, in inches from the top left corner of a figure of some width and height."""
    width, height = size
    for column, picture in enumerate(pictures):
        corner = ((left + side * column + 0.03) / width, 1 - (top + side - 0.03) / height)
        axes = figure.add_axes((*corner, (side - 0.06) / width, (side - 0.06) / height))
        show_picture(axes, picture)


def guidance_sweep(
    labels: Sequence[str],
    scales: Sequence[float],
    pictures: Sequence[np.ndarray],
    probabilities: np.ndarray,
    title: str,
) -> Image.Image:
    """Generated images, a row per label and a column per guidance scale (Fig. 7).

    Args:
        labels: what each row is guided towards.
        scales: of the columns.
        pictures: for each label, shape `(num_scales, channels, height, width)` in [0, 1].
        probabilities: the model's own of the label, shape `(num_labels, num_scales)`.
        title: heading.
    """
    side, left, header = 1.45, 1.25, 0.7
    below = 0.22
    width, height = left + side * len(scales) + 0.1, header + (side + below) * len(labels) + 0.1
    with new_figure(width, height) as figure:
        figure.text(0.12 / width, 1 - 0.2 / height, title, fontsize=11, fontweight="bold", va="center")
        for column, scale in enumerate(scales):
            x = (left + side * (column + 0.5)) / width
            figure.text(x, 1 - (header - 0.14) / height, f"scale {scale:.3g}", ha="center", va="center", fontsize=8)
        for row, (name, images) in enumerate(zip(labels, pictures, strict=True)):
            top = header + (side + below) * row
            figure.text(0.12 / width, 1 - (top + side / 2) / height, name, fontsize=9, va="center")
            _row(figure, images, left, top, side, width, height)
            for column, probability in enumerate(probabilities[row].tolist()):
                x, y = (left + side * (column + 0.5)) / width, 1 - (top + side + below / 2) / height
                figure.text(x, y, f"p {probability:.2f}", ha="center", va="center", fontsize=8, color=MUTED)
        return to_image(figure)
