"""Whether few steps give what many steps give, and change less than the paper's procedure, on a trained checkpoint."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from diffusers import DDPMScheduler

from mediffusion_diffusers.evaluation.counterfactual_selection import Selection
from mediffusion_diffusers.evaluation.counterfactual_study import (
    DIRECTIONS,
    KEYWORDS,
    CounterfactualStudyRunner,
)
from mediffusion_diffusers.evaluation.counterfactual_summary import summarize
from mediffusion_diffusers.evaluation.counterfactuals import Counterfactuals
from mediffusion_diffusers.guidance import scale_for


NUM_MANY_STEPS = 100
# The paper's: random noise, every step, gradient through the predicted clean latents.
PROCEDURE = {
    "start": "noise",
    "num_inference_steps": 300,
    "guidance_mode": "x0",
    "strength": 0.3,
    "mask": "everywhere",
    "detail": "decoded",
}
# Factors of the checkpoint's guidance scale, between which the procedure's own probability is matched to ours.
PROCEDURE_SCALES = (0.3, 1.0, 3.0)


def compare_quality(
    pipeline_folder: Path,
    dataset_folder: Path,
    oracle_folder: Path | None,
    settings: dict[str, Any],
    num_images_per_label: int,
) -> dict[str, Any]:
    """Ours against our own solution in many steps, and against the 300-step procedure at equal own probability.

    Args:
        pipeline_folder: a trained checkpoint.
        dataset_folder: a prepared dataset; its test split is explained.
        oracle_folder: an outside classifier, or None.
        settings: ours, arguments of the pipeline other than the checkpoint's defaults.
        num_images_per_label: at most so many images for each label and direction.

    Returns:
        By direction: cosine of the change to that of many steps, flip rates, L1 and its ratio to the procedure's.
    """
    runner = CounterfactualStudyRunner(pipeline_folder, dataset_folder, oracle_path=oracle_folder, batch_size=32)
    scheduler = runner.pipeline.scheduler
    scales = runner.pipeline.resolve_settings().guidance_scale
    settings = {"mask": "everywhere", **settings}
    many_steps = {"num_inference_steps": NUM_MANY_STEPS, "num_inversion_steps": NUM_MANY_STEPS, "mask": "everywhere"}
    result: dict[str, Any] = {
        "settings": settings,
        "many_steps": {"follow_inversion": False, **many_steps},
        "procedure": PROCEDURE,
    }
    for direction in DIRECTIONS:
        chosen = runner.select(direction, num_images_per_label)
        default_scale = scale_for(scales, [KEYWORDS[direction]])
        explain = partial(_explain, runner, chosen, direction)
        ours = explain(**settings)
        reference = explain(follow_inversion=False, **many_steps)
        runner.pipeline.scheduler = DDPMScheduler.from_config(scheduler.config)
        paper = [explain(guidance_scale=factor * default_scale, **PROCEDURE) for factor in PROCEDURE_SCALES]
        runner.pipeline.scheduler = scheduler

        own, many, *procedure = (figures_of(edited) for edited in (ours, reference, *paper))
        l1 = l1_at(own["own_after"], procedure)
        result[direction] = {
            "num_images": len(chosen),
            "cosine_to_many_steps": cosine(ours, reference),
            "ours": own,
            "many_steps": many,
            "procedure_by_scale": {
                f"{factor * default_scale:g}": figures
                for factor, figures in zip(PROCEDURE_SCALES, procedure, strict=True)
            },
            "own_flip_rate_less_that_of_many_steps": own["own_flip_rate"] - many["own_flip_rate"],
            "procedure_l1_at_our_own_probability": l1,
            "l1 / procedure's": own["l1"] / l1,
        }
    return result


def _explain(runner: CounterfactualStudyRunner, chosen: Selection, direction: str, **settings: Any) -> Counterfactuals:
    runner.settings = settings
    return runner.explain(chosen, direction)


def figures_of(edited: Counterfactuals) -> dict[str, Any]:
    """The figures that a procedure is judged by."""
    summary = summarize(edited)
    figures = {f"own_{name}": summary["own"][name] for name in ("after", "flip_rate")}
    if edited.oracle is not None:
        names = ("diff", "flip_rate", "other_diff")
        figures |= {f"oracle_{name}": summary["oracle"][name] for name in names}
    return {**figures, "l1": summary["change"]["l1"]}


def cosine(first: Counterfactuals, second: Counterfactuals) -> float:
    """Cosine between the changes against the null edits, mean over images."""
    changes = [(edited.images - edited.null_images).reshape(len(edited), -1) for edited in (first, second)]
    norms = np.linalg.norm(changes[0], axis=1) * np.linalg.norm(changes[1], axis=1)
    return float(np.mean((changes[0] * changes[1]).sum(1) / norms.clip(1e-12)))


def l1_at(probability: float, figures: list[dict[str, Any]]) -> float:
    """L1 at a mean own probability, between the scales that were tried; beyond them that of the nearest one."""
    points = sorted((edited["own_after"], edited["l1"]) for edited in figures)
    return float(np.interp(probability, *zip(*points, strict=True)))
