"""The loss of the autoencoder: reconstruction, KL divergence, learned variance, adversary (paper App. C)."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL
from torch import nn

from .adversarial import SumOverProcesses, adaptive_weight, frozen_logits, generator_loss
from .perceptual_loss import PerceptualLoss


class AutoencoderObjective(nn.Module):
    r"""Negative log-likelihood of the images plus a small KL term and an adversary's, as in latent diffusion.

    L = L_rec + w_KL * KL + w_disc * lambda * L_adv, with L_rec = sum_pixels(r / exp(s) + s) averaged over images,
    r = |x - x'| + w_p * perceptual(x, x'), s a learned log-variance, L_adv minus the discriminator's mean logit and
    lambda the `adaptive_weight` (Rombach et al., 2022; Esser et al., 2021).

    Args:
        vae: the autoencoder.
        kl_weight: w_KL; the paper's 1e-6 belongs to sums over pixels and latents, as here.
        perceptual_loss: maps images and reconstructions in [-1, 1], `(batch, channels, height, width)`, to one
            number per image, `(batch,)`; `None` for no perceptual term.
        perceptual_weight: w_p.
        discriminator: maps images to logits of patches; `None` for no adversary. It is no part of this module: its
            parameters get no gradient here and are not among `parameters()`.
        discriminator_weight: w_disc.
        sum_over_processes: see `adaptive_weight`; `None` for one process.
    """

    def __init__(
        self,
        vae: AutoencoderKL,
        kl_weight: float = 1e-6,
        perceptual_loss: PerceptualLoss | None = None,
        perceptual_weight: float = 1.0,
        discriminator: nn.Module | None = None,
        discriminator_weight: float = 0.5,
        sum_over_processes: SumOverProcesses | None = None,
    ):
        super().__init__()
        self.vae = vae
        self.log_variance = nn.Parameter(torch.zeros(()))
        self.kl_weight = kl_weight
        self.perceptual_loss = perceptual_loss
        self.perceptual_weight = perceptual_weight
        self.adversary = (discriminator,)  # a tuple hides it from `parameters()` and `state_dict()`
        self.discriminator_weight = discriminator_weight
        self.sum_over_processes = sum_over_processes

    def forward(
        self,
        images: torch.Tensor,
        noise: torch.Tensor,
        num_images: int | None = None,
        is_perceptual: bool = True,
        is_adversarial: bool = True,
    ) -> dict[str, torch.Tensor]:
        """Compute the loss of one slice of a batch.

        Args:
            images: shape `(batch, channels, height, width)` in [-1, 1].
            noise: standard normal noise of the latents' shape, for the sample of the posterior.
            num_images: divisor of the sums over images; the global batch's size when this is a slice of it.
            is_perceptual: whether the perceptual term, if there is one, takes part.
            is_adversarial: whether the adversarial term, if there is one, takes part.

        Returns:
            `loss` (to be differentiated) and, detached, `l1_loss` (mean over pixels, in units of [0, 1]), `kl_loss`
            (sum over the latent) and, where they take part, `perceptual_loss`, `generator_loss` and
            `adaptive_weight`, all averaged over images; and the `reconstructions`, shape of `images`.
        """
        count = len(images) if num_images is None else num_images
        posterior = self.vae.encode(images).latent_dist
        reconstructions = self.vae.decode(posterior.mean + posterior.std * noise).sample.float()
        error = (images - reconstructions).abs()
        losses = {
            "reconstructions": reconstructions.detach(),
            "l1_loss": error.detach().flatten(1).mean(dim=1).sum() / (2 * count),
        }
        if self.perceptual_loss is not None and is_perceptual:
            distance = self.perceptual_loss(images, reconstructions)
            losses["perceptual_loss"] = distance.detach().sum() / count
            error = error + self.perceptual_weight * distance.view(-1, 1, 1, 1)
        likelihood = (error / self.log_variance.exp() + self.log_variance).sum() / count
        divergence = posterior.kl().sum() / count
        losses["kl_loss"] = divergence.detach()
        loss = likelihood + self.kl_weight * divergence

        (discriminator,) = self.adversary
        if discriminator is not None and is_adversarial:
            adversarial_loss = generator_loss(frozen_logits(discriminator, reconstructions).float(), count)
            last_layer = self.vae.decoder.conv_out.weight
            weight = adaptive_weight(likelihood, adversarial_loss, last_layer, self.sum_over_processes)
            losses["generator_loss"] = adversarial_loss.detach()
            losses["adaptive_weight"] = weight * (len(images) / count)
            loss = loss + self.discriminator_weight * weight * adversarial_loss
        losses["loss"] = loss
        return losses
