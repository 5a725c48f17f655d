"""What the procedures made, measured: figures of each on one model, and differences between them over all models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from procedures import BATCH_SIZE, Bench, Edited

from mediffusion_diffusers.evaluation.bootstrap import bootstrap
from mediffusion_diffusers.evaluation.classification import auroc, nan_to_none
from mediffusion_diffusers.evaluation.counterfactual_summary import summarize
from mediffusion_diffusers.evaluation.counterfactuals import Counterfactuals, Scores, mean_absolute_change
from mediffusion_diffusers.evaluation.realism import Realism
from mediffusion_diffusers.evaluation.study_controls import plain_gradient, random_noise
from mediffusion_diffusers.evaluation.truth import (
    cosines_to_truth,
    nearest_errors,
    region_overlaps,
    squared_distance,
)
from mediffusion_diffusers.image_processor import normalize


SEED = 0  # of the noise control
NUM_RESAMPLES = 1000


@dataclass(frozen=True)
class PerImage:
    """What intervals are made of: figures of each image, in the order of the patients.

    Args:
        patients: of the images.
        squared_error: squared distance to the truth.
        squared_own: that of the original.
        cosine: of the change with the true one.
        nearest: error to the nearest true way; None where the finding is removed.
        l1: mean absolute change.
        detector: how edited each image looks, then each real one, of the same patients.
    """

    patients: list[str]
    squared_error: np.ndarray
    squared_own: np.ndarray
    cosine: np.ndarray
    nearest: np.ndarray | None
    l1: np.ndarray
    detector: np.ndarray

    def measures(self) -> dict[str, Callable[[np.ndarray], float]]:
        """By name, the figure of these images, given how often each counts."""

        def mean(values: np.ndarray) -> Callable[[np.ndarray], float]:
            return lambda weights: float(np.average(values, weights=weights)) if weights.sum() else float("nan")

        def error(weights: np.ndarray) -> float:
            own = (weights * self.squared_own).sum()
            return float(np.sqrt((weights * self.squared_error).sum() / own)) if own else float("nan")

        def realism(weights: np.ndarray) -> float:
            is_edited = np.repeat([1.0, 0.0], len(self.patients))
            return auroc(is_edited, self.detector, np.concatenate([weights, weights]))

        found = {"error": error, "cosine": mean(self.cosine), "realism_auroc": realism}
        return found if self.nearest is None else {**found, "nearest_error": mean(self.nearest)}


@dataclass(frozen=True)
class Row:
    """One procedure's figures on one model.

    Args:
        figures: by name.
        per_image: what they are of.
    """

    figures: dict[str, float]
    per_image: PerImage


class DirectionFigures:
    """Measures the edits of one direction on one model.

    Args:
        bench: of the test split.
        direction: `"remove"` or `"add"`.
    """

    def __init__(self, bench: Bench, direction: str):
        self.bench, self.direction = bench, direction
        self.originals, self.truth = bench.originals[direction], bench.truth[direction]
        self.patients = bench.patients(direction)
        self.own_before, self.oracle_before = self._own(self.originals), self._oracle(self.originals)
        self.realism = Realism(self.truth, self.patients)
        self.ways = bench.ways if direction == "add" else None

    def counterfactuals(self, edited: Edited) -> Counterfactuals:
        """With the scores of the explained and of the outside classifier."""
        oracle = self.bench.runner.oracle
        assert oracle is not None
        own = Scores(self.own_before, self._own(edited.images), self.own_before, self.bench.runner.own_thresholds)
        outside = Scores(self.oracle_before, self._oracle(edited.images), self.oracle_before, oracle.thresholds)
        return Counterfactuals(
            originals=self.originals,
            images=edited.images,
            null_images=self.originals,
            targets=self.bench.chosen[self.direction].targets,
            direction=self.direction,
            own=own,
            oracle=outside,
            regions=edited.regions,
            patient_ids=self.patients,
        )

    def controls(self, edited: Edited) -> dict[str, Edited]:
        """Of the size of an edit: the plain gradient in its region and everywhere, and noise."""
        made = self.counterfactuals(edited)
        parts = [slice(first, first + BATCH_SIZE) for first in range(0, len(made), BATCH_SIZE)]
        everywhere = replace(made, regions=None)
        found = {"random noise": random_noise(made, SEED)}
        for name, beside in (("plain gradient in its region", made), ("plain gradient", everywhere)):
            if beside.regions is not None or beside is everywhere:
                found[name] = np.concatenate([plain_gradient(self.bench.pipe, beside, part) for part in parts])
        return {name: Edited(images, None, None, float("nan")) for name, images in found.items()}

    def row(self, name: str, edited: Edited) -> Row:
        """All figures of an edit."""
        made, originals, truth = self.counterfactuals(edited), self.originals, self.truth
        summary = summarize(made)
        self.realism.summarize(name, edited.images, self.patients)
        per_image = PerImage(
            self.patients,
            squared_distance(edited.images, truth),
            squared_distance(originals, truth),
            cosines_to_truth(edited.images, originals, truth),
            None if self.ways is None else nearest_errors(edited.images, originals, self.ways),
            mean_absolute_change(edited.images, originals),
            self.realism.scores[name],
        )
        everyone = np.ones(len(self.patients))
        figures = {measure: value(everyone) for measure, value in per_image.measures().items()}
        figures |= {
            "region_iou": float(region_overlaps(edited.images, originals, truth).mean()),
            "own_flip_rate": summary["own"]["flip_rate"],
            "own_probability": summary["own"]["after"],
            "oracle_diff": summary["oracle"]["diff"],
            "oracle_flip_rate": summary["oracle"]["flip_rate"],
            "oracle_other_diff": summary["oracle"]["other_diff"],
            "l1": summary["change"]["l1"],
            "high_frequency_share": summary["change"]["high_frequency_share"],
        }
        figures |= self._error_by_label(per_image)
        return Row({name: np.nan if value is None else value for name, value in figures.items()}, per_image)

    def _error_by_label(self, per_image: PerImage) -> dict[str, float]:
        targets = self.bench.chosen[self.direction].targets
        errors = {}
        for target in np.unique(targets).tolist():
            weights = (targets == target).astype(np.float64)
            errors[f"error of {self.bench.label_names[target]}"] = per_image.measures()["error"](weights)
        return errors

    def _own(self, images: np.ndarray) -> np.ndarray:
        return self.bench.runner.classifier(torch.from_numpy(images), batch_size=BATCH_SIZE).probabilities

    def _oracle(self, images: np.ndarray) -> np.ndarray:
        assert self.bench.runner.oracle is not None
        return self.bench.runner.oracle(normalize(torch.from_numpy(images))).numpy()


def mean_figures(rows: Sequence[Row]) -> dict[str, Any]:
    """Mean and standard deviation over models of every figure, and how many models they are."""
    names = dict.fromkeys(name for row in rows for name in row.figures)
    table = {name: [row.figures[name] for row in rows if name in row.figures] for name in names}
    means = {name: {"mean": float(np.mean(values)), "sd": float(np.std(values))} for name, values in table.items()}
    return {**means, "num_models": len(rows)}


def difference(ours: Mapping[int, Row], others: Mapping[int, Row]) -> dict[str, Any]:
    """Ours minus another procedure, mean over models, with 95 % intervals over patients drawn for both alike.

    A patient may be in the images of several models, and then counts in each as often as it is drawn.

    Args:
        ours: a row by model.
        others: likewise; models that only one of both has are left out.
    """
    shared = sorted(ours.keys() & others.keys())
    patients = [patient for model in shared for patient in ours[model].per_image.patients]
    ends = np.cumsum([len(ours[model].per_image.patients) for model in shared]).tolist()
    parts = [slice(first, last) for first, last in pairwise([0, *ends])]
    pairs = [(ours[model].per_image.measures(), others[model].per_image.measures()) for model in shared]
    found: dict[str, Any] = {"num_models": len(shared)}
    for name in pairs[0][0]:

        def statistic(weights: np.ndarray, name: str = name) -> float:
            gaps = [
                one[name](weights[part]) - other[name](weights[part])
                for (one, other), part in zip(pairs, parts, strict=True)
            ]
            return float(np.mean(gaps))

        interval = bootstrap(statistic, patients, NUM_RESAMPLES)
        found[name] = {"estimate": interval.estimate, "interval_95": [interval.low, interval.high]}
    return nan_to_none(found)
