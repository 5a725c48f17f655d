"""Pictures of how a training goes: images side by side in one PNG."""

from __future__ import annotations

import io
import math
from pathlib import Path

import torch
from PIL import Image

from ...atomic_files import write_bytes
from ...image_processor import denormalize, numpy_to_pil


def save_image_grid(images: torch.Tensor, path: Path, num_columns: int | None = None, gap: int = 1) -> None:
    """Write images side by side into one PNG.

    Args:
        images: shape `(batch, channels, height, width)` in [-1, 1].
        path: the PNG file.
        num_columns: images per row; by default a square.
        gap: white pixels between images.
    """
    num_columns = num_columns or math.ceil(math.sqrt(len(images)))
    tiles = numpy_to_pil(denormalize(images).permute(0, 2, 3, 1).numpy())
    width, height = tiles[0].width + gap, tiles[0].height + gap
    grid = Image.new(
        tiles[0].mode, (width * num_columns - gap, height * math.ceil(len(tiles) / num_columns) - gap), "white"
    )
    for place, tile in enumerate(tiles):
        grid.paste(tile, (place % num_columns * width, place // num_columns * height))
    path.parent.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    grid.save(content, format="PNG")
    write_bytes(path, content.getvalue())
