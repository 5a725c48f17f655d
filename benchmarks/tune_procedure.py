"""Settings of a procedure, chosen on the validation split by one rule and with as many trials of a variant for all.

For each direction every variant is tried at `SCALES_PER_VARIANT` scales, which close in on the effect that is wanted:
the mean probability after the edit is to be that of *real* images without the finding (with it, where it is added).
Among the trials within `TOLERANCE` of it the one that ends closest to the true counterfactuals is taken, where a
finding is added to the nearest of many; if there is none, the one that comes nearest to the wanted probability. So
every procedure is as firm as every other, and each gets the variant that suits the measure it will be judged by.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from procedures import Bench, Procedure
from tqdm.auto import tqdm

from mediffusion_diffusers.evaluation.truth import error_to_truth, nearest_errors


SCALES_PER_VARIANT = 3
TOLERANCE = 0.1  # of the probability
_STRIDE = 4.0  # between scales, until two of them lie on both sides of the goal


@dataclass(frozen=True)
class Trial:
    """One setting on the validation images.

    Args:
        settings: with `guidance_scale`.
        probability: mean probability of the targets after the edit, by the classifier that guides.
        wanted: that of real images.
        error: distance to the true counterfactuals as a share of the originals', where a finding is added to the
            nearest of many true ways.
    """

    settings: dict[str, Any]
    probability: float
    wanted: float
    error: float

    @property
    def gap(self) -> float:
        """How far the effect is from the wanted one."""
        return abs(self.probability - self.wanted)


def tune(bench: Bench, procedure: Procedure, direction: str, variants: Sequence[dict[str, Any]]) -> list[Trial]:
    """Try variants of a procedure, each at several scales, on a validation bench; the best trial first."""
    wanted, trials = bench.wanted_probability(direction, procedure), []
    rows, targets = np.arange(len(bench.chosen[direction])), bench.chosen[direction].targets
    with tqdm(total=len(variants) * SCALES_PER_VARIANT, desc=f"{procedure.name}, {direction}: settings") as progress:
        for variant in variants:
            tried: dict[float, float] = {}
            for _ in range(SCALES_PER_VARIANT):
                scale = next_scale(tried, wanted, procedure.first_scales[direction], rises=direction == "add")
                settings = {**variant, "guidance_scale": scale}
                made = bench.edit(procedure, direction, settings).images
                tried[scale] = float(bench.probabilities(made, procedure)[rows, targets].mean())
                trials.append(Trial(settings, tried[scale], wanted, error_of(bench, direction, made)))
                progress.update()
    return sorted(
        trials, key=lambda trial: (trial.gap > TOLERANCE, trial.error if trial.gap <= TOLERANCE else trial.gap)
    )


def error_of(bench: Bench, direction: str, made: np.ndarray) -> float:
    """How far edits of a direction end from the truth, see `Trial`."""
    if direction == "add":
        return float(nearest_errors(made, bench.originals[direction], bench.ways).mean())
    return error_to_truth(made, bench.originals[direction], bench.truth[direction])


def next_scale(tried: dict[float, float], wanted: float, first: float, rises: bool) -> float:
    """The scale to try next: outwards by a stride, then between the two that enclose the goal.

    Args:
        tried: probability after the edit by scale.
        wanted: probability.
        first: where to begin.
        rises: whether the probability rises with the scale, which it does where a finding is added.
    """
    if not tried:
        return first
    sign = 1 if rises else -1
    weak = [scale for scale, probability in tried.items() if sign * (wanted - probability) > 0]
    strong = [scale for scale in tried if scale not in weak]
    if not strong:
        return max(weak) * _STRIDE
    if not weak or max(weak) > min(strong):  # the latter: not monotone, so look where it is gentler
        return min(strong) / _STRIDE
    low, high = max(weak), min(strong)
    share = (wanted - tried[low]) / (tried[high] - tried[low])
    return math.exp(math.log(low) + min(max(share, 0.2), 0.8) * math.log(high / low))


def as_json(trials: list[Trial]) -> list[dict[str, Any]]:
    """Trials as plain values."""
    return [asdict(trial) for trial in trials]
