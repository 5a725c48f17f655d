"""From the results of all draws to the table: means, paired differences, and two kinds of intervals.

The t-interval over draws says how much a difference depends on which images are labelled; the bootstrap over patients
of the test split, with the draws as they are, how much on who is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file
from scipy.stats import t as student_t

from mediffusion_diffusers.evaluation.bootstrap import bootstrap
from mediffusion_diffusers.evaluation.classification import auroc

from . import METHODS
from .problem import HeldOut


# Each is compared with all that follow it.
COMPARED = ("consolidated", "diffusion_first", "frozen_probe")
NUM_RESAMPLES = 300

Results = Mapping[str, Mapping[int, Mapping[str, Any]]]  # by method, then by draw
ScoresOf = Callable[[int, str], np.ndarray]


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Mean and standard deviation."""
    return {"mean": float(np.mean(values)), "sd": float(np.std(values, ddof=1)) if len(values) > 1 else None}


def interval_over_draws(differences: Sequence[float]) -> list[float] | None:
    """The 95 % t-interval of the mean; `None` for a single draw."""
    number = len(differences)
    if number < 2:
        return None
    half = student_t.ppf(0.975, number - 1) * np.std(differences, ddof=1) / np.sqrt(number)
    mean = float(np.mean(differences))
    return [mean - float(half), mean + float(half)]


class Resampled:
    """Macro AUROC of a method on one draw, with the test images counted as a resample says; each computed once.

    Args:
        scores_of: test scores of a draw and a method.
        test: the test images.
    """

    def __init__(self, scores_of: ScoresOf, test: HeldOut):
        self.scores_of, self.patient_ids = scores_of, test.patient_ids
        self.labels = test.labels
        self._known: dict[bytes, dict[tuple[str, int], float]] = {}

    def macro_auroc(self, name: str, draw: int, weights: np.ndarray) -> float:
        """Mean over the labels that have positives and negatives in the resample."""
        known = self._known.setdefault(weights.tobytes(), {})
        if (name, draw) not in known:
            scores = self.scores_of(draw, name)
            each = [auroc(*column, weights) for column in zip(self.labels.T, scores.T, strict=True)]
            known[name, draw] = float(np.nanmean(each))
        return known[name, draw]

    def interval(self, ours: str, other: str, draws: Sequence[int]) -> list[float]:
        """The 95 % bootstrap interval of the mean difference over the draws."""

        def mean_difference(weights: np.ndarray) -> float:
            pairs = [self.macro_auroc(ours, draw, weights) - self.macro_auroc(other, draw, weights) for draw in draws]
            return float(np.mean(pairs))

        found = bootstrap(mean_difference, self.patient_ids, num_resamples=NUM_RESAMPLES)
        return [found.low, found.high]


def differences_of(results: Results, resampled: Resampled | None) -> dict[str, Any]:
    """Paired differences in points of macro AUROC, ours minus each other, over the draws that both have.

    Args:
        results: of each method, by draw.
        resampled: for the interval over the test patients too.
    """
    found: dict[str, Any] = {}
    for ours in [name for name in COMPARED if name in results]:
        for other in [name for name in results if name != ours and name not in COMPARED[: COMPARED.index(ours)]]:
            draws = sorted(results[ours].keys() & results[other].keys())
            if not draws:
                continue
            on_test, on_validation = (
                [_points(results[ours][draw], split) - _points(results[other][draw], split) for draw in draws]
                for split in ("test", "validation")
            )
            row = {
                "points": summary(on_test),
                "interval_95_over_draws": interval_over_draws(on_test),
                "interval_95_over_patients": None,
                "draws_in_favour": f"{sum(value > 0 for value in on_test)} of {len(draws)}",
                "points_on_validation": summary(on_validation),
            }
            if resampled is not None:
                row["interval_95_over_patients"] = [100 * end for end in resampled.interval(ours, other, draws)]
            found[f"{METHODS[ours].title}, minus {METHODS[other].title}"] = row
    return found


def _points(result: Mapping[str, Any], split: str) -> float:
    return 100 * result[split]["macro_auroc"]


def method_rows(results: Results) -> dict[str, Any]:
    """AUROC and cost of each method; what it goes on from is counted, the pre-training is not."""
    rows = {}
    for name, by_draw in results.items():
        after = METHODS[name].after
        before = {} if after is None else results[after]
        rows[METHODS[name].title] = {
            "test_macro_auroc": summary([each["test"]["macro_auroc"] for each in by_draw.values()]),
            "validation_macro_auroc": summary([each["validation"]["macro_auroc"] for each in by_draw.values()]),
            "num_draws": len(by_draw),
            "cpu_seconds_a_draw": float(
                np.mean(
                    [
                        each["cpu_seconds"] + (before[draw]["cpu_seconds"] if draw in before else 0)
                        for draw, each in by_draw.items()
                    ]
                )
            ),
            "pre_trained_to_denoise": METHODS[name].is_pretrained,
        }
    return rows


def label_rows(results: Results) -> dict[str, Any]:
    """Mean test AUROC of each label, by method."""
    rows = {}
    for name, by_draw in results.items():
        known = [each["test"]["auroc"] for each in by_draw.values()]
        rows[METHODS[name].title] = {label: float(np.mean([each[label] for each in known])) for label in known[0]}
    return rows


def denoising_rows(pretrained: Sequence[float], results: Results) -> dict[str, Any]:
    """Held-out denoising loss over that of the pre-trained model, in each tenth of the noise schedule."""
    rows = {}
    for name, by_draw in results.items():
        losses = [each["denoising_losses"] for each in by_draw.values() if "denoising_losses" in each]
        if losses:
            ratios = np.mean(np.array(losses) / np.array(pretrained), axis=0)
            rows[METHODS[name].title] = {f"tenth {number}": float(ratio) for number, ratio in enumerate(ratios, 1)}
    return rows


def scores_in(folder: Path) -> ScoresOf:
    """A function of draw and method that reads the test scores kept in a study's folder."""

    @cache
    def scores(draw: int, name: str) -> np.ndarray:
        return load_file(folder / f"draw-{draw}" / f"{name}.safetensors")["scores"]

    return scores
