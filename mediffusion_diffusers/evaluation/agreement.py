"""How much of an explanation survives another noise or another noise level."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..pipelines import MediffusionCounterfactualPipeline
from ..pipelines.counterfactual.quality import has_noised_paths


@dataclass(frozen=True)
class Agreement:
    """Several counterfactuals of the same image and target, pixel by pixel.

    Args:
        differences: counterfactual minus null edit of each run, in units of the full intensity range, shape
            `(runs, channels, height, width)`.
        mean_difference: their mean, shape `(channels, height, width)`.
        spread: their standard deviation, same shape.
        agreement: share of the runs that change the pixel, in the mean over channels, by at least the threshold and in
            the direction of the mean, shape `(height, width)`, in [0, 1].
        probabilities_after: the model's probabilities for each counterfactual, shape `(runs, num_labels)`.
        original: the image, shape `(channels, height, width)` in [0, 1].
        settings: strength or seed of each run.
    """

    differences: np.ndarray
    mean_difference: np.ndarray
    spread: np.ndarray
    agreement: np.ndarray
    probabilities_after: np.ndarray
    original: np.ndarray
    settings: list[dict[str, float | int]]


def repeat_counterfactual(
    pipe: MediffusionCounterfactualPipeline,
    image: Any,
    strengths: Sequence[float] | None = None,
    seeds: Sequence[int] | None = None,
    threshold: float = 0.01,
    **arguments: Any,
) -> Agreement:
    """Explain an image several times, from several noise levels or several noises.

    Args:
        pipe: the pipeline.
        image: one image.
        strengths: one run for each (for `start="inversion"`, which has no noise to vary).
        seeds: one run for each, of a generator; `start="noise"` where the call and the checkpoint begin with an
            inversion.
        threshold: change from which a pixel counts as changed, in units of the full intensity range.
        arguments: of the pipeline's call: `away`, `towards`, ...

    Returns:
        All runs, their mean, spread and agreement.

    Raises:
        ValueError: unless exactly one of `strengths` and `seeds` names at least two runs, or for several images.
    """
    if (strengths is None) == (seeds is None):
        raise ValueError("Give either `strengths` (noise levels) or `seeds` (noises).")
    runs: list[dict[str, Any]] = [{"strength": strength} for strength in strengths or ()]
    runs += [{"seed": seed} for seed in seeds or ()]
    if len(runs) < 2:
        raise ValueError(f"At least two runs can agree, but `strengths` or `seeds` names {len(runs)}.")
    if seeds is not None and not has_noised_paths({**(pipe.unet.config.guidance_defaults or {}), **arguments}):
        arguments.setdefault("start", "noise")
    differences, probabilities = [], []
    for run in runs:
        extra = dict(run)
        if "seed" in extra:
            extra["generator"] = torch.Generator().manual_seed(extra.pop("seed"))
        output = pipe(image, **arguments, **extra, output_type="pt", controls=False)
        if len(output.images) != 1:
            raise ValueError(f"One counterfactual of one image is repeated, but the call makes {len(output.images)}.")
        differences.append(output.null_difference[0].cpu().numpy())
        probabilities.append(output.probabilities_after[0].cpu().numpy())
    stack = np.stack(differences)
    mean = stack.mean(0)
    grey, grey_mean = stack.mean(1), mean.mean(0)
    agrees = (np.abs(grey) >= threshold) & (np.sign(grey) == np.sign(grey_mean))
    return Agreement(
        differences=stack,
        mean_difference=mean,
        spread=stack.std(0),
        agreement=agrees.mean(0),
        probabilities_after=np.stack(probabilities),
        original=output.originals[0].cpu().numpy(),
        settings=runs,
    )
