"""Between images and the latents that the U-Net sees."""

from __future__ import annotations

from typing import Any

import torch

from ..data.transforms import ImageTransform
from .image_rows import ImageRows


@torch.no_grad()
def encode_images(vae: Any, images: torch.Tensor) -> torch.Tensor:
    """Encode images deterministically: the posterior's mode times `scaling_factor`.

    Args:
        vae: `AutoencoderKL` or `SpaceToDepthAutoencoder`.
        images: shape `(batch, channels, height, width)` in [-1, 1].

    Returns:
        Latents, shape `(batch, latent_channels, height / f, width / f)`.
    """
    return vae.encode(images.to(device=vae.device, dtype=vae.dtype)).latent_dist.mode() * vae.config.scaling_factor


@torch.no_grad()
def decode_latents(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """Decode scaled latents to images in about [-1, 1]; the inverse of `encode_images`."""
    return vae.decode(latents.to(device=vae.device, dtype=vae.dtype) / vae.config.scaling_factor).sample


def vae_scale_factor(vae: Any) -> int:
    """Image pixels per latent pixel along a side."""
    if hasattr(vae.config, "block_size"):
        return int(vae.config.block_size)
    return 2 ** (len(vae.config.block_out_channels) - 1)


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
    chosen = rows.indices[torch.linspace(0, len(rows.indices) - 1, min(num_images, len(rows.indices))).long().numpy()]
    count, total, squares = 0, 0.0, 0.0
    for start in range(0, len(chosen), batch_size):
        latents = encode_images(vae, rows.batch(chosen[start : start + batch_size], transform)).double()
        count += latents.numel()
        total += latents.sum().item()
        squares += latents.square().sum().item()
    return max(squares / count - (total / count) ** 2, 0.0) ** 0.5
