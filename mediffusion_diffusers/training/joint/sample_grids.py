"""Sample grids: what the diffusion model draws from the same noise as training goes on."""

from __future__ import annotations

from typing import Any

import torch

from ...latents import decode_latents
from ...models import JointUNet2DModel
from ..run.randomness import keyed_generator
from .components import sampling_scheduler


@torch.no_grad()
def sample_images(
    unet: JointUNet2DModel,
    vae: Any,
    noise_scheduler: Any,
    num_images: int,
    num_inference_steps: int,
    seed: int,
    batch_size: int = 16,
) -> torch.Tensor:
    """Draw images with DDIM, without guidance, always from the same noise.

    Args:
        unet: the joint model in evaluation mode.
        vae: the autoencoder.
        noise_scheduler: the noise schedule of training.
        num_images: how many.
        num_inference_steps: DDIM steps.
        seed: seed of the noise.
        batch_size: images drawn at once.

    Returns:
        Shape `(num_images, channels, height, width)` in [-1, 1], on the CPU.
    """
    scheduler = sampling_scheduler(noise_scheduler, vae)
    size = unet.config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    shape = (num_images, unet.config.in_channels, height, width)
    noise = torch.randn(shape, generator=keyed_generator(seed, "sample grid"))
    images = []
    for latents in noise.split(batch_size):
        latents = latents.to(unet.device)
        scheduler.set_timesteps(num_inference_steps, device=unet.device)
        for timestep in scheduler.timesteps:
            noise_pred = unet(latents, timestep, return_logits=False).sample
            latents = scheduler.step(noise_pred, timestep, latents).prev_sample
        images.append(decode_latents(vae, latents).float().cpu())
    return torch.cat(images).clamp(-1, 1)
