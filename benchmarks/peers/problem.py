"""What every peer is given: the same networks, image, target and noise, in the symbols of DDPM and DDIM.

abar_t is `alphas_cumprod[t]`. Equations are of Ho et al. 2020, "Denoising Diffusion Probabilistic Models", and of Song
et al. 2021, "Denoising Diffusion Implicit Models". Latents stand where the peers' papers have pixels: the phantoms'
autoencoder is a permutation of pixels times a scale, so that nothing but a constant differs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from diffusers.utils.torch_utils import randn_tensor

from mediffusion_diffusers import MediffusionCounterfactualPipeline
from mediffusion_diffusers.guidance import GuidanceTarget, gradient_of, predict_epsilon, predict_original_sample
from mediffusion_diffusers.schedulers import time_grid


@dataclass(frozen=True)
class PeerSettings:
    """What all peers have in common.

    Args:
        guidance_scale: weight of the classifier's gradient, at least 0.
        strength: noise level to start from, as a share of the schedule, in (0, 1).
        num_inference_steps: denoising steps from there, spread evenly.
    """

    guidance_scale: float
    strength: float = 0.3
    num_inference_steps: int = 20


@dataclass(frozen=True)
class Problem:
    """Images to change, and the networks to do it with.

    Args:
        pipe: the pipeline whose joint U-Net predicts noise and, unless there is a `classifier`, classifies at t = 0.
        latents: clean ones, z_0, shape `(num, channels, height, width)`.
        target: what is wanted of each.
        generator: of each image's noise, so that a batch gives what single images give.
        classifier: logits from clean latents, differentiable; None for the model's own head.
    """

    pipe: MediffusionCounterfactualPipeline
    latents: torch.Tensor
    target: GuidanceTarget
    generator: list[torch.Generator]
    classifier: Callable[[torch.Tensor], torch.Tensor] | None = None

    def steps(self, settings: PeerSettings) -> list[tuple[int, int]]:
        """Pairs of timesteps `(t, next t)`, noisiest first; the last `next t` is 0, the clean image."""
        last = self.pipe.scheduler.config.num_train_timesteps - 1
        start = min(max(round(settings.strength * (last + 1)), settings.num_inference_steps), last)
        return list(pairwise(time_grid(settings.num_inference_steps, start)[::-1].tolist()))

    def alpha(self, t: int) -> torch.Tensor:
        """abar_t, a scalar; 1 for the clean image."""
        return self.pipe.scheduler.alphas_cumprod[t] if t else torch.ones(())

    def noise(self) -> torch.Tensor:
        """White noise of the latents' shape, each image's from its own generator."""
        return randn_tensor(self.latents.shape, self.generator, self.latents.device, self.latents.dtype)

    def add_noise(self, latents: torch.Tensor, t: int) -> torch.Tensor:
        """q(z_t | z_0), Eq. 4 of DDPM; the latents themselves at t = 0."""
        alpha = self.alpha(t)
        return alpha.sqrt() * latents + (1 - alpha).sqrt() * self.noise() if t else latents

    def predict(self, z_t: torch.Tensor, t: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The predicted clean latents ("predicted x_0", Eq. 12 of DDIM) and the predicted noise."""
        output = self.pipe.unet(z_t, t, return_logits=False).sample
        place = (z_t, self.alpha(t), self.pipe.scheduler.config.prediction_type)
        return predict_original_sample(output, *place), predict_epsilon(output, *place)

    def step(
        self, z_0: torch.Tensor, epsilon: torch.Tensor, t: int, next_t: int, gradient: torch.Tensor | float = 0.0
    ) -> torch.Tensor:
        """One step of p(z_next | z_t): Eq. 12 and 16 of DDIM with eta = 1, which is DDPM's (its Eq. 6 and 7).

        The mean is shifted by the variance times a gradient (Dhariwal & Nichol 2021, Algorithm 1). The last step, as
        DDPM's, is the mean alone.

        Args:
            z_0: predicted clean latents.
            epsilon: predicted noise.
            t: where they were predicted.
            next_t: where to go.
            gradient: of what is to rise, with respect to z_t.
        """
        if next_t == 0:
            return z_0
        alpha, next_alpha = self.alpha(t), self.alpha(next_t)
        variance = (1 - next_alpha) / (1 - alpha) * (1 - alpha / next_alpha)
        mean = next_alpha.sqrt() * z_0 + (1 - next_alpha - variance).sqrt() * epsilon
        return mean + variance * gradient + variance.sqrt() * self.noise()

    def denoise(self, z_t: torch.Tensor, steps: list[tuple[int, int]]) -> torch.Tensor:
        """Plain ancestral sampling along `steps` to the end; differentiable."""
        for t, next_t in steps:
            z_t = self.step(*self.predict(z_t, t), t, next_t)
        return z_t

    def log_prob_grad(self, z_0: torch.Tensor) -> torch.Tensor:
        """Gradient of log g(y | z_0) at clean latents with respect to them, same shape."""
        with torch.enable_grad():
            leaf = z_0.detach().clone().requires_grad_()
            return gradient_of(self.target.log_prob, self.logits(leaf), leaf).to(z_0)

    def logits(self, z_0: torch.Tensor) -> torch.Tensor:
        """Class scores of clean latents, shape `(num, num_labels)`."""
        if self.classifier is not None:
            return self.classifier(z_0)
        return self.pipe.unet(z_0, 0, return_sample=False).logits

    def blend(self, mask: torch.Tensor, inside: torch.Tensor, t: int) -> torch.Tensor:
        """RePaint's Eq. 8 (Lugmayr et al. 2022): given latents inside of a mask, the original noised to t outside.

        Where the mask is 0 at t = 0 the original stays bit for bit.
        """
        return torch.where(mask > 0, inside, self.add_noise(self.latents, t))


def change_mask(change: torch.Tensor, threshold: float, dilation: int) -> torch.Tensor:
    """Where a change is large: its mean size over channels, as a share of its maximum, dilated, above a threshold.

    Args:
        change: shape `(num, channels, height, width)`.
        threshold: in [0, 1).
        dilation: positions to grow by on each side.

    Returns:
        1 or 0, shape `(num, 1, height, width)`; 0 everywhere where nothing changed.
    """
    size = change.abs().mean(1, keepdim=True)
    share = size / size.amax(dim=(2, 3), keepdim=True).clamp_min(1e-20)
    return (F.max_pool2d(share, 2 * dilation + 1, stride=1, padding=dilation) > threshold).to(change)
