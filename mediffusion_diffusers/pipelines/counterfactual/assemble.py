"""From edited latents to what the user gets: pictures, probabilities, differences, controls."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ..base import MediffusionPipeline, check_results, scores_to_output
from ..outputs import MediffusionCounterfactualPipelineOutput
from .controls import make_controls
from .display import Display
from .editor import Edit
from .judge import ExternalJudge, Judge, OwnJudge
from .question import Question
from .settings import CounterfactualSettings


def assemble(
    pipe: MediffusionPipeline,
    display: Display,
    question: Question,
    edit: Edit,
    settings: CounterfactualSettings,
    judge: Judge,
    outside: ExternalJudge | None,
    output_type: str,
    with_controls: bool,
    timesteps: list[int],
    num_evaluations: int,
) -> MediffusionCounterfactualPipelineOutput:
    """Decode, classify and compare.

    Args:
        pipe: the pipeline.
        display: how latents are shown.
        question: the counterfactuals.
        edit: their latents.
        settings: of the call.
        judge: who guided.
        outside: another classifier whose probabilities are reported.
        output_type: of the call.
        with_controls: whether to make the controls.
        timesteps: of the guided evaluations.
        num_evaluations: of latents by the U-Net, for the edits.

    Raises:
        ValueError: if guidance has driven the latents beyond all numbers.
    """
    clean, edited = display.original, display.edited(edit, question.image_index)
    null, null_rows = display.null(edit, question.image_index)
    check_results((edit.null_latents, display.null_pictures(edit)), 0.0)
    check_results((edit.latents, edited.pictures), edit.guidance_scales, settings.hold)
    every_row = torch.arange(len(question))
    stages = {"before": (clean, question.image_index), "after": (edited, every_row), "null": (null, null_rows)}

    fields: dict[str, Any] = {}
    for prefix, asked in (("", OwnJudge(pipe)), ("external_", outside)):
        if asked is None:
            continue
        for stage, (shown, rows) in stages.items():
            is_image = stage == "null" and shown is clean  # about which it has been asked
            known = fields.get(f"{prefix}probabilities_before") if is_image else None
            fields[f"{prefix}probabilities_{stage}"] = asked.probabilities(shown)[rows] if known is None else known
    fields = {name: scores_to_output(scores, output_type) for name, scores in fields.items()}
    original, counterfactual, unguided = (shown.pictures[rows].float() for shown, rows in stages.values())
    if with_controls and output_type != "latent":
        latents = clean.latents[question.image_index]
        base = edit.null_latents[edit.null_index] if display.keeps_detail else latents
        pictures = (original, counterfactual, latents, edit.latents - base)
        fields |= make_controls(pipe, judge, question, *pictures, edit.region, output_type)
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
        unet_evaluations=num_evaluations / len(question),
        region=_to_array(edit.region),
        agreement=_to_array(edit.agreement),
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


def _to_array(latents: torch.Tensor | None) -> np.ndarray | None:
    """A map on the latents' grid, float32."""
    return None if latents is None else latents.float().cpu().numpy()
