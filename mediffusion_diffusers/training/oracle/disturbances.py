"""Noise and blur: what an oracle must bear while it learns, and what its steadiness is measured under."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from ..run.randomness import keyed_generator


# Augmentation of the training images, in units of the model's range [-1, 1] and in pixels.
NOISE_SHARE, MAX_NOISE_SIGMA = 0.5, 0.2
BLUR_SHARE, BLUR_SIGMAS = 0.2, (0.2, 1.2)
_BLUR_RADIUS = 2

# The disturbances that robustness is measured under.
TEST_NOISE_L1 = 0.03  # mean absolute change in units of the full intensity range, as a counterfactual's
TEST_BLUR_SIGMA = 0.7


def disturb(
    images: torch.Tensor, generator: torch.Generator, size: int | None = None, own: slice = slice(None)
) -> torch.Tensor:
    """Blur some of the training images and add noise to some, each with its own strength.

    Args:
        images: shape `(batch, channels, height, width)` in [-1, 1], on the CPU.
        generator: on the CPU.
        size: of the global batch, for which is drawn; by default that of `images`.
        own: which of its images these are.
    """
    size = len(images) if size is None else size

    def uniform(low: float, high: float) -> torch.Tensor:
        return low + (high - low) * torch.rand(size, generator=generator)

    sigma = uniform(*BLUR_SIGMAS)[own]
    is_blurred = (uniform(0, 1) < BLUR_SHARE)[own]
    strength = torch.where(uniform(0, 1) < NOISE_SHARE, uniform(0, MAX_NOISE_SIGMA), torch.zeros(size))[own]
    noise = torch.randn((size, *images.shape[1:]), generator=generator)[own]
    images = torch.where(is_blurred[:, None, None, None], blur(images, sigma), images)
    return images + strength[:, None, None, None] * noise


def blur(images: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Blur each image with a Gaussian of its own `sigma` in pixels, shape `(batch,)`."""
    num, channels, height, width = images.shape
    offsets = torch.arange(-_BLUR_RADIUS, _BLUR_RADIUS + 1)
    kernel = torch.exp(-(offsets**2) / (2 * sigma[:, None] ** 2))
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(channels, 0)
    stacked = F.pad(images.reshape(1, num * channels, height, width), (_BLUR_RADIUS,) * 4, mode="replicate")
    stacked = F.conv2d(stacked, kernel[:, None, None, :], groups=num * channels)
    stacked = F.conv2d(stacked, kernel[:, None, :, None], groups=num * channels)
    return stacked.reshape(images.shape)


def disturbed_variants(images: torch.Tensor, seed: int) -> dict[str, torch.Tensor]:
    """The disturbances that robustness is measured under.

    Args:
        images: in [-1, 1].
        seed: of the noise.

    Returns:
        `noised`: white noise that changes a pixel by `TEST_NOISE_L1` of the intensity range on average (a little less
        where it leaves the range); `blurred`: a Gaussian of `TEST_BLUR_SIGMA` pixels.
    """
    sigma = 2 * TEST_NOISE_L1 * math.sqrt(math.pi / 2)  # E|n| = sigma sqrt(2 / pi); [-1, 1] is two units wide
    noise = torch.randn(images.shape, generator=keyed_generator(seed, "oracle robustness"))
    return {
        "noised": (images + sigma * noise).clamp(-1, 1),
        "blurred": blur(images, torch.full((len(images),), TEST_BLUR_SIGMA)),
    }
