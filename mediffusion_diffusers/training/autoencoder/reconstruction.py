"""How well an autoencoder reproduces images: L1, PSNR and SSIM."""

from __future__ import annotations

import torch
import torch.nn.functional as F


QUALITY_MEASURES = ("l1", "psnr", "ssim")
_WINDOW, _SIGMA = 11, 1.5
_C1, _C2 = 0.01**2, 0.03**2


def reconstruction_quality(images: torch.Tensor, reconstructions: torch.Tensor) -> dict[str, torch.Tensor]:
    """Measure every image.

    Args:
        images: shape `(batch, channels, height, width)` in [0, 1].
        reconstructions: same shape, in [0, 1].

    Returns:
        `l1` (mean absolute error), `psnr` (dB, at most 100) and `ssim` (at most 1), each `(batch,)`.
    """
    error = images - reconstructions
    return {
        "l1": error.abs().flatten(1).mean(dim=1),
        "psnr": -10 * error.square().flatten(1).mean(dim=1).clamp_min(1e-10).log10(),
        "ssim": structural_similarity(images, reconstructions),
    }


def structural_similarity(images: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """SSIM with the 11x11 Gaussian window, sigma 1.5, of Wang et al. (2004), over whole windows.

    Args:
        images: shape `(batch, channels, height, width)` in [0, 1]. Images below 11 pixels get a smaller window.
        others: same shape.

    Returns:
        Mean over channels and places, `(batch,)`.
    """
    channels, side = images.shape[1], min(*images.shape[2:], _WINDOW)
    places = torch.arange(side, dtype=images.dtype, device=images.device) - (side - 1) / 2
    profile = torch.exp(-places.square() / (2 * _SIGMA**2))
    window = torch.outer(profile, profile) / profile.sum() ** 2
    kernel = window.expand(channels, 1, side, side)

    def local_mean(values: torch.Tensor) -> torch.Tensor:
        return F.conv2d(values, kernel, groups=channels)

    mean_a, mean_b = local_mean(images), local_mean(others)
    variance_a = local_mean(images * images) - mean_a**2
    variance_b = local_mean(others * others) - mean_b**2
    covariance = local_mean(images * others) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + _C1) / (mean_a**2 + mean_b**2 + _C1)
    contrast = (2 * covariance + _C2) / (variance_a + variance_b + _C2)
    return (luminance * contrast).flatten(1).mean(dim=1)
