"""Pictures side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image


def image_grid(images: Sequence[Image.Image], num_columns: int | None = None, gap: int = 1) -> Image.Image:
    """Put pictures of one size and mode side by side, row by row.

    Args:
        images: at least one.
        num_columns: pictures per row; by default a square.
        gap: white pixels between them.
    """
    num_columns = num_columns or math.ceil(math.sqrt(len(images)))
    width, height = images[0].width + gap, images[0].height + gap
    size = (width * num_columns - gap, height * math.ceil(len(images) / num_columns) - gap)
    grid = Image.new(images[0].mode, size, "white")
    for place, image in enumerate(images):
        grid.paste(image, (place % num_columns * width, place // num_columns * height))
    return grid
