"""Whether a model still denoises: held-out loss in each tenth of the noise schedule."""

from __future__ import annotations

import torch

from mediffusion_diffusers import JointUNet2DModel
from mediffusion_diffusers.latents import encode_pixels
from mediffusion_diffusers.training.joint.loss_weights import snr_weights
from mediffusion_diffusers.training.joint.objectives import diffusion_loss, diffusion_target

from .task import BenchmarkTask


NUM_BINS, NUM_IMAGES, _SEED = 10, 300, 5


@torch.no_grad()
def denoising_losses(task: BenchmarkTask, images: torch.Tensor, unet: JointUNet2DModel | None = None) -> list[float]:
    """L_diff as the recipe weighs it, on the same images, noises and timesteps every time.

    Args:
        task: has autoencoder, noise schedule and averaged weights.
        images: held-out images in [-1, 1]; the first `NUM_IMAGES` are used.
        unet: instead of the averaged weights.

    Returns:
        Mean loss of each bin, from little noise to much.
    """
    options, scheduler = task.config.diffusion, task.noise_scheduler
    if unet is None:
        assert task.ema is not None
        unet = task.ema.averaged()
    latents = encode_pixels(task.vae, images[:NUM_IMAGES])
    generator = torch.Generator().manual_seed(_SEED)
    num, length, losses = len(latents), options.num_train_timesteps, []
    for bin_number in range(NUM_BINS):
        places = (bin_number + (torch.arange(num) + 0.5) / num) / NUM_BINS
        timesteps = (places * length).long()
        noise = torch.randn(latents.shape, generator=generator)
        noisy = scheduler.add_noise(latents, noise, timesteps).contiguous(memory_format=torch.channels_last)
        output = unet(noisy, timesteps, return_logits=False).sample
        weights = None
        if options.snr_gamma is not None:
            weights = snr_weights(scheduler, timesteps, options.snr_gamma, options.snr_weighting)
        target = diffusion_target(latents, noise, timesteps, scheduler)
        losses.append(float(diffusion_loss(output, target, weights=weights)))
    return losses
