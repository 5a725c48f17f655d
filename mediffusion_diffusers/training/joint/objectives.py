"""The losses of joint training, L = L_diff + w * L_class (paper Sec. 3.3; its printed minus sign is a slip)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ...models import JointUNet2DModel
from .shared_forward import UNetInput, predict


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


def known_terms(labels: torch.Tensor, problem_type: str) -> torch.Tensor:
    """Number of terms in the classification loss: known entries (multi-label) or known rows (single-label).

    A scalar on the labels' device.
    """
    known = ~torch.isnan(labels)
    return known.sum() if problem_type == "multi_label_classification" else known.all(dim=1).sum()


def count_known(labels: torch.Tensor, problem_type: str) -> int:
    """`known_terms` as a number; waits for the labels' device."""
    return int(known_terms(labels, problem_type))


def classification_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    problem_type: str,
    num_known: int | None = None,
    pos_weight: torch.Tensor | None = None,
) -> torch.Tensor:
    """Classification loss L_class over what is known; the one place that masks missing labels.

    Multi-label: binary cross-entropy, mean over the known entries. Single-label: cross-entropy, mean over the rows
    whose class is known.

    Args:
        logits: shape `(batch, num_labels)`.
        labels: shape `(batch, num_labels)`: 1 present, 0 absent, NaN unknown; for single-label one-hot rows, or a row
            of NaN.
        problem_type: `"multi_label_classification"` or `"single_label_classification"`.
        num_known: divisor of the sum; the global batch's `count_known` when this is a slice of it.
        pos_weight: weights, `(num_labels,)`: multi-label of each label's positive term, single-label of each class's
            rows; see `resolve_pos_weight`. The divisor stays a count.

    Returns:
        A scalar; zero, with a graph, if nothing is known.

    Raises:
        ValueError: for an unknown `problem_type` or other shapes.
    """
    if logits.shape != labels.shape:
        raise ValueError(
            f"`labels` must have the logits' shape {tuple(logits.shape)}, but got {tuple(labels.shape)}. Give unknown "
            "labels as NaN and classes as one-hot rows."
        )
    logits = logits.float()
    known = ~torch.isnan(labels)
    targets = torch.nan_to_num(labels).to(logits)
    if problem_type == "multi_label_classification":
        terms = F.binary_cross_entropy_with_logits(logits, targets, reduction="none", pos_weight=pos_weight)
    elif problem_type == "single_label_classification":
        known = known.all(dim=1)
        terms = F.cross_entropy(logits, targets.argmax(dim=1), reduction="none", weight=pos_weight)
    else:
        raise ValueError(
            "`problem_type` must be 'multi_label_classification' or 'single_label_classification', but got "
            f"{problem_type!r}."
        )
    divisor = int(known.sum()) if num_known is None else num_known
    return torch.where(known, terms, torch.zeros_like(terms)).sum() / max(1, divisor)


class JointObjective(nn.Module):
    """Both losses behind one `forward`, so that distributed wrappers see a single call per micro step.

    The diffusion pass leaves the head out: it computes no logits and gives the head no gradient. Without a labelled
    batch the head is so not touched by a step at all, not even by weight decay.

    Args:
        unet: the joint model.
        noise_scheduler: diffusers scheduler that adds the noise and names the prediction type.
        classification_loss_weight: w in L_diff + w * L_class.
        diffusion_loss_weight: weight of L_diff; 0 is the ablation of Table 3 and skips the pass.
        pseudo_label_weight: weight of the class loss on pseudo-labels (beyond the paper).
        pos_weight: see `classification_loss`; pseudo-labels are not weighted by it.
        share_forward: run the encoder once for both losses, see [`predict`].
        compile_backend: backend of `torch.compile` for the U-Net's pass, such as `"inductor"`.
    """

    def __init__(
        self,
        unet: JointUNet2DModel,
        noise_scheduler: Any,
        classification_loss_weight: float = 1.0,
        diffusion_loss_weight: float = 1.0,
        pseudo_label_weight: float = 1.0,
        pos_weight: torch.Tensor | None = None,
        share_forward: bool = True,
        compile_backend: str | None = None,
    ):
        super().__init__()
        self.unet = unet
        self.noise_scheduler = noise_scheduler
        self.classification_loss_weight = classification_loss_weight
        self.diffusion_loss_weight = diffusion_loss_weight
        self.pseudo_label_weight = pseudo_label_weight
        self.pos_weight = pos_weight
        self.share_forward = share_forward
        self._predict = predict if compile_backend is None else torch.compile(predict, backend=compile_backend)

    def forward(
        self,
        diffusion: DiffusionBatch | None = None,
        labelled: LabelledBatch | None = None,
        pseudo_labelled: LabelledBatch | None = None,
    ) -> dict[str, torch.Tensor]:
        """Compute the losses of one slice.

        Args:
            diffusion: slice of the diffusion stream, if L_diff is wanted.
            labelled: slice of the labelled stream, if L_class is wanted.
            pseudo_labelled: slice of the diffusion stream with the teacher's labels, if they are wanted.

        Returns:
            `loss` (weighted sum, to be differentiated) and, detached and unweighted, `diffusion_loss`,
            `classification_loss` and `pseudo_label_loss` where computed; with the latter `pseudo_label_share`, the
            share of the answers that the teacher was sure of.

        Raises:
            ValueError: if neither slice is given.
        """
        if diffusion is None and labelled is None:
            raise ValueError("At least one of `diffusion` and `labelled` must be given.")
        problem_type = self.unet.config.problem_type
        terms: list[torch.Tensor] = []
        losses: dict[str, torch.Tensor] = {}
        output, (logits, pseudo_logits) = self._outputs(diffusion, labelled, pseudo_labelled)
        if diffusion is not None:
            target = diffusion_target(diffusion.latents, diffusion.noise, diffusion.timesteps, self.noise_scheduler)
            loss = diffusion_loss(output, target, diffusion.num_images, diffusion.weights)
            terms.append(self.diffusion_loss_weight * loss)
            losses["diffusion_loss"] = loss.detach()
        if labelled is not None:
            pos_weight = None if self.pos_weight is None else self.pos_weight.to(logits.device)
            loss = classification_loss(logits, labelled.labels, problem_type, labelled.num_known, pos_weight)
            terms.append(self.classification_loss_weight * loss)
            losses["classification_loss"] = loss.detach()
        if pseudo_labelled is not None:
            labels = pseudo_labelled.labels
            loss = classification_loss(pseudo_logits, labels, problem_type, pseudo_labelled.num_known)
            terms.append(self.pseudo_label_weight * loss)
            losses["pseudo_label_loss"] = loss.detach()
            num_sure = known_terms(labels, problem_type).to(loss)
            losses["pseudo_label_share"] = num_sure / (pseudo_labelled.num_known or 1)
        losses["loss"] = torch.stack(terms).sum()
        return losses

    def _outputs(
        self, diffusion: DiffusionBatch | None, labelled: LabelledBatch | None, pseudo_labelled: LabelledBatch | None
    ) -> tuple[Any, tuple[Any, Any]]:
        """The prediction for the noised latents, and the logits for both kinds of labels; `None` where not asked."""
        denoised = classified = None
        if diffusion is not None:
            noisy_latents = self.noise_scheduler.add_noise(diffusion.latents, diffusion.noise, diffusion.timesteps)
            denoised = UNetInput(noisy_latents, diffusion.timesteps)
        batches = [batch for batch in (labelled, pseudo_labelled) if batch is not None]
        if batches:
            latents, timesteps = ([getattr(b, name) for b in batches] for name in ("latents", "timesteps"))
            classified = UNetInput(torch.cat(latents), torch.cat(timesteps))
        output, logits = self._predict(self.unet, denoised, classified, self.share_forward)
        num_labelled = 0 if labelled is None else len(labelled.latents)
        return output, (None, None) if logits is None else (logits[:num_labelled], logits[num_labelled:])
