"""The controls of a call: each image changed as much as its counterfactual by what explains nothing."""

from __future__ import annotations

from typing import Any

import torch

from ...controls import ascend_log_probability, change_by, high_frequency_share
from ...image_processor import denormalize, normalize
from ..base import MediffusionPipeline, scores_to_output
from .judge import Judge
from .question import Question


_NOISE_SEED = 0  # of the random-noise control: the same field for every image


def make_controls(
    pipe: MediffusionPipeline,
    judge: Judge,
    question: Question,
    original: torch.Tensor,
    edited: torch.Tensor,
    latents: torch.Tensor,
    change: torch.Tensor,
    region: torch.Tensor | None,
    output_type: str,
) -> dict[str, Any]:
    """Fields of the output: the plain gradient and noise at each counterfactual's size.

    The gradient climbs in latent space, which costs a few encoder passes of the U-Net and one decoding.

    Args:
        pipe: the pipeline.
        judge: whose log-probability the gradient climbs.
        question: the rows.
        original: pictures of the rows in [-1, 1].
        edited: their counterfactuals.
        latents: of the originals.
        change: of the latents, that the counterfactuals show.
        region: where they could change, or None.
        output_type: of the call.
    """
    question = question.to(latents)
    target = question.target
    originals, counterfactuals = denormalize(original), denormalize(edited)
    l1 = (counterfactuals - originals).abs().flatten(1).mean(1)
    size = change.float().flatten(1).norm(dim=1)

    def log_probability(changed: torch.Tensor) -> torch.Tensor:
        return target.clone().log_prob(judge.logits(changed).float())

    mask = 1.0 if region is None else region.to(latents)
    pushed = ascend_log_probability(latents, size, log_probability, mask=mask)
    # What the autoencoder alone changes is no part of the gradient.
    direction = pipe.decode_latents(pushed) - pipe.decode_latents(latents)
    seeded = torch.Generator().manual_seed(_NOISE_SEED)
    noise = torch.randn(originals[:1].shape, generator=seeded, dtype=torch.float32).to(originals)
    pictures = {
        "counterfactual": counterfactuals,
        "plain_gradient": change_by(originals, direction.float(), l1),
        "random_noise": change_by(originals, noise.expand_as(originals), l1),
    }
    made: dict[str, Any] = {"l1": scores_to_output(l1, output_type)}
    shares = []
    for name, images in pictures.items():
        shares.append(torch.from_numpy(high_frequency_share((images - originals).cpu().numpy())))
        if name != "counterfactual":
            classified = pipe.classify_latents(pipe.encode_pixels(normalize(images)))
            made[f"{name}_images"] = pipe.image_processor.postprocess(normalize(images), output_type)
            made[f"{name}_probabilities"] = scores_to_output(pipe.logits_to_probabilities(classified), output_type)
    made["high_frequency_shares"] = scores_to_output(torch.stack(shares, dim=1), output_type)
    return made
