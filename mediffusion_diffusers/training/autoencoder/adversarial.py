"""The adversarial part of the autoencoder's loss: hinge losses and the adaptive weight (Esser et al., 2021)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call


SumOverProcesses = Callable[[torch.Tensor], torch.Tensor]

MAX_ADAPTIVE_WEIGHT = 1e4
_EPSILON = 1e-4


def hinge_loss(real_logits: torch.Tensor, fake_logits: torch.Tensor, num_images: int | None = None) -> torch.Tensor:
    """Loss of the discriminator: mean of max(0, 1 - real) and max(0, 1 + fake) over patches, halved.

    Args:
        real_logits: of images, `(batch, 1, rows, columns)`.
        fake_logits: of reconstructions, same shape.
        num_images: divisor of the sum over images; the global batch's size when this is a slice of it.

    Returns:
        A scalar.
    """
    per_image = (F.relu(1 - real_logits) + F.relu(1 + fake_logits)).flatten(1).mean(dim=1) / 2
    return per_image.sum() / (len(per_image) if num_images is None else num_images)


def generator_loss(fake_logits: torch.Tensor, num_images: int | None = None) -> torch.Tensor:
    """Loss of the autoencoder: minus the mean logit of its reconstructions; arguments as of `hinge_loss`."""
    per_image = -fake_logits.flatten(1).mean(dim=1)
    return per_image.sum() / (len(per_image) if num_images is None else num_images)


def frozen_logits(discriminator: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Logits through which a gradient reaches the images, but not the discriminator's parameters."""
    parameters = {name: parameter.detach() for name, parameter in discriminator.named_parameters()}
    return functional_call(discriminator, parameters, (images,))


def adaptive_weight(
    reconstruction_loss: torch.Tensor,
    adversarial_loss: torch.Tensor,
    last_layer: torch.Tensor,
    sum_over_processes: SumOverProcesses | None = None,
) -> torch.Tensor:
    r"""Weight that makes both losses pull equally at the decoder's last layer (Esser et al., 2021, Eq. 7).

    lambda = |grad_W L_rec| / (|grad_W L_adv| + 1e-4), at most 1e4, W the weights of the last layer.

    Args:
        reconstruction_loss: L_rec, without the KL term; its graph is kept.
        adversarial_loss: L_adv; its graph is kept.
        last_layer: W.
        sum_over_processes: adds up a tensor over processes whose losses are slices of one batch's, so that the norms
            are those of the whole batch.

    Returns:
        A scalar without a graph.
    """
    (pull,) = torch.autograd.grad(reconstruction_loss, last_layer, retain_graph=True)
    (push,) = torch.autograd.grad(adversarial_loss, last_layer, retain_graph=True)
    pulls = torch.stack([pull.float(), push.float()])
    if sum_over_processes is not None:
        pulls = sum_over_processes(pulls)
    reconstruction_norm, adversarial_norm = pulls.flatten(1).norm(dim=1)
    return (reconstruction_norm / (adversarial_norm + _EPSILON)).clamp(max=MAX_ADAPTIVE_WEIGHT).detach()


class DiscriminatorObjective(nn.Module):
    """The discriminator and its loss behind one `forward`, for distributed wrappers.

    Args:
        discriminator: maps images to logits.
    """

    def __init__(self, discriminator: nn.Module):
        super().__init__()
        self.discriminator = discriminator

    def forward(
        self, images: torch.Tensor, reconstructions: torch.Tensor, num_images: int | None = None
    ) -> dict[str, torch.Tensor]:
        """Compute the loss of one slice of a batch.

        Args:
            images: shape `(batch, channels, height, width)` in [-1, 1].
            reconstructions: same shape; no gradient goes through them.
            num_images: see `hinge_loss`.

        Returns:
            `loss` (to be differentiated) and, detached, `discriminator_loss`, `real_logits` and `fake_logits` (means
            over images).
        """
        count = len(images) if num_images is None else num_images
        real, fake = self.discriminator(images).float(), self.discriminator(reconstructions.detach()).float()
        loss = hinge_loss(real, fake, count)
        means = [logits.detach().flatten(1).mean(dim=1).sum() / count for logits in (real, fake)]
        return {
            "loss": loss,
            "discriminator_loss": loss.detach(),
            "real_logits": means[0],
            "fake_logits": means[1],
        }
