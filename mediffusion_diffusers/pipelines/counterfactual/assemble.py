"""From edited latents to what the user gets: pictures, probabilities, differences, controls."""

from __future__ import annotations

from typing import Any

import torch

from ..base import MediffusionPipeline, check_results, scores_to_output
from ..outputs import MediffusionCounterfactualPipelineOutput
from .controls import make_controls
from .editor import Edit
from .judge import ExternalJudge, Judge, OwnJudge, Shown, show
from .question import Question
from .settings import CounterfactualSettings


def assemble(
    pipe: MediffusionPipeline,
    pixels: torch.Tensor,
    clean_latents: torch.Tensor,
    question: Question,
    edit: Edit,
    settings: CounterfactualSettings,
    judge: Judge,
    outside: ExternalJudge | None,
    output_type: str,
    with_controls: bool,
    timesteps: list[int],
) -> MediffusionCounterfactualPipelineOutput:
    """Decode, classify and compare.

    Args:
        pipe: the pipeline.
        pixels: of each image, in [-1, 1].
        clean_latents: of each image.
        question: the counterfactuals.
        edit: their latents.
        settings: of the call.
        judge: who guided.
        outside: another classifier whose probabilities are reported.
        output_type: of the call.
        with_controls: whether to make the controls.
        timesteps: of the guided evaluations.

    Raises:
        ValueError: if guidance has driven the latents beyond all numbers.
    """
    edited, null = (show(pipe, latents, output_type) for latents in (edit.latents, edit.null_latents))
    check_results((edit.null_latents, null.pictures), 0.0)
    check_results((edit.latents, edited.pictures), edit.guidance_scales)
    clean = Shown(clean_latents if output_type == "latent" else pixels.to(clean_latents.device), clean_latents)
    every_row = torch.arange(len(question))
    stages = {"before": (clean, question.image_index), "after": (edited, every_row), "null": (null, edit.null_index)}

    fields: dict[str, Any] = {}
    for stage, (shown, rows) in stages.items():
        own = OwnJudge(pipe).probabilities(shown)[rows]
        fields[f"probabilities_{stage}"] = scores_to_output(own, output_type)
        if outside is not None:
            outer = outside.probabilities(shown)[rows]
            fields[f"external_probabilities_{stage}"] = scores_to_output(outer, output_type)
    original, counterfactual, unguided = (shown.pictures[rows].float() for shown, rows in stages.values())
    if with_controls and output_type != "latent":
        latents = clean_latents[question.image_index]
        pictures = (original, counterfactual, latents, edit.latents)
        fields |= make_controls(pipe, judge, question, *pictures, output_type)
    region = question.region
    return MediffusionCounterfactualPipelineOutput(
        images=_to_images(pipe, counterfactual, output_type),
        null_images=_to_images(pipe, unguided, output_type),
        originals=_to_images(pipe, original, output_type),
        difference=_to_difference(counterfactual - original, output_type),
        null_difference=_to_difference(counterfactual - unguided, output_type),
        label_names=pipe.label_names,
        image_size=pipe.image_size,
        guidance_scales=scores_to_output(edit.guidance_scales, output_type),
        strengths=scores_to_output(edit.strengths, output_type),
        reached=None if edit.reached is None else edit.reached.numpy(),
        timesteps=timesteps,
        settings=settings.to_dict(),
        region=None if region is None else region.float().cpu().numpy(),
        external_label_names=None if outside is None else outside.label_names,
        **fields,
    )


def _to_images(pipe: MediffusionPipeline, pictures: torch.Tensor, output_type: str) -> Any:
    """Pictures in the asked-for type; latents pass unchanged."""
    return pictures if output_type == "latent" else pipe.image_processor.postprocess(pictures, output_type)


def _to_difference(difference: torch.Tensor, output_type: str) -> Any:
    """A signed difference in units of the intensity range (half of the model's range), or of latents."""
    if output_type == "latent":
        return difference
    difference = difference / 2
    return difference if output_type == "pt" else difference.cpu().permute(0, 2, 3, 1).numpy()
