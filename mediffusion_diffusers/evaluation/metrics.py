"""Our figures as `evaluate.Metric`s: how the scripts compute them, and whoever collects batches with that library.

They live in the package because `evaluate.load` needs the network. They take scores and figures of single images, not
images, in batches (`add_batch`), from several processes (`num_process`, `process_id`, `experiment_id`) or at once
(`compute`); the formulas stand in `classification`, `counterfactuals` and `localisation`. `patient_ids` say which
images belong together when an interval is drawn. A fresh metric is falsy: test it with `is not None`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy as np

from .bootstrap import bootstrap_macro_auroc
from .classification import evaluate_classification, nan_to_none, per_label_auroc
from .counterfactuals import (
    Scores,
    mean_of_known,
    other_change,
    other_change_of_means,
    summarize_scores,
    target_change,
)
from .defaults import NUM_RESAMPLES
from .localisation import summarize_localisation


_NUMBER = datasets.Value("float64")
_MATRIX = datasets.Sequence(_NUMBER)
_PATIENT = {"patient_ids": datasets.Value("string")}
_CHANGES = ("l1", "l1_vs_null", "null_l1", "high_frequency_share", "high_frequency_share_vs_null")
_PLACES = ("inside", "outside", "ratio", "energy_share_inside", "iou", "pointing")
_NULL_PLACES = ("central_body_ratio", "average_box_ratio")


class MacroAuroc(evaluate.Metric):
    """Mean AUROC over the labels that have positives and negatives; NaN references are unknown and masked.

    Example:
        >>> metric = MacroAuroc()
        >>> metric.add_batch(predictions=[[0.9, 0.2], [0.1, 0.3]], references=[[1, 0], [0, 0]])
        >>> result = metric.compute()
        >>> result["macro_auroc"], result["left_out"]
        (1.0, [1])
    """

    def _info(self) -> evaluate.MetricInfo:
        return _info(
            "Macro AUROC with unknown labels masked and labels without an AUROC left out by name.",
            "predictions: scores per label; references: 1, 0 or NaN per label.",
            {"predictions": _MATRIX, "references": _MATRIX},
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, Any]:
        """`macro_auroc`, `auroc` (per label, NaN where none exists) and the indices of the labels `left_out`."""
        values = per_label_auroc(_matrix(references), _matrix(predictions))
        has_value = ~np.isnan(values)
        return {
            "macro_auroc": mean_of_known(values),
            "auroc": values.tolist(),
            "left_out": np.flatnonzero(~has_value).tolist(),
        }


class Classification(evaluate.Metric):
    """Everything that `classification.json` says of a classifier's probabilities.

    Example:
        >>> metric = Classification()
        >>> metric.add_batch(predictions=[[0.9], [0.1]], references=[[1], [0]], patient_ids=["a", "b"])
        >>> result = metric.compute(label_names=["Mass"])
        >>> result["macro_auroc"], result["num_patients"]
        (1.0, 2)
    """

    def _info(self) -> evaluate.MetricInfo:
        return _info(
            "AUROC, AUPRC, thresholds, sensitivity and calibration of every label, with an interval over patients.",
            "predictions: probabilities per label; references: 1, 0 or NaN per label; patient_ids: one per image.",
            {"predictions": _MATRIX, "references": _MATRIX, **_PATIENT},
        )

    def _compute(
        self,
        predictions: Any,
        references: Any,
        patient_ids: Sequence[str],
        label_names: Sequence[str],
        validation: tuple[np.ndarray, np.ndarray] | None = None,
        single_label: bool = False,
        num_resamples: int = NUM_RESAMPLES,
        bootstrap_seed: int = 0,
        show_progress: bool = False,
    ) -> dict[str, Any]:
        """The figures.

        Args:
            predictions: probabilities, shape `(num, num_labels)`.
            references: 1, 0 or NaN, same shape.
            patient_ids: patient of each image.
            label_names: names of the columns.
            validation: references and predictions that thresholds are chosen on, each of shape
                `(num_validation, num_labels)`.
            single_label: whether there is one class per image: then `accuracy`, over the images whose class is known,
                is given too.
            num_resamples: draws of patients for the 95 % interval.
            bootstrap_seed: of these draws.
            show_progress: show a progress bar where they take long.

        Returns:
            `ClassificationReport.to_dict()`, `num_patients` and `macro_auroc_interval`; None where a figure does not
            exist.
        """
        labels, probabilities = _matrix(references), _matrix(predictions)
        report = evaluate_classification(labels, probabilities, label_names, *(validation or (None, None)))
        interval = bootstrap_macro_auroc(
            labels,
            probabilities,
            patient_ids,
            num_resamples=num_resamples,
            seed=bootstrap_seed,
            show_progress=show_progress,
        )
        figures = report.to_dict()
        figures |= {"num_patients": interval.num_patients, "macro_auroc_interval": interval.to_dict()}
        if single_label:
            is_known = ~np.isnan(labels).any(axis=1)
            is_right = probabilities.argmax(axis=1) == labels.argmax(axis=1)
            figures["accuracy"] = mean_of_known(is_right[is_known])
        return nan_to_none(figures)


class CounterfactualScoreChange(evaluate.Metric):
    """ "Diff" and "Other diff" of an outside classifier (Tables 4 to 7).

    The configuration `"study"`, `CounterfactualScoreChange("study")`, also takes the scores of the null edits and the
    patients, and gives all of `summarize_scores`.

    Example:
        >>> metric = CounterfactualScoreChange()
        >>> metric.add_batch(predictions=[[0.1, 0.3]], references=[[0.9, 0.2]], targets=[0])
        >>> {name: round(value, 3) for name, value in metric.compute().items()}
        {'diff': -0.8, 'other_diff': 0.1, 'other_diff_of_means': 0.1}
    """

    def _info(self) -> evaluate.MetricInfo:
        columns = {"predictions": _MATRIX, "references": _MATRIX, "targets": datasets.Value("int64")}
        inputs = "predictions: scores of counterfactuals per label; references: of originals; targets: label indices."
        if self.config_name == "study":
            columns |= {"null_scores": _MATRIX, **_PATIENT}
            inputs += " null_scores: of null edits; patient_ids: one per image."
        return _info(
            "Change of the target label's score and of the others' between originals and counterfactuals.",
            inputs,
            columns,
        )

    def _compute(
        self,
        predictions: Any,
        references: Any,
        targets: Any,
        null_scores: Any = None,
        patient_ids: Sequence[str] = (),
        direction: str = "remove",
        thresholds: np.ndarray | None = None,
    ) -> dict[str, Any]:
        """Means over images: `diff`, `other_diff`, and `other_diff_of_means`, the paper's variant; or all figures.

        Args:
            predictions: scores of counterfactuals, shape `(num, num_labels)`.
            references: of originals, same shape.
            targets: label index of each image.
            null_scores: of null edits, same shape; with the configuration `"study"`, as those that follow.
            patient_ids: patient of each image.
            direction: `"remove"` or `"add"`.
            thresholds: probability from which each label counts as present; None for the most probable one.
        """
        after, before, labels = _matrix(predictions), _matrix(references), np.asarray(targets, dtype=np.int64)
        if null_scores is not None:
            scores = Scores(before, after, _matrix(null_scores), thresholds)
            return summarize_scores(scores, labels, direction, patient_ids)
        return {
            "diff": mean_of_known(target_change(before, after, labels)),
            "other_diff": mean_of_known(other_change(before, after, labels)),
            "other_diff_of_means": other_change_of_means(before, after, labels),
        }


class CounterfactualImageChange(evaluate.Metric):
    """How much counterfactuals change the images: means of figures of single images.

    `l1` (x' to x), `l1_vs_null` (x' to x0), `null_l1` (x0 to x, "composition"), `high_frequency_share` (of x' - x) and
    `high_frequency_share_vs_null` (of x' - x0).

    Example:
        >>> figures = dict.fromkeys(("l1", "l1_vs_null", "null_l1", "high_frequency_share"), [0.0, 0.5])
        >>> result = CounterfactualImageChange().compute(**figures, high_frequency_share_vs_null=[0.5, float("nan")])
        >>> result["l1"], result["high_frequency_share_vs_null"]
        (0.25, 0.5)
    """

    def _info(self) -> evaluate.MetricInfo:
        return _info(
            "Size and smoothness of the change that counterfactuals make.",
            f"{', '.join(_CHANGES)}: one number per image.",
            dict.fromkeys(_CHANGES, _NUMBER),
        )

    def _compute(self, **figures: Any) -> dict[str, float]:
        """Their means, images without a figure (NaN) left out."""
        return {name: mean_of_known(figures[name]) for name in _CHANGES}


class Localisation(evaluate.Metric):
    """Where counterfactuals change the images: inside or outside expert boxes (Fig. 4 and 8), beside the nulls.

    It takes what `measure_localisation` gives of each image, and the patients, and gives `summarize_localisation`.
    """

    def _info(self) -> evaluate.MetricInfo:
        numbers = dict.fromkeys((*_PLACES, *_NULL_PLACES), _NUMBER)
        return _info(
            "Change inside and outside expert boxes, beside changes that know nothing.",
            f"{', '.join(numbers)}: one number per image; wrong_box_ratios: several; patient_ids: one.",
            {**numbers, "wrong_box_ratios": _MATRIX, **_PATIENT},
        )

    def _compute(self, patient_ids: Sequence[str], **figures: Any) -> dict[str, Any]:
        """Means and medians, images without a box (NaN) left out; the median ratio with an interval over patients."""
        return summarize_localisation({name: np.asarray(values) for name, values in figures.items()}, patient_ids)


def _info(description: str, inputs: str, columns: dict[str, Any]) -> evaluate.MetricInfo:
    return evaluate.MetricInfo(
        description=description, citation="", inputs_description=inputs, features=datasets.Features(columns)
    )


def _matrix(values: Any) -> np.ndarray:
    """Scores per label, shape `(num, num_labels)`."""
    return np.asarray(values, dtype=np.float64)
