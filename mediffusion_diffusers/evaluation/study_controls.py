"""Changed images that explain nothing, beside every set of counterfactuals: what its figures must beat.

Of the counterfactual's size (L1), image by image: the *plain gradient* in its region, *random noise*, and the *average
change*, what the edits of the finding change in other patients, which knows nothing of the image. And the same edit,
of whatever size it then has, in another place: a *random region* of equal size, and the *inverse region*.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ..controls import change_by, plain_gradient_control, random_noise_control
from ..guidance import build_target, sampling_mode
from ..image_processor import normalize
from ..pipelines import MediffusionCounterfactualPipeline
from ..regions import region_of_change
from .counterfactuals import Counterfactuals, mean_absolute_change


REGION_SHARE = 0.8  # of the change's energy, where an edit everywhere changed most
_BLOB = 5  # side of the average that makes a random region hang together, in latent positions


def plain_gradient(
    pipeline: MediffusionCounterfactualPipeline, counterfactuals: Counterfactuals, rows: slice
) -> np.ndarray:
    """The explained classifier's own gradient on the pixels, within the counterfactuals' regions, at their L1.

    Args:
        pipeline: whose classifier it is.
        counterfactuals: that it stands beside.
        rows: some of them.
    """
    originals = torch.from_numpy(counterfactuals.originals[rows]).to(pipeline.device)
    l1 = torch.from_numpy(mean_absolute_change(counterfactuals.images[rows], counterfactuals.originals[rows]))
    names = [[pipeline.label_names[target]] for target in counterfactuals.targets[rows].tolist()]
    towards, away = (names, None) if counterfactuals.direction == "add" else (None, names)
    target: Any = build_target(towards, away, len(names), pipeline.label_names, pipeline.unet.config.problem_type)

    def log_probability(pixels: torch.Tensor) -> torch.Tensor:
        latents = pipeline.encode_pixels(normalize(pixels))
        return target.log_prob(pipeline.classify_latents(latents))

    regions = counterfactuals.regions
    mask = 1.0 if regions is None else torch.from_numpy(regions[rows]).to(pipeline.device)
    with sampling_mode(pipeline.vae, pipeline.unet):
        return plain_gradient_control(originals, l1.to(originals), log_probability, mask=mask).cpu().numpy()


def random_noise(counterfactuals: Counterfactuals, seed: int) -> np.ndarray:
    """White noise at the counterfactuals' L1."""
    originals, l1 = _originals_and_l1(counterfactuals)
    return random_noise_control(originals, l1, torch.Generator().manual_seed(seed)).numpy()


def average_change(counterfactuals: Counterfactuals) -> np.ndarray:
    """The mean change of the *other* images of the same finding, at the counterfactuals' L1.

    It has each finding's usual place and look, as the average box has, and knows nothing of the image. A finding with
    one image stays unchanged.
    """
    originals, l1 = _originals_and_l1(counterfactuals)
    change = counterfactuals.images - counterfactuals.originals
    average = np.zeros_like(change)
    for target in np.unique(counterfactuals.targets):
        rows = np.flatnonzero(counterfactuals.targets == target)
        if len(rows) > 1:
            average[rows] = (change[rows].sum(0) - change[rows]) / (len(rows) - 1)
    return change_by(originals, torch.from_numpy(average), l1).numpy()


def other_regions(
    counterfactuals: Counterfactuals, latent_size: tuple[int, int], seed: int
) -> dict[str, torch.Tensor]:
    """Where the same edit explains nothing, on the latents' grid, by the control's name."""
    regions = latent_regions(counterfactuals, latent_size)
    return {"random_region": random_regions(regions, seed), "inverse_region": 1 - regions}


def latent_regions(counterfactuals: Counterfactuals, latent_size: tuple[int, int]) -> torch.Tensor:
    """Where each image was edited, on the latents' grid: its region, or where it changed most if it had none.

    Returns:
        Shape `(num, 1, *latent_size)`, in [0, 1].
    """
    if counterfactuals.regions is None:
        change = torch.from_numpy(counterfactuals.images - counterfactuals.originals)
        regions = region_of_change(change, REGION_SHARE)
    else:
        regions = torch.from_numpy(np.ascontiguousarray(counterfactuals.regions)).float()
    return F.adaptive_max_pool2d(regions, latent_size)


def random_regions(regions: torch.Tensor, seed: int) -> torch.Tensor:
    """For each region another of the same values, so of equal size, in a random place: a few blobs.

    Args:
        regions: shape `(num, 1, height, width)`.
        seed: of the places.
    """
    field = torch.randn(regions.shape, generator=torch.Generator().manual_seed(seed))
    for _ in range(2):
        field = F.avg_pool2d(field, _BLOB, stride=1, padding=_BLOB // 2, count_include_pad=False)
    places = field.flatten(1).argsort(dim=1)
    values = regions.flatten(1).sort(dim=1).values
    return torch.zeros_like(values).scatter(1, places, values).view_as(regions)


def _originals_and_l1(counterfactuals: Counterfactuals) -> tuple[torch.Tensor, torch.Tensor]:
    l1 = mean_absolute_change(counterfactuals.images, counterfactuals.originals)
    return torch.from_numpy(counterfactuals.originals), torch.from_numpy(l1)
