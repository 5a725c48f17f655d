"""The losses of joint training, L = L_diff + w * L_class (paper Sec. 3.3; its printed minus sign is a slip)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ...models import JointUNet2DModel
from ..classification import classification_loss, known_terms
from .shared_forward import UNetInput, denoise_from_frozen, predict


@dataclass
class DiffusionBatch:
    """One slice of the diffusion stream.

    Args:
        latents: clean, scaled latents z_0, shape `(batch, channels, height, width)`.
        noise: standard normal noise, same shape.
        timesteps: one uniform random t per image, shape `(batch,)`, int64.
        num_images: images of the *global* batch, over which the loss is the mean.
        weights: of the images' errors, shape `(batch,)`, such as `snr_weights`; `None` weighs them equally.
    """

    latents: torch.Tensor
    noise: torch.Tensor
    timesteps: torch.Tensor
    num_images: int
    weights: torch.Tensor | None = None


@dataclass
class LabelledBatch:
    """One slice of the labelled stream.

    Args:
        latents: what the classifier is asked about: z_0, or z_t where `timesteps` is above zero; shape
            `(batch, channels, height, width)`.
        timesteps: shape `(batch,)`, int64; 0 for clean latents.
        labels: targets, shape `(batch, num_labels)`, NaN = unknown (see `classification_loss`).
        num_known: number of terms of the *global* batch's loss; `None` counts this slice's.
    """

    latents: torch.Tensor
    timesteps: torch.Tensor
    labels: torch.Tensor
    num_known: int | None = None


def diffusion_target(
    latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor, noise_scheduler: Any
) -> torch.Tensor:
    """What the U-Net is to predict, by the scheduler's `prediction_type`.

    Args:
        latents: z_0, shape `(batch, channels, height, width)`.
        noise: eps, same shape.
        timesteps: shape `(batch,)`.
        noise_scheduler: a diffusers scheduler.

    Returns:
        The noise, the latents or the velocity, same shape.

    Raises:
        ValueError: for an unknown prediction type.
    """
    prediction_type = noise_scheduler.config.prediction_type
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "sample":
        return latents
    if prediction_type == "v_prediction":
        return noise_scheduler.get_velocity(latents, noise, timesteps)
    raise ValueError(
        f"`prediction_type` must be 'epsilon', 'sample' or 'v_prediction', but the scheduler has {prediction_type!r}."
    )


def diffusion_loss(
    model_output: torch.Tensor,
    target: torch.Tensor,
    num_images: int | None = None,
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Mean squared error of the U-Net's prediction, L_diff.

    Args:
        model_output: shape `(batch, channels, height, width)`.
        target: see `diffusion_target`, same shape.
        num_images: divisor of the sum over images; the global batch's size when this is a slice of it.
        weights: of the images, shape `(batch,)`, such as `snr_weights`; `None` weighs them equally.

    Returns:
        A scalar.
    """
    per_image = (model_output.float() - target.float()).square().flatten(1).mean(dim=1)
    if weights is not None:
        per_image = per_image * weights
    return per_image.sum() / (len(per_image) if num_images is None else num_images)


class JointObjective(nn.Module):
    """All losses behind one `forward`, so that distributed wrappers see a single call per micro step.

    The diffusion pass leaves the head out: it computes no logits and gives the head no gradient. Without images to
    classify the head is so not touched by a step at all, not even by weight decay.

    Args:
        unet: the joint model.
        noise_scheduler: diffusers scheduler that adds the noise and names the prediction type.
        classification_loss_weight: w in L_diff + w * L_class.
        diffusion_loss_weight: weight of L_diff; 0 is the ablation of Table 3 and skips the pass.
        pseudo_label_weight: weight of the class loss on pseudo-labels (beyond the paper).
        consolidation_loss_weight: weight of the class loss on soft answers (beyond the paper).
        pos_weight: see `classification_loss`; it weighs the labels alone.
        share_forward: run the encoder once for all losses, see [`predict`].
        compile_backend: backend of `torch.compile` for the U-Net's pass, such as `"inductor"`.
    """

    def __init__(
        self,
        unet: JointUNet2DModel,
        noise_scheduler: Any,
        classification_loss_weight: float = 1.0,
        diffusion_loss_weight: float = 1.0,
        pseudo_label_weight: float = 1.0,
        consolidation_loss_weight: float = 1.0,
        pos_weight: torch.Tensor | None = None,
        share_forward: bool = True,
        compile_backend: str | None = None,
    ):
        super().__init__()
        self.unet = unet
        self.noise_scheduler = noise_scheduler
        self.diffusion_loss_weight = diffusion_loss_weight
        self.class_weights = {
            "classification_loss": classification_loss_weight,
            "pseudo_label_loss": pseudo_label_weight,
            "consolidation_loss": consolidation_loss_weight,
        }
        self.pos_weight = pos_weight
        self.share_forward = share_forward
        self.trains_encoder = True
        self._predict = predict if compile_backend is None else torch.compile(predict, backend=compile_backend)

    def forward(
        self,
        diffusion: DiffusionBatch | None = None,
        labelled: LabelledBatch | None = None,
        pseudo_labelled: LabelledBatch | None = None,
        answered: LabelledBatch | None = None,
    ) -> dict[str, torch.Tensor]:
        """Compute the losses of one slice.

        Args:
            diffusion: slice of the diffusion stream, if L_diff is wanted.
            labelled: slice of the labelled stream, if L_class is wanted.
            pseudo_labelled: slice of the diffusion stream with the teacher's labels, if they are wanted.
            answered: slice of the consolidation stream with the model's soft answers, if they are wanted.

        Returns:
            `loss` (weighted sum, to be differentiated) and, detached and unweighted, `diffusion_loss`,
            `classification_loss`, `pseudo_label_loss` and `consolidation_loss` where computed; with pseudo-labels
            `pseudo_label_share`, the share of the answers that the teacher was sure of.

        Raises:
            ValueError: if there is no slice at all.
        """
        given = {"classification_loss": labelled, "pseudo_label_loss": pseudo_labelled, "consolidation_loss": answered}
        classified = {name: batch for name, batch in given.items() if batch is not None}
        if diffusion is None and not classified:
            raise ValueError("At least one of `diffusion`, `labelled` and `answered` must be given.")
        problem_type = self.unet.config.problem_type
        terms: list[torch.Tensor] = []
        losses: dict[str, torch.Tensor] = {}
        output, all_logits = self._outputs(diffusion, list(classified.values()))
        if diffusion is not None:
            target = diffusion_target(diffusion.latents, diffusion.noise, diffusion.timesteps, self.noise_scheduler)
            loss = diffusion_loss(output, target, diffusion.num_images, diffusion.weights)
            terms.append(self.diffusion_loss_weight * loss)
            losses["diffusion_loss"] = loss.detach()
        for (name, batch), logits in zip(classified.items(), all_logits, strict=True):
            pos_weight = self.pos_weight if name == "classification_loss" else None
            pos_weight = None if pos_weight is None else pos_weight.to(logits.device)
            loss = classification_loss(logits, batch.labels, problem_type, batch.num_known, pos_weight)
            terms.append(self.class_weights[name] * loss)
            losses[name] = loss.detach()
        if pseudo_labelled is not None:
            num_sure = known_terms(pseudo_labelled.labels, problem_type).to(terms[-1])
            losses["pseudo_label_share"] = num_sure / (pseudo_labelled.num_known or 1)
        losses["loss"] = torch.stack(terms).sum()
        return losses

    def _outputs(
        self, diffusion: DiffusionBatch | None, classified: list[LabelledBatch]
    ) -> tuple[Any, tuple[torch.Tensor, ...]]:
        """The prediction for the noised latents, `None` without, and the logits of each batch to classify."""
        denoised = None
        if diffusion is not None:
            noisy_latents = self.noise_scheduler.add_noise(diffusion.latents, diffusion.noise, diffusion.timesteps)
            denoised = UNetInput(noisy_latents, diffusion.timesteps)
        if not self.trains_encoder:
            assert denoised is not None and not classified
            return denoise_from_frozen(self.unet, denoised), ()
        if not classified:
            return self._predict(self.unet, denoised, None, self.share_forward)[0], ()
        latents = torch.cat([batch.latents for batch in classified])
        timesteps = torch.cat([batch.timesteps for batch in classified])
        output, logits = self._predict(self.unet, denoised, UNetInput(latents, timesteps), self.share_forward)
        assert logits is not None
        return output, logits.split([len(batch.latents) for batch in classified])
