"""Whether a procedure's explanations deserve the name: there and back, over seeds, and with a scrambled classifier.

Each takes further edits, as dear as those of the study, and so is made of some of its images only.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from .counterfactuals import Counterfactuals, mean_of_known
from .measure_options import SANITY_CHECKS
from .truth import cosines_to_truth, error_to_truth, region_overlaps


NUM_SEEDS = 3  # edits of each image that diversity compares, the study's own among them
_OPPOSITE = {"remove": "add", "add": "remove"}


def check_sanity(runner: Any, counterfactuals: Counterfactuals, seeds: Sequence[int], checks: Sequence[str]) -> Any:
    """The figures of some checks, by name, with `num_images`.

    Args:
        runner: a [`~mediffusion_diffusers.evaluation.counterfactual_study.CounterfactualStudyRunner`].
        counterfactuals: what it made.
        seeds: of each image.
        checks: of `SANITY_CHECKS`.
    """
    functions = (reversibility, diversity, head_randomisation)
    results: dict[str, Any] = {"num_images": len(counterfactuals)}
    for name, check in zip(SANITY_CHECKS, functions, strict=True):
        if name in checks:
            results[name] = check(runner, counterfactuals, seeds)
    return results


def reversibility(runner: Any, counterfactuals: Counterfactuals, seeds: Sequence[int]) -> dict[str, float]:
    """Edit there and back: how far from its original an image ends.

    Monteiro et al., "Measuring axiomatic soundness of counterfactual image models" (2023), Sec. 3. As a share of the
    way there, so that small edits gain nothing: 0 is the original again, 1 no closer than before the way back.

    Args: as `check_sanity`.

    Returns:
        `error`: |x'' - x| / |x' - x|, pooled over images.
    """
    there = torch.from_numpy(counterfactuals.images)
    back = runner.edit(there, counterfactuals.targets, _OPPOSITE[counterfactuals.direction], seeds)
    return {"error": error_to_truth(back.images, counterfactuals.images, counterfactuals.originals)}


def diversity(runner: Any, counterfactuals: Counterfactuals, seeds: Sequence[int]) -> dict[str, float]:
    """How different the answers of different seeds are.

    As the diversity of Jeanneret et al., "Diffusion models for counterfactual explanations" (2022), Sec. 4.3, in the
    pixels and relative to the edit: 0 where every seed gives the same (deterministic procedures), about 1.4 where the
    changes have nothing in common. Neither end is good by itself: many true answers exist to an addition, and one to a
    removal.

    Args: as `check_sanity`.

    Returns:
        `distance`: mean distance of two edits of an image over the mean length of its edits; `cosine`: of their
        changes.
    """
    originals = counterfactuals.originals
    made = [counterfactuals.images]
    for draw in range(1, NUM_SEEDS):
        again = [seed + draw * 7_919 for seed in seeds]
        edited = runner.edit(torch.from_numpy(originals), counterfactuals.targets, counterfactuals.direction, again)
        made.append(edited.images)
    changes = [(images - originals).reshape(len(originals), -1).astype(np.float64) for images in made]
    pairs = [(one, other) for one in range(NUM_SEEDS) for other in range(one)]
    apart = np.mean([np.linalg.norm(changes[one] - changes[other], axis=1) for one, other in pairs], axis=0)
    length = np.mean([np.linalg.norm(change, axis=1) for change in changes], axis=0)
    cosines = np.mean([cosines_to_truth(made[one], originals, made[other]) for one, other in pairs], axis=0)
    distance = np.where(length > 0, apart / np.maximum(length, 1e-12), np.nan)
    return {"distance": mean_of_known(distance), "cosine": mean_of_known(cosines)}


def head_randomisation(runner: Any, counterfactuals: Counterfactuals, seeds: Sequence[int]) -> dict[str, float]:
    """Edit for a classifier whose head's weights are shuffled: its map must not be that of the trained one.

    The model randomisation test of Adebayo et al., "Sanity checks for saliency maps" (2018), Sec. 3, for the last
    layers: a method that shows the same with a scrambled head shows the image, or its own habits, not the decision.

    Args: as `check_sanity`.

    Returns:
        `cosine` of both changes and `region_iou` of where they are, both near 0 if the maps depend on the head, with
        `region_iou_by_chance`: of regions of different images.
    """
    pipeline = runner.pipeline
    scrambled = type(pipeline)(**{**pipeline.components, "unet": with_shuffled_head(pipeline.unet, runner.seed)})
    scrambled.set_progress_bar_config(disable=True)
    originals, targets = counterfactuals.originals, counterfactuals.targets
    other = runner.edit(torch.from_numpy(originals), targets, counterfactuals.direction, seeds, pipeline=scrambled)
    neighbours = np.roll(counterfactuals.images - originals, 1, axis=0) + originals
    return {
        "cosine": float(cosines_to_truth(other.images, originals, counterfactuals.images).mean()),
        "region_iou": float(region_overlaps(other.images, originals, counterfactuals.images).mean()),
        "region_iou_by_chance": float(region_overlaps(neighbours, originals, counterfactuals.images).mean()),
    }


@torch.no_grad()
def with_shuffled_head(unet: Any, seed: int) -> Any:
    """A copy of a joint U-Net in which every weight of the classifier's layers has another's place.

    Sizes and spread of the weights stay, what they know is gone. The given one is not changed.
    """
    shuffled = copy.deepcopy(unet)
    generator = torch.Generator().manual_seed(seed)
    for parameter in shuffled.classifier.parameters():
        order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
        parameter.copy_(parameter.flatten()[order].view_as(parameter))
    return shuffled
