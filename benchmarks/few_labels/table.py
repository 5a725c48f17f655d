"""From the results of all draws to the table: means, paired differences, and two kinds of intervals.

The t-interval over draws says how much a difference depends on which images are labelled; the bootstrap over patients
of the test split, with the draws as they are, how much on who is asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
COMPARED = ("consolidated", "diffusion_first", "joint")
NUM_RESAMPLES = 300
_PERCENT = 100


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


def interval_over_patients(pairs: Sequence[tuple[np.ndarray, np.ndarray]], test: HeldOut) -> list[float]:
    """The 95 % bootstrap interval of the mean difference of macro AUROC over the draws.

    Args:
        pairs: scores of two methods on the test images, of each draw.
        test: the test images.
    """
    known = ~np.isnan(test.labels).any(axis=1)
    labels = test.labels[known]

    def macro(scores: np.ndarray, weights: np.ndarray) -> float:
        return float(np.nanmean([auroc(labels[:, k], scores[known][:, k], weights) for k in range(labels.shape[1])]))

    def mean_difference(weights: np.ndarray) -> float:
        return float(np.mean([macro(ours, weights[known]) - macro(theirs, weights[known]) for ours, theirs in pairs]))

    found = bootstrap(mean_difference, test.patient_ids, num_resamples=NUM_RESAMPLES)
    return [found.low, found.high]


def differences_of(
    draws: Mapping[int, dict[str, Any]], methods: Sequence[str], scores_of: Any, test: HeldOut | None
) -> dict[str, Any]:
    """Paired differences in points of test macro AUROC, ours minus each other; with `test` also over its patients."""
    found: dict[str, Any] = {}
    for ours in [name for name in COMPARED if name in methods]:
        others = [name for name in methods if name != ours and name not in COMPARED[: COMPARED.index(ours)]]
        for other in others:
            values = [
                _PERCENT
                * (draw["methods"][ours]["test"]["macro_auroc"] - draw["methods"][other]["test"]["macro_auroc"])
                for draw in draws.values()
            ]
            row: dict[str, Any] = {"points": summary(values), "interval_95_over_draws": interval_over_draws(values)}
            row["draws_in_favour"] = f"{sum(value > 0 for value in values)} of {len(values)}"
            if test is not None:
                pairs = [(scores_of(draw, ours), scores_of(draw, other)) for draw in draws]
                row["interval_95_over_patients"] = [_PERCENT * end for end in interval_over_patients(pairs, test)]
            found[f"{METHODS[ours].title}, minus {METHODS[other].title}"] = row
    return found


def method_rows(
    draws: Mapping[int, dict[str, Any]], methods: Sequence[str], label_names: Sequence[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """By method: AUROC and cost; and the test AUROC of each label."""
    rows, labels = {}, {}
    for name in methods:
        results = [draw["methods"][name] for draw in draws.values()]
        seconds = [result["cpu_seconds"] for result in results]
        after = METHODS[name].after
        if after is not None:
            seconds = [
                a + draw["methods"][after]["cpu_seconds"] for a, draw in zip(seconds, draws.values(), strict=True)
            ]
        rows[METHODS[name].title] = {
            "test_macro_auroc": summary([result["test"]["macro_auroc"] for result in results]),
            "validation_macro_auroc": summary([result["validation"]["macro_auroc"] for result in results]),
            "cpu_seconds_a_draw": float(np.mean(seconds)),
            "uses_the_pre_trained_unet": METHODS[name].is_pretrained,
        }
        known = [result["test"]["auroc"] for result in results]
        labels[METHODS[name].title] = {
            label: float(np.mean([each[label] for each in known])) for label in label_names if label in known[0]
        }
    return rows, labels


def denoising_rows(
    pretrained: Sequence[float], draws: Mapping[int, dict[str, Any]], methods: Sequence[str]
) -> dict[str, Any]:
    """Held-out denoising loss over that of the pre-trained model, in each tenth of the noise schedule."""
    rows = {}
    for name in methods:
        losses = [draw["methods"][name].get("denoising_losses") for draw in draws.values()]
        if all(each is not None for each in losses):
            ratios = np.mean(np.array(losses) / np.array(pretrained), axis=0)
            rows[METHODS[name].title] = {f"tenth {number + 1}": float(ratio) for number, ratio in enumerate(ratios)}
    return rows


def scores_in(folder: Path) -> Any:
    """A function of draw and method that reads the test scores kept in a study's folder."""
    return lambda draw, name: load_file(folder / f"draw-{draw}" / f"{name}.safetensors")["scores"]
