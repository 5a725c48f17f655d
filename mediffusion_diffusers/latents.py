"""Between pixels and the latents that the U-Net sees: the one home of the autoencoder's scale and shift."""

from __future__ import annotations

from typing import Any

import torch


def vae_scale_factor(vae: Any) -> int:
    """Pixels per latent position along a side."""
    block_size = getattr(vae.config, "block_size", None)
    return int(block_size or 2 ** (len(vae.config.block_out_channels) - 1))


def encode_pixels(vae: Any, pixels: torch.Tensor) -> torch.Tensor:
    """Encode deterministically: the posterior's mode, shifted and scaled as the autoencoder's config says.

    Args:
        vae: `AutoencoderKL` or `SpaceToDepthAutoencoder`.
        pixels: shape `(batch, channels, height, width)` in [-1, 1], on any device.

    Returns:
        Latents of about unit variance, shape `(batch, latent_channels, height / f, width / f)`.
    """
    latents = vae.encode(pixels.to(dtype=vae.dtype)).latent_dist.mode()
    return (latents - _shift(vae)) * vae.config.scaling_factor


def decode_latents(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """Decode scaled latents into pixels of about [-1, 1]; the inverse of `encode_pixels`."""
    latents = latents.to(dtype=vae.dtype) / vae.config.scaling_factor + _shift(vae)
    return vae.decode(latents, return_dict=False)[0]


def _shift(vae: Any) -> float:
    """The config's `shift_factor`, which many autoencoders leave out."""
    return getattr(vae.config, "shift_factor", None) or 0.0
