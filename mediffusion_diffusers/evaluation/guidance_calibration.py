"""Choose a checkpoint's guidance on its validation split: strength, region, and a scale for each direction.

None of them transfers: a scale belongs to a classifier's gradients, a strength to the autoencoder's latents, a region
to how much of an image a finding takes up. The rule is fixed and asks no outside classifier, which stays independent
for the test: of the settings that flip the model's own decision often enough, the one that changes the images least.
Settings that change them beyond recognition are out, however well they flip.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from ..atomic_files import read_json, write_json
from .counterfactual_study import KEYWORDS, CounterfactualStudyRunner
from .counterfactuals import flips, mean_absolute_change
from .defaults import MAX_L1, MIN_FLIP_RATE


UNET_CONFIG = Path("unet") / "config.json"


@dataclass(frozen=True)
class GuidanceTrial:
    """One setting in one direction, measured over all labels.

    Args:
        direction: `"remove"` or `"add"`.
        strength: share of the noise schedule.
        mask: `"auto"` or `"everywhere"`.
        guidance_scale: scale s of Eq. 2.
        flip_rate: share of the model's decisions that turned over, in [0, 1].
        l1: mean absolute change of a pixel against the null edit, in units of the full intensity range: what the
            autoencoder changes by itself does not count.
        num_images: how many counterfactuals that is.
    """

    direction: str
    strength: float
    mask: str
    guidance_scale: float
    flip_rate: float
    l1: float
    num_images: int


@dataclass(frozen=True)
class GuidanceChoice:
    """One trial per direction, of the same strength and mask: what the rule chooses from.

    Args:
        trials: at least one.
    """

    trials: tuple[GuidanceTrial, ...]

    @property
    def flip_rate(self) -> float:
        """The lowest of the directions."""
        return min(trial.flip_rate for trial in self.trials)

    @property
    def l1(self) -> float:
        """Mean of the directions."""
        return sum(trial.l1 for trial in self.trials) / len(self.trials)

    @property
    def largest_l1(self) -> float:
        """The largest of the directions."""
        return max(trial.l1 for trial in self.trials)

    def settings(self) -> dict[str, Any]:
        """Arguments of the pipeline; the scale is one number if it was chosen for one direction alone."""
        scales = {KEYWORDS[trial.direction]: trial.guidance_scale for trial in self.trials}
        scale = scales if len(scales) > 1 else self.trials[0].guidance_scale
        return {"strength": self.trials[0].strength, "mask": self.trials[0].mask, "guidance_scale": scale}


class GuidanceCalibration:
    """Measures settings, and chooses among those measured.

        calibration = GuidanceCalibration(runner)
        calibration.measure([0.2, 0.3], [10, 30, 100], ["everywhere", "auto"])
        calibration.refine()
        calibration.choose().settings()

    Args:
        runner: of the *validation* split; its other `settings` hold for all trials.
        directions: `"remove"`, `"add"` or both.
        num_images_per_label: at most so many images for each label and direction.
        min_flip_rate: how often the model's own decision must turn over.
        max_l1: larger changes are out.

    Raises:
        ValueError: for the test split, or if no image can be explained.
    """

    def __init__(
        self,
        runner: CounterfactualStudyRunner,
        directions: Sequence[str] = ("remove", "add"),
        num_images_per_label: int = 8,
        min_flip_rate: float = MIN_FLIP_RATE,
        max_l1: float = MAX_L1,
    ):
        if runner.split == "test":
            raise ValueError(
                "Guidance must not be chosen on the test split, which is used once, for the final figures."
            )
        selections = {direction: runner.select(direction, num_images_per_label) for direction in directions}
        self.selections = {direction: chosen for direction, chosen in selections.items() if len(chosen)}
        if not self.selections:
            raise ValueError(f"No image of split {runner.split!r} can be explained: the model agrees with no label.")
        self.runner, self.min_flip_rate, self.max_l1 = runner, min_flip_rate, max_l1
        self.trials: list[GuidanceTrial] = []

    def measure(self, strengths: Sequence[float], guidance_scales: Sequence[float], masks: Sequence[str]) -> None:
        """Measure every strength with every scale and mask, in every direction.

        Args:
            strengths: each in (0, 1].
            guidance_scales: each above 0.
            masks: `"auto"`, `"everywhere"` or both.
        """
        settings = [
            (direction, strength, mask, scale)
            for strength in strengths
            for mask in masks
            for scale in guidance_scales
            for direction in self.selections
        ]
        self.trials += [self._try(*one) for one in tqdm(settings, desc="Settings")]

    def refine(self, num_steps: int = 2) -> None:
        """Close in on the smallest scale that flips often enough within the bound, at the chosen strength and mask.

        Args:
            num_steps: so many times the gap to the next scale is halved, on a log scale: to the next smaller one where
                the chosen scale does enough, or too much, and to the next larger one where it does not.
        """
        for _ in tqdm(range(num_steps), desc="Closer"):
            for trial in self.choose().trials:
                place = (trial.direction, trial.strength, trial.mask)
                tried = [one.guidance_scale for one in self.trials if (one.direction, one.strength, one.mask) == place]
                smaller = [scale for scale in tried if scale < trial.guidance_scale]
                larger = [scale for scale in tried if scale > trial.guidance_scale]
                if trial.l1 > self.max_l1:
                    other = max(smaller, default=trial.guidance_scale / 4)
                elif trial.flip_rate < self.min_flip_rate:
                    other = min(larger, default=trial.guidance_scale * 4)
                elif smaller:
                    other = max(smaller)
                else:
                    continue
                between = float(f"{math.sqrt(other * trial.guidance_scale):.3g}")
                if between not in tried:
                    self.trials.append(self._try(*place, between))

    def choose(self) -> GuidanceChoice:
        """By the rule: a scale for each direction, then a strength and a mask for both."""
        places = dict.fromkeys((trial.strength, trial.mask) for trial in self.trials)
        return self._best([GuidanceChoice(self._best_scales(*place)) for place in places])

    def to_dict(self) -> dict[str, Any]:
        """Rule, choice and trials, for JSON."""
        rule = (
            f"of the settings with an L1 of at most {self.max_l1}, the smallest L1 among those with a flip rate of at "
            f"least {self.min_flip_rate}; if there is none, the highest flip rate; first for each direction, then for "
            "strength and mask, by the lowest flip rate and the mean L1 of the directions"
        )
        chosen = [asdict(trial) for trial in self.choose().trials]
        return {"rule": rule, "chosen": chosen, "trials": [asdict(trial) for trial in self.trials]}

    def _best(self, choices: Sequence[GuidanceChoice]) -> GuidanceChoice:
        return best_guidance(choices, self.min_flip_rate, self.max_l1)

    def _best_scales(self, strength: float, mask: str) -> tuple[GuidanceTrial, ...]:
        """The best trial of each direction at a strength and mask."""
        there = [trial for trial in self.trials if (trial.strength, trial.mask) == (strength, mask)]
        return tuple(
            self._best([GuidanceChoice((one,)) for one in there if one.direction == direction]).trials[0]
            for direction in self.selections
        )

    def _try(self, direction: str, strength: float, mask: str, guidance_scale: float) -> GuidanceTrial:
        fixed = self.runner.settings
        self.runner.settings = {**fixed, "strength": strength, "mask": mask, "guidance_scale": guidance_scale}
        try:
            made = self.runner.explain(self.selections[direction], direction)
        finally:
            self.runner.settings = fixed
        rate = float(np.nanmean(flips(made.own, made.targets, direction)))
        size = float(mean_absolute_change(made.images, made.null_images).mean())
        return GuidanceTrial(direction, strength, mask, guidance_scale, rate, size, len(made))


def best_guidance(
    choices: Sequence[GuidanceChoice], min_flip_rate: float = MIN_FLIP_RATE, max_l1: float = MAX_L1
) -> GuidanceChoice:
    """The smallest change among those that flip often enough; failing that, the one that flips most often.

    Choices that change more than `max_l1` are left out, unless all do: then the one that changes least is taken.
    """
    bounded = [one for one in choices if one.largest_l1 <= max_l1]
    if not bounded:
        return min(choices, key=lambda one: one.l1)
    enough = [one for one in bounded if one.flip_rate >= min_flip_rate]
    if enough:
        return min(enough, key=lambda one: one.l1)
    return max(bounded, key=lambda one: (one.flip_rate, -one.l1))


def write_guidance_defaults(pipeline_folder: str | Path, settings: dict[str, Any]) -> None:
    """Store settings in the checkpoint's config, where the counterfactual pipeline finds them.

    Args:
        pipeline_folder: a pipeline folder; only `unet/config.json` changes, aside and renamed.
        settings: any of the pipeline's `stored_options()`; others in the config stay.
    """
    path = Path(pipeline_folder) / UNET_CONFIG
    config = read_json(path)
    config["guidance_defaults"] = {**(config.get("guidance_defaults") or {}), **settings}
    write_json(path, config)
