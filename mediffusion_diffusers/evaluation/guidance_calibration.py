"""Choose a checkpoint's strength and guidance scale on its validation split.

Neither transfers: a scale belongs to a classifier's gradients, a strength to the autoencoder's latents. The rule is
fixed and asks no outside classifier, which stays independent for the test: of the settings that flip the model's own
decision often enough, the one that changes the images least. Settings that change them beyond recognition are out,
however well they flip.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from ..atomic_files import write_json
from .counterfactual_study import CounterfactualStudyRunner
from .counterfactuals import flips, mean_absolute_change


UNET_CONFIG = Path("unet") / "config.json"
MIN_FLIP_RATE = 0.95
MAX_L1 = 0.04  # chosen, not derived: chest radiographs had dissolved at 0.1


@dataclass(frozen=True)
class GuidanceTrial:
    """One setting, measured over all directions and labels.

    Args:
        strength: share of the noise schedule.
        guidance_scale: scale s of Eq. 2.
        flip_rate: share of the model's decisions that turned over, in [0, 1].
        l1: mean absolute change of a pixel against the null edit, in units of the full intensity range: what the
            autoencoder changes by itself does not count.
        num_images: how many counterfactuals that is.
    """

    strength: float
    guidance_scale: float
    flip_rate: float
    l1: float
    num_images: int


def calibrate_guidance(
    runner: CounterfactualStudyRunner,
    strengths: Sequence[float],
    guidance_scales: Sequence[float],
    directions: Sequence[str] = ("remove", "add"),
    num_images_per_label: int = 8,
) -> list[GuidanceTrial]:
    """Measure every strength with every scale.

    Args:
        runner: of the *validation* split; its other `settings` hold for all trials.
        strengths: to try, each in (0, 1].
        guidance_scales: to try, each above 0.
        directions: `"remove"`, `"add"` or both.
        num_images_per_label: at most so many images for each label and direction.

    Returns:
        One trial per setting.

    Raises:
        ValueError: for the test split, or if no image can be explained.
    """
    if runner.split == "test":
        raise ValueError("Guidance must not be chosen on the test split, which is used once, for the final figures.")
    selections = {direction: runner.select(direction, num_images_per_label) for direction in directions}
    selections = {direction: chosen for direction, chosen in selections.items() if len(chosen)}
    if not selections:
        raise ValueError(f"No image of split {runner.split!r} can be explained: the model agrees with no label.")
    fixed, trials = dict(runner.settings), []
    settings = [(strength, scale) for strength in strengths for scale in guidance_scales]
    for strength, scale in tqdm(settings, desc="Settings"):
        runner.settings = {**fixed, "strength": strength, "guidance_scale": scale}
        flipped, l1 = [], []
        for direction, chosen in selections.items():
            made = runner.explain(chosen, direction)
            flipped.append(flips(made.own, made.targets, direction))
            l1.append(mean_absolute_change(made.images, made.null_images))
        rate, size = float(np.nanmean(np.concatenate(flipped))), float(np.concatenate(l1).mean())
        trials.append(GuidanceTrial(strength, scale, rate, size, sum(map(len, l1))))
    runner.settings = fixed
    return trials


def choose_guidance(
    trials: Sequence[GuidanceTrial], min_flip_rate: float = MIN_FLIP_RATE, max_l1: float = MAX_L1
) -> GuidanceTrial:
    """The smallest change among settings that flip often enough; failing that, the one that flips most often.

    Settings that change more than `max_l1` are left out, unless all do: then the one that changes least is taken.
    """
    bounded = [trial for trial in trials if trial.l1 <= max_l1]
    if not bounded:
        return min(trials, key=lambda trial: trial.l1)
    enough = [trial for trial in bounded if trial.flip_rate >= min_flip_rate]
    if enough:
        return min(enough, key=lambda trial: trial.l1)
    return max(bounded, key=lambda trial: (trial.flip_rate, -trial.l1))


def write_guidance_defaults(pipeline_folder: str | Path, settings: dict[str, Any]) -> None:
    """Store settings in the checkpoint's config, where the counterfactual pipeline finds them.

    Args:
        pipeline_folder: a pipeline folder; only `unet/config.json` changes, aside and renamed.
        settings: any of `strength`, `guidance_scale`, `num_inference_steps`, `start`, `guidance_mode`,
            `follow_inversion`; others in the config stay.
    """
    path = Path(pipeline_folder) / UNET_CONFIG
    config = json.loads(path.read_text(encoding="utf-8"))
    config["guidance_defaults"] = {**(config.get("guidance_defaults") or {}), **settings}
    write_json(path, config)


def calibration_to_dict(
    trials: Sequence[GuidanceTrial],
    chosen: GuidanceTrial,
    min_flip_rate: float = MIN_FLIP_RATE,
    max_l1: float = MAX_L1,
) -> dict[str, Any]:
    """Trials and choice, for JSON."""
    rule = (
        f"of the settings with an L1 of at most {max_l1}, the smallest L1 among those with a flip rate of at least "
        f"{min_flip_rate}; if there is none, the highest flip rate"
    )
    return {"rule": rule, "chosen": asdict(chosen), "trials": [asdict(trial) for trial in trials]}
