"""The loss of the autoencoder: reconstruction, KL divergence and a learned variance (paper App. C)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers import AutoencoderKL
from torch import nn


PerceptualLoss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class AutoencoderObjective(nn.Module):
    r"""Negative log-likelihood of the images plus a small KL term, as in latent diffusion (Rombach et al.).

    L = sum_pixels(r / exp(s) + s) + w_KL * KL, averaged over images, with r = |x - x'| + w_p * perceptual(x, x')
    and s a learned log-variance.

    Args:
        vae: the autoencoder.
        kl_weight: w_KL; the paper's 1e-6 belongs to sums over pixels and latents, as here.
        perceptual_loss: maps images and reconstructions in [-1, 1], `(batch, channels, height, width)`, to one
            number per image, `(batch,)`; `None` for no perceptual term.
        perceptual_weight: w_p.
    """

    def __init__(
        self,
        vae: AutoencoderKL,
        kl_weight: float = 1e-6,
        perceptual_loss: PerceptualLoss | None = None,
        perceptual_weight: float = 1.0,
    ):
        super().__init__()
        self.vae = vae
        self.log_variance = nn.Parameter(torch.zeros(()))
        self.kl_weight = kl_weight
        self.perceptual_loss = perceptual_loss
        self.perceptual_weight = perceptual_weight

    def forward(
        self, images: torch.Tensor, noise: torch.Tensor, num_images: int | None = None
    ) -> dict[str, torch.Tensor]:
        """Compute the loss of one slice of a batch.

        Args:
            images: shape `(batch, channels, height, width)` in [-1, 1].
            noise: standard normal noise of the latents' shape, for the sample of the posterior.
            num_images: divisor of the sums over images; the global batch's size when this is a slice of it.

        Returns:
            `loss` (to be differentiated) and, detached, `l1_loss` (mean over pixels, in units of [0, 1]), `kl_loss`
            (sum over the latent) and, if there is one, `perceptual_loss`; all averaged over images.
        """
        count = len(images) if num_images is None else num_images
        posterior = self.vae.encode(images).latent_dist
        reconstruction = self.vae.decode(posterior.mean + posterior.std * noise).sample.float()
        error = (images - reconstruction).abs()
        losses = {"l1_loss": error.detach().flatten(1).mean(dim=1).sum() / (2 * count)}
        if self.perceptual_loss is not None:
            distance = self.perceptual_loss(images, reconstruction)
            losses["perceptual_loss"] = distance.detach().sum() / count
            error = error + self.perceptual_weight * distance.view(-1, 1, 1, 1)
        likelihood = (error / self.log_variance.exp() + self.log_variance).sum() / count
        divergence = posterior.kl().sum() / count
        losses["kl_loss"] = divergence.detach()
        losses["loss"] = likelihood + self.kl_weight * divergence
        return losses
