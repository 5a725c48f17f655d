"""Pictures of how a training goes: images side by side in one PNG."""

from __future__ import annotations

from pathlib import Path

import torch

from ...image_processor import denormalize, numpy_to_pil
from ...reports.pictures.drawing import save_picture
from ...reports.pictures.grid import image_grid


def save_image_grid(images: torch.Tensor, path: Path, num_columns: int | None = None, gap: int = 1) -> None:
    """Write images side by side into one PNG.

    Args:
        images: shape `(batch, channels, height, width)` in [-1, 1].
        path: the PNG file.
        num_columns: images per row; by default a square.
        gap: white pixels between images.
    """
    tiles = numpy_to_pil(denormalize(images).permute(0, 2, 3, 1).numpy())
    path.parent.mkdir(parents=True, exist_ok=True)
    save_picture(image_grid(tiles, num_columns, gap), path)
