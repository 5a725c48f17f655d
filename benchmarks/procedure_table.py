"""The comparison as a table in Markdown and as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mediffusion_diffusers.reports.pictures.drawing import (
    new_figure,
    save_picture,
    show_difference,
    show_picture,
    to_image,
)


COLUMNS = {
    "error": ("error", 1, 2),
    "nearest_error": ("to the nearest", 1, 2),
    "cosine": ("cosine", 1, 2),
    "region_iou": ("IoU", 1, 2),
    "realism_auroc": ("realism AUROC", 1, 2),
    "oracle_other_diff": ("Other diff", 1, 3),
    "own_flip_rate": ("own flips", 1, 2),
    "oracle_diff": ("oracle Diff", 1, 2),
    "l1": ("L1 x1000", 1000, 1),
    "unet_evaluations": ("U-Net evaluations", 1, 0),
    "cpu_seconds": ("s", 1, 3),
    "megabytes_for_32_images": ("MB", 1, 0),
    "num_models": ("models", 1, 0),
}
HEADINGS = {"remove": "Removing", "add": "Adding"}
_CELL = 0.55  # inches


def table_of(mean: Mapping[str, Mapping[str, Any]]) -> str:
    """Both directions, a procedure a line.

    Args:
        mean: by direction and procedure, mean and standard deviation of each figure.
    """
    parts = []
    for direction, rows in mean.items():
        columns = [name for name in COLUMNS if any(name in row for row in rows.values())]
        head = ["procedure", *(COLUMNS[name][0] for name in columns)]
        lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
        for name, row in rows.items():
            cells = [_cell(row.get(column), *COLUMNS[column][1:]) for column in columns]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        parts.append(f"{HEADINGS[direction]}\n\n" + "\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _cell(figure: Mapping[str, float] | int | None, factor: float, digits: int) -> str:
    if isinstance(figure, int):
        return str(figure)
    if figure is None or np.isnan(figure["mean"]):
        return ""
    text = f"{factor * figure['mean']:.{digits}f}"
    return text.replace("0.", ".", 1) if text.lstrip("-").startswith("0.") else text


def draw_examples(
    path: Any,
    originals: Mapping[str, np.ndarray],
    edits: Mapping[str, Mapping[str, np.ndarray]],
    targets: Mapping[str, np.ndarray],
    label_names: Sequence[str],
) -> None:
    """The first image of each finding: what each procedure made of it, and how that differs from the original.

    Args:
        path: of the picture.
        originals: by direction, shape `(num, 1, height, width)` in [0, 1].
        edits: by row of the picture and direction, the same shape.
        targets: by direction, label of each image.
        label_names: the model's labels.
    """
    columns = [
        (direction, int(np.flatnonzero(targets[direction] == label)[0]), f"{sign} {label_names[label]}")
        for direction, sign in (("remove", "−"), ("add", "+"))
        for label in np.unique(targets[direction]).tolist()
    ]
    names = ["original", *edits]
    with new_figure(_CELL * (2 * len(columns) + 3), _CELL * (len(names) + 1)) as figure:
        grid = figure.add_gridspec(
            len(names), 2 * len(columns), left=0.14, right=0.995, bottom=0.005, top=0.93, wspace=0.04, hspace=0.04
        )
        for line, name in enumerate(names):
            for column, (direction, image, title) in enumerate(columns):
                original = originals[direction][image]
                picture = original if name == "original" else edits[name][direction][image]
                axes = figure.add_subplot(grid[line, 2 * column])
                show_picture(axes, picture[0])
                if column == 0:
                    axes.text(-0.15, 0.5, name, transform=axes.transAxes, ha="right", va="center", fontsize=7)
                if line == 0:
                    axes.set_title(title, fontsize=6, loc="left")
                    continue
                show_difference(figure.add_subplot(grid[line, 2 * column + 1]), (picture - original)[0], 0.3)
        picture = to_image(figure)
    save_picture(picture, path)
