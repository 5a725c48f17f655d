"""The scale of the latents over a training set; what `scaling_factor` is made from."""

from __future__ import annotations

from typing import Any

import torch

from ...data.transforms import ImageTransform
from ...latents import encode_pixels
from .image_rows import ImageRows


_LEAST_STD = 1e-6  # rounding leaves less of none at all


@torch.no_grad()
def measure_latent_std(
    vae: Any, rows: ImageRows, transform: ImageTransform, num_images: int = 1024, batch_size: int = 32
) -> float:
    """Standard deviation of the *scaled* latents over training images, without augmentation.

    Args:
        vae: the autoencoder.
        rows: training images.
        transform: decodes them.
        num_images: how many to use at most, spread evenly over the rows.
        batch_size: images encoded at once.

    Returns:
        The standard deviation over all images, channels and places; 1 is what the noise schedule expects.
    """
    places = torch.linspace(0, len(rows.indices) - 1, min(num_images, len(rows.indices))).long()
    chosen = rows.indices[places.numpy()]
    count, total, squares = 0, 0.0, 0.0
    for start in range(0, len(chosen), batch_size):
        pixels = rows.batch(chosen[start : start + batch_size], transform).to(vae.device)
        latents = encode_pixels(vae, pixels).cpu().double()
        count += latents.numel()
        total += latents.sum().item()
        squares += latents.square().sum().item()
    return max(squares / count - (total / count) ** 2, 0.0) ** 0.5


def check_latent_std(std: float) -> float:
    """The standard deviation of the latents, unless there is nothing in them to learn from.

    Raises:
        ValueError: if it is 0, but for rounding, or no number.
    """
    if not std > _LEAST_STD:
        raise ValueError(
            f"The latents of the training images are all the same number (standard deviation {std:.1e}): the images "
            "show nothing, or the autoencoder loses it all. Look at some of them, and prepare the dataset anew."
        )
    return std
