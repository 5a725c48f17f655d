"""The comparison as a table in Markdown and as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mediffusion_diffusers.reports.pictures.drawing import (
    difference_pixels,
    new_canvas,
    notice_height,
    picture_pixels,
    save_picture,
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
_CELL, _NAMES, _TITLES = 64, 250, 28  # pixels: side of a picture, width of the names, height of the titles
_LIMIT = 0.3  # of the differences' colours


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
    factor = max(1, _CELL // originals[columns[0][0]].shape[-1])
    lines = []
    for name in names:
        cells = []
        for direction, image, _ in columns:
            original = originals[direction][image, 0]
            picture = original if name == "original" else edits[name][direction][image, 0]
            cells += [picture_pixels(picture), difference_pixels(picture - original, _LIMIT)]
        framed = [np.pad(cell, ((0, 1), (0, 1), (0, 0)), constant_values=255) for cell in cells]
        lines.append(np.concatenate(framed, axis=1))
    mosaic = np.concatenate(lines).repeat(factor, axis=0).repeat(factor, axis=1)
    height, width = mosaic.shape[:2]
    with new_canvas(_NAMES + width, _TITLES + height + notice_height(_NAMES + width)) as canvas:
        axes = canvas.axes(_NAMES, _TITLES, width, height)
        axes.imshow(mosaic, interpolation="nearest")
        axes.axis("off")
        for line, name in enumerate(names):
            canvas.text(6, _TITLES + height * (line + 0.5) / len(names), name, _NAMES - 12, fontsize=8)
        for column, (*_, title) in enumerate(columns):
            canvas.text(_NAMES + width * column / len(columns), _TITLES / 2, title, width / len(columns), fontsize=8)
        canvas.notice()
        picture = canvas.to_image()
    save_picture(picture, path)
