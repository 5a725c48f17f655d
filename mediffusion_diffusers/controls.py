"""Changes that explain nothing, made as large as a counterfactual: what a figure must beat to mean something.

- *Plain gradient*: the explained classifier's own gradient, followed on the pixels without any diffusion. It flips the
  classifier by changes that an outside classifier, or a person, hardly sees.
- *Random noise*: white noise. An outside classifier that moves under it judges noise, not anatomy.

Both are scaled image by image to the mean absolute change (L1) of the counterfactual that they stand beside. Where the
counterfactual was confined to a region the plain gradient is confined to it too: concentration alone convinces.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from .guidance import gradient_at_size, hold_saved_tensors


HIGH_FREQUENCY = 0.25  # cycles per pixel, half of what the grid can hold
_NO_CHANGE = 1e-5  # root mean square below which a change is rounding
_BISECTIONS = 40
_MAX_STRETCH = 64  # how much further than without clamping `change_by` goes to make up for it


def random_noise_control(originals: torch.Tensor, l1: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """White noise added to images, at a given mean absolute change.

    Args:
        originals: shape `(num, channels, height, width)` in [0, 1].
        l1: mean absolute change to make, per image, shape `(num,)`, in units of the full intensity range.
        generator: on the CPU.

    Returns:
        Changed images, same shape, in [0, 1].
    """
    noise = torch.randn(originals.shape, generator=generator, dtype=torch.float32).to(originals)
    return change_by(originals, noise, l1)


def plain_gradient_control(
    originals: torch.Tensor,
    l1: torch.Tensor,
    log_probability: Callable[[torch.Tensor], torch.Tensor],
    num_steps: int = 20,
    mask: torch.Tensor | float = 1.0,
) -> torch.Tensor:
    """Gradient ascent on the pixels towards a target, at a given mean absolute change.

    Args:
        originals: shape `(num, channels, height, width)` in [0, 1].
        l1: mean absolute change to make, per image, shape `(num,)`.
        log_probability: log-probability of what is wanted of each image, shape `(num,)`, from images in [0, 1];
            differentiable.
        num_steps: equal steps; each goes `l1 / num_steps` along the gradient.
        mask: where it may change the images, shape `(num, 1, height, width)` in [0, 1].

    Returns:
        Changed images, same shape, in [0, 1].
    """
    images = originals.clone()
    for _ in range(num_steps):
        gradient = mask * _ascent(images, log_probability)
        size = gradient.abs().flatten(1).mean(1).clamp_min(1e-20)
        step = (l1.to(size) / num_steps / size).view(-1, 1, 1, 1) * gradient
        images = (images + step).clamp(0, 1)
    return change_by(originals, images - originals, l1)


def ascend_log_probability(
    latents: torch.Tensor,
    size: torch.Tensor,
    log_probability: Callable[[torch.Tensor], torch.Tensor],
    num_steps: int = 5,
    mask: torch.Tensor | float = 1.0,
) -> torch.Tensor:
    """The plain gradient in latent space: ascent towards a target with steps of equal length, without any diffusion.

    Args:
        latents: shape `(num, channels, height, width)`.
        size: length (2-norm) of the whole change if all steps go the same way, per image, shape `(num,)`.
        log_probability: log-probability of what is wanted of each image, shape `(num,)`, from latents; differentiable.
        num_steps: gradient evaluations.
        mask: where it may change the latents, shape `(num or 1, 1, height, width)` in [0, 1].

    Returns:
        Changed latents, same shape. Where the gradient vanishes the image stays as it is.
    """
    changed = latents.clone()
    for _ in range(num_steps):
        gradient = mask * _ascent(changed, log_probability)
        length = gradient.flatten(1).norm(dim=1).clamp_min(1e-20)
        step = (size.to(length) / num_steps / length).view(-1, 1, 1, 1) * gradient
        changed = (changed + step).to(latents.dtype)
    return changed


def change_by(originals: torch.Tensor, direction: torch.Tensor, l1: torch.Tensor) -> torch.Tensor:
    """Go along `direction` until the clamped change has the wanted size.

    Args:
        originals: shape `(num, channels, height, width)` in [0, 1].
        direction: same shape; where it is zero everywhere, or the wanted size cannot be reached within [0, 1], the
            change is as large as it can be.
        l1: mean absolute change per image, shape `(num,)`.

    Returns:
        Changed images in [0, 1].
    """
    size = direction.abs().flatten(1).mean(1).clamp_min(1e-20)
    unit = direction / size.view(-1, 1, 1, 1)
    low, high = torch.zeros_like(size), _MAX_STRETCH * l1.to(size)
    for _ in range(_BISECTIONS):  # the clamped change grows with the scale
        middle = (low + high) / 2
        reached = _changed(originals, unit, middle).sub(originals).abs().flatten(1).mean(1)
        is_small = reached < l1.to(size)
        low, high = torch.where(is_small, middle, low), torch.where(is_small, high, middle)
    return _changed(originals, unit, (low + high) / 2)


def high_frequency_share(difference: np.ndarray) -> np.ndarray:
    """Share of a change's energy above `HIGH_FREQUENCY`, its mean left out; NaN for no change.

    Anatomical edits are smooth; of white noise, 0.80 lies above (the share of the frequency plane).

    Args:
        difference: shape `(num, channels, height, width)`.

    Returns:
        Shape `(num,)`, in [0, 1].
    """
    height, width = difference.shape[-2:]
    energy = (np.abs(np.fft.fft2(difference)) ** 2).sum(1)
    energy[:, 0, 0] = 0
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
    total = energy.sum((1, 2))
    with np.errstate(invalid="ignore"):
        is_change = total > (height * width * _NO_CHANGE) ** 2
        return np.where(is_change, energy[:, radius > HIGH_FREQUENCY].sum(1) / total, np.nan)


def _ascent(images: torch.Tensor, log_probability: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Direction of the gradient of each log-probability, in float32 or better; works under `torch.inference_mode`.

    Its length means nothing. Of a probability g near 1 it is in proportion to 1 - g.
    """
    with torch.inference_mode(False), torch.enable_grad(), hold_saved_tensors():
        leaf = images.detach().clone().requires_grad_(True)
        log_prob = log_probability(leaf).float()
        rest = -torch.expm1(log_prob.detach())
        return gradient_at_size(log_prob, torch.ones_like(log_prob), rest, leaf)[0]


def _changed(originals: torch.Tensor, unit: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return (originals + scale.view(-1, 1, 1, 1) * unit).clamp(0, 1)
