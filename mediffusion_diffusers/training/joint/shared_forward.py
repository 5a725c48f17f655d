"""One pass through the encoder for both losses: the classifier reads some of its rows, the decoder the others."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ...models import JointUNet2DModel


class UNetInput(NamedTuple):
    """What the U-Net is asked about.

    Args:
        latents: shape `(batch, channels, height, width)`.
        timesteps: shape `(batch,)`, int64.
    """

    latents: torch.Tensor
    timesteps: torch.Tensor


def can_share(denoised: UNetInput | None, classified: UNetInput | None) -> bool:
    """Whether both inputs are there and stack into one batch."""
    return (
        denoised is not None
        and classified is not None
        and denoised.latents.shape[1:] == classified.latents.shape[1:]
        and denoised.latents.dtype == classified.latents.dtype
    )


def predict(
    unet: JointUNet2DModel, denoised: UNetInput | None, classified: UNetInput | None, share_forward: bool = True
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Denoise some latents and classify others.

    The head sees no row of `denoised` and the decoder none of `classified`, with one encoder pass as with two; so
    losses and gradients are the same but for rounding (and for dropout inside the U-Net, which draws other numbers).

    Args:
        unet: the joint model.
        denoised: what to denoise, if anything.
        classified: what to classify, if anything.
        share_forward: encode both in one batch where `can_share` allows it.

    Returns:
        The prediction for `denoised`, same shape as its latents, and the logits for `classified`, shape
        `(batch, num_labels)`; `None` for what was not asked.
    """
    if not (share_forward and can_share(denoised, classified)):
        sample = None if denoised is None else unet(*denoised, return_logits=False).sample
        logits = None if classified is None else unet(*classified, return_sample=False).logits
        return sample, logits
    assert denoised is not None and classified is not None
    sizes = [len(denoised.latents), len(classified.latents)]
    encoded = unet.encode(
        torch.cat([denoised.latents, classified.latents]), torch.cat([denoised.timesteps, classified.timesteps])
    )
    # Split once per map, not sliced twice: the backward pass then joins the two gradients instead of adding zeros.
    maps, skips = encoded.sample.split(sizes), [skip.split(sizes) for skip in encoded.skips]
    emb, timesteps = encoded.emb.split(sizes), encoded.timesteps.split(sizes)
    parts = [
        encoded._replace(sample=maps[i], skips=tuple(skip[i] for skip in skips), emb=emb[i], timesteps=timesteps[i])
        for i in range(2)
    ]
    return unet.decode(parts[0]), unet.classify(parts[1])


def denoise_from_frozen(unet: JointUNet2DModel, denoised: UNetInput) -> torch.Tensor:
    """Denoise with gradients of the decoder alone: the encoder runs without a graph.

    The features ask for a gradient nobody reads: the backward pass of group normalisation, channels last on a CPU,
    reads a null pointer where its input needs none (torch 2.13).

    Args:
        unet: the joint model.
        denoised: what to denoise.

    Returns:
        The prediction, same shape as the latents.
    """
    with torch.no_grad():
        encoded = unet.encode(*denoised)
    sample = encoded.sample.requires_grad_()
    return unet.decode(encoded._replace(sample=sample, skips=tuple(skip.requires_grad_() for skip in encoded.skips)))
