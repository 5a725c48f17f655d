"""Choose a checkpoint's guidance on its validation split: a scale for each direction, and strength and region.

None of them transfers: a scale belongs to a classifier's gradients, a strength to the autoencoder's latents, a region
to how much of an image a finding takes up. The rule asks neither the truth, which real images do not have, nor an
outside classifier, which stays independent for the test:

    An edited image should look to the model as real images without (with) the finding do, in the mean.

So the scale is the one at which the mean own probability of the edited images equals that of real ones, of the same
other findings: these mislead a fallible model before and after an edit alike. A rule that
asks for flips forces overshoot instead: true counterfactuals do not flip every decision of a fallible model. Strengths
and regions that reach this alike are told apart by how much they change. Scales that break images apart are refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from ..atomic_files import read_json, write_json
from ..counterfactual_options import CounterfactualOptions, stored_options
from ..guidance import scale_for
from ..options import check_options
from .classification import nan_to_none
from .counterfactual_selection import Selection
from .counterfactual_study import KEYWORDS, CounterfactualStudyRunner
from .counterfactuals import Counterfactuals, flips, mean_absolute_change
from .defaults import MAX_CLIPPED, MAX_L1, MAX_TRIALS, TOLERANCE
from .scale_search import Reading, search_scale


MIN_MATCHES = 5  # real images that an edited one is compared with
UNET_CONFIG = Path("unet") / "config.json"


@dataclass(frozen=True)
class GuidanceTrial:
    """One setting in one direction, measured over all labels.

    Args:
        direction: `"remove"` or `"add"`.
        strength: share of the noise schedule.
        mask: `"auto"` or `"everywhere"`.
        guidance_scale: scale s of Eq. 2.
        probability: mean own probability of the targets after the edit.
        wanted: the same of real images without (removing) or with (adding) the finding.
        flip_rate: share of the model's decisions that turned over, in [0, 1].
        l1: mean absolute change of a pixel against the null edit, in units of the full intensity range: what the
            autoencoder changes by itself does not count.
        clipped: share of the pixels that the edit drove to an end of the intensity range.
        num_images: how many counterfactuals that is.
        per_label: mean own probability after the edit, by label.
        refused: why the setting is out; None if it is not.
    """

    direction: str
    strength: float
    mask: str
    guidance_scale: float
    probability: float
    wanted: float
    flip_rate: float
    l1: float
    clipped: float
    num_images: int
    per_label: Mapping[str, float]
    refused: str | None = None

    @property
    def missing(self) -> float:
        """How far the probability has to go still; below 0 the edit overshoots."""
        return self.probability - self.wanted if self.direction == "remove" else self.wanted - self.probability


@dataclass(frozen=True)
class GuidanceChoice:
    """One trial per direction, of the same strength and mask: what the rule chooses from.

    Args:
        trials: at least one.
    """

    trials: tuple[GuidanceTrial, ...]

    @property
    def distance(self) -> float:
        """How far the worst of the directions is from what is wanted."""
        return max(abs(trial.missing) for trial in self.trials)

    @property
    def l1(self) -> float:
        """Mean of the directions."""
        return sum(trial.l1 for trial in self.trials) / len(self.trials)

    def settings(self) -> dict[str, Any]:
        """Arguments of the pipeline; the scale is one number if it was chosen for one direction alone."""
        scales = {KEYWORDS[trial.direction]: trial.guidance_scale for trial in self.trials}
        scale = scales if len(scales) > 1 else self.trials[0].guidance_scale
        return {"strength": self.trials[0].strength, "mask": self.trials[0].mask, "guidance_scale": scale}


class GuidanceCalibration:
    """Searches the scale of every direction, and chooses among strengths and regions.

        calibration = GuidanceCalibration(runner)
        choice = calibration.choose()
        choice.settings()

    Args:
        runner: of the *validation* split; its `settings` hold for all trials, whatever the editor that they choose.
        directions: `"remove"`, `"add"` or both.
        num_images_per_label: at most so many images for each label and direction.
        tolerance: of the mean probability.
        max_l1: scales that change images more are refused.
        max_trials: edits of all images for each direction, strength and region.

    Raises:
        ValueError: for the test split, or if no image can be explained or none looks as an edited one should.
    """

    def __init__(
        self,
        runner: CounterfactualStudyRunner,
        directions: Sequence[str] = ("remove", "add"),
        num_images_per_label: int = 8,
        tolerance: float = TOLERANCE,
        max_l1: float = MAX_L1,
        max_trials: int = MAX_TRIALS,
    ):
        if runner.split == "test":
            raise ValueError(
                "Guidance must not be chosen on the test split, which is used once, for the final figures."
            )
        selections = {direction: runner.select(direction, num_images_per_label) for direction in directions}
        self.selections = {direction: chosen for direction, chosen in selections.items() if len(chosen)}
        if not self.selections:
            raise ValueError(f"No image of split {runner.split!r} can be explained: the model agrees with no label.")
        self.runner, self.tolerance, self.max_l1, self.max_trials = runner, tolerance, max_l1, max_trials
        self.wanted = {
            direction: wanted_probabilities(runner.own_probabilities, runner.labels, chosen, direction)
            for direction, chosen in self.selections.items()
        }
        for direction, wanted in self.wanted.items():
            if np.isnan(wanted).all():
                raise ValueError(
                    f"No image of split {runner.split!r} looks as an edit ({direction}) should: there is nothing to "
                    "calibrate it by. Leave it out of `directions`, or take a larger split."
                )
        self.trials: list[GuidanceTrial] = []

    def choose(
        self,
        strengths: Sequence[float] = (),
        masks: Sequence[str] = (),
        guidance_scale: float | None = None,
    ) -> GuidanceChoice:
        """By the rule: a scale for each direction at every strength and mask, then a strength and a mask for both.

        Args:
            strengths: each in (0, 1]; the checkpoint's if there is none.
            masks: `"auto"`, `"everywhere"` or both; likewise.
            guidance_scale: where every search begins; by default at the checkpoint's scale.

        Raises:
            ValueError: if every scale that was tried is refused.
        """
        settings = self.runner.pipeline.resolve_settings(**self.runner.settings)
        places = [
            (strength, mask) for strength in strengths or [settings.strength] for mask in masks or [settings.mask]
        ]
        choices = []
        for strength, mask in tqdm(places, desc="Strengths and regions", disable=len(places) < 2):
            found = []
            for direction in self.selections:
                first = guidance_scale or scale_for(settings.guidance_scale, [KEYWORDS[direction]])
                trial = self.search(direction, first, {"strength": strength, "mask": mask})
                found += [] if trial is None else [trial]
            if len(found) == len(self.selections):
                choices.append(GuidanceChoice(tuple(found)))
        if not choices:
            reasons = "; ".join(dict.fromkeys(str(trial.refused) for trial in self.trials if trial.refused))
            raise ValueError(
                f"Every scale that was tried is refused: {reasons}. Begin at a smaller `guidance_scale`, or try "
                "another of `strengths`."
            )
        return best_choice(choices, self.tolerance)

    def defaults(self, choice: GuidanceChoice) -> dict[str, Any]:
        """What a checkpoint is to store: the settings, and the probability at which removals stop.

        At a scale that is right in the mean, what the model removes easily is overdone. Additions gain nothing by it.

        Args:
            choice: of `choose`.
        """
        settings, chosen = choice.settings(), self.selections.get("remove")
        if chosen is None:
            return settings
        stop = median_without(self.runner.own_probabilities, self.runner.labels, chosen.targets)
        return settings if np.isnan(stop) else {**settings, "stop_probability": {"away": stop}}

    def search(self, direction: str, first: float, place: Mapping[str, Any]) -> GuidanceTrial | None:
        """The scale of one direction whose edits look as real images do; None if every one is refused.

        Args:
            direction: `"remove"` or `"add"`.
            first: scale to begin with, above 0.
            place: `strength` and `mask`.
        """
        trials: list[GuidanceTrial] = []

        def read(scale: float) -> Reading:
            trial = self._try(direction, scale, place, trials)
            trials.append(trial)
            progress.update()
            return Reading(trial.missing, trial.refused is not None)

        with tqdm(total=self.max_trials, desc=f"Scale to {direction}", unit="edit", leave=False) as progress:
            best = search_scale(read, max(first, 1e-3), self.tolerance, self.max_trials)
        self.trials += trials
        return next((trial for trial in trials if trial.guidance_scale == best), None)

    def to_dict(self, choice: GuidanceChoice) -> dict[str, Any]:
        """Rule, what is wanted, choice and trials, for JSON."""
        rule = (
            "for each direction the scale at which the mean own probability of the targets after the edit equals that "
            "of real validation images without (removing) or with (adding) them, of the same other labels where there "
            f"are {MIN_MATCHES}, to within {self.tolerance}; of several strengths and regions the smallest L1 among "
            "those that reach it, or else the closest; scales that change a pixel by more than "
            f"{self.max_l1} in the mean, drive more than {MAX_CLIPPED} of the pixels to an end of the range, or undo "
            "their effect are refused; removals then stop at the median of real images without the finding"
        )
        return nan_to_none(
            {
                "rule": rule,
                "wanted": {
                    direction: self._by_label(self.wanted[direction], chosen.targets)
                    for direction, chosen in self.selections.items()
                },
                "chosen": [asdict(trial) for trial in choice.trials],
                "trials": [asdict(trial) for trial in self.trials],
            }
        )

    def _try(
        self, direction: str, scale: float, place: Mapping[str, Any], earlier: Sequence[GuidanceTrial]
    ) -> GuidanceTrial:
        fixed, chosen = self.runner.settings, self.selections[direction]
        self.runner.settings = {**fixed, **place, "guidance_scale": scale}
        try:
            made = self.runner.explain(chosen, direction)
        finally:
            self.runner.settings = fixed
        targets, wanted = made.targets, self.wanted[direction]
        after = made.own.after[np.arange(len(made)), targets]
        known = ~np.isnan(wanted)
        trial = GuidanceTrial(
            direction=direction,
            strength=self.runner.used_settings["strength"],
            mask=self.runner.used_settings["mask"],
            guidance_scale=scale,
            probability=float(after[known].mean()),
            wanted=float(wanted[known].mean()),
            flip_rate=float(np.nanmean(flips(made.own, targets, direction))),
            l1=float(mean_absolute_change(made.images, made.null_images).mean()),
            clipped=clipped_share(made),
            num_images=len(made),
            per_label=self._by_label(after, targets),
        )
        return GuidanceTrial(**{**asdict(trial), "refused": self._reason_against(trial, earlier)})

    def _by_label(self, values: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        """Means of one value per image, by the name of its target."""
        names = self.runner.label_names
        return {names[target]: float(values[targets == target].mean()) for target in np.unique(targets).tolist()}

    def _reason_against(self, trial: GuidanceTrial, earlier: Sequence[GuidanceTrial]) -> str | None:
        """Why a trial's images have come apart, if they have."""
        if trial.l1 > self.max_l1:
            return f"it changes a pixel by more than {self.max_l1} in the mean"
        if trial.clipped > MAX_CLIPPED:
            return f"it drives more than {MAX_CLIPPED} of the pixels to an end of the intensity range"
        weaker = [one for one in earlier if one.guidance_scale < trial.guidance_scale]
        if any(trial.missing > one.missing + 2 * self.tolerance for one in weaker):
            return "it does less than a smaller scale"
        return None


def wanted_probabilities(
    own_probabilities: np.ndarray, labels: np.ndarray, selection: Selection, direction: str
) -> np.ndarray:
    """What the model says of the targets on real images that look as the edited ones should.

    For each image the mean over the real images without (removing) or with (adding) its target and with the same other
    labels; where they are fewer than `MIN_MATCHES`, also over those that differ in one other label, and so on.

    Args:
        own_probabilities: the model's, of every image of the split, shape `(num, num_labels)`; NaN where unknown.
        labels: 1, 0 or NaN, same shape; unknown ones match.
        selection: the images that are edited.
        direction: `"remove"` or `"add"`.

    Returns:
        Shape `(len(selection),)`; NaN where there is no such image.
    """
    state = 0.0 if direction == "remove" else 1.0
    wanted = np.full(len(selection), np.nan)
    for place, (row, target) in enumerate(zip(selection.rows.tolist(), selection.targets.tolist(), strict=True)):
        scores = own_probabilities[:, target]
        is_real = (labels[:, target] == state) & ~np.isnan(scores)
        if not is_real.any():
            continue
        others = np.delete(labels, target, axis=1)
        distance = np.nan_to_num(np.abs(others - others[row])).sum(1)
        enough = np.sort(distance[is_real])[:MIN_MATCHES][-1]
        wanted[place] = scores[is_real & (distance <= enough)].mean()
    return wanted


def median_without(own_probabilities: np.ndarray, labels: np.ndarray, targets: np.ndarray) -> float:
    """What the model usually says of findings on real images without them; half of these have more, half less.

    The mean would be too early to stop at: it is raised by the few images that mislead the model.

    Args:
        own_probabilities: the model's, of every image of the split, shape `(num, num_labels)`; NaN where unknown.
        labels: 1, 0 or NaN, same shape.
        targets: finding of each image that is edited.

    Returns:
        Mean over the targets of the medians, at least 0.001 and at most 0.999; NaN if there is no such image.
    """
    medians = [
        np.median(scores) if len(scores) else np.nan
        for column, state in zip(own_probabilities.T, labels.T, strict=True)
        for scores in [column[(state == 0) & ~np.isnan(column)]]
    ]
    return float(np.nanmean(np.array(medians)[targets]).clip(1e-3, 1 - 1e-3))


def clipped_share(made: Counterfactuals) -> float:
    """Share of the pixels at an end of the intensity range after the edit that the null edit leaves within it."""
    is_clipped, was_clipped = ((images <= 0) | (images >= 1) for images in (made.images, made.null_images))
    return float((is_clipped & ~was_clipped).mean())


def best_choice(choices: Sequence[GuidanceChoice], tolerance: float) -> GuidanceChoice:
    """The smallest change among those that look as real images do; failing that, the one that comes closest."""
    reached = [one for one in choices if one.distance <= tolerance]
    return min(reached, key=lambda one: one.l1) if reached else min(choices, key=lambda one: one.distance)


def write_guidance_defaults(pipeline_folder: str | Path, settings: dict[str, Any]) -> None:
    """Store settings in the checkpoint's config, where the counterfactual pipeline finds them.

    Args:
        pipeline_folder: a pipeline folder; only `unet/config.json` changes, aside and renamed.
        settings: any of the pipeline's `stored_options()`; others in the config stay.

    Raises:
        ValueError: for a setting that a checkpoint cannot store, or one outside its range.
    """
    unknown = sorted(settings.keys() - set(stored_options()))
    if unknown:
        raise ValueError(
            f"A checkpoint can store {', '.join(stored_options())}, but got {', '.join(unknown)}. Give those to each "
            "call."
        )
    check_options(CounterfactualOptions(**settings))
    path = Path(pipeline_folder) / UNET_CONFIG
    config = read_json(path)
    config["guidance_defaults"] = {**(config.get("guidance_defaults") or {}), **settings}
    write_json(path, config)
