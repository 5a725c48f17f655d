"""Our figures as `evaluate.Metric`s, for whoever collects batches with that library.

They live in the package because `evaluate.load` needs the network. They take scores, not images. A fresh metric is
falsy: test it with `is not None`.
"""

from __future__ import annotations

from typing import Any

import datasets
import evaluate
import numpy as np

from .classification import per_label_auroc
from .counterfactuals import other_change, other_change_of_means, target_change


_MATRIX = datasets.Sequence(datasets.Value("float64"))


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
        return evaluate.MetricInfo(
            description="Macro AUROC with unknown labels masked and labels without an AUROC left out by name.",
            citation="",
            inputs_description="predictions: scores per label; references: 1, 0 or NaN per label.",
            features=datasets.Features({"predictions": _MATRIX, "references": _MATRIX}),
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, Any]:
        """`macro_auroc`, `auroc` (per label, NaN where none exists) and the indices of the labels `left_out`."""
        values = per_label_auroc(np.asarray(references, dtype=np.float64), np.asarray(predictions, dtype=np.float64))
        has_value = ~np.isnan(values)
        return {
            "macro_auroc": float(values[has_value].mean()) if has_value.any() else float("nan"),
            "auroc": values.tolist(),
            "left_out": np.flatnonzero(~has_value).tolist(),
        }


class CounterfactualScoreChange(evaluate.Metric):
    """ "Diff" and "Other diff" of an outside classifier (Tables 4 to 7).

    Example:
        >>> metric = CounterfactualScoreChange()
        >>> metric.add_batch(predictions=[[0.1, 0.3]], references=[[0.9, 0.2]], targets=[0])
        >>> {name: round(value, 3) for name, value in metric.compute().items()}
        {'diff': -0.8, 'other_diff': 0.1, 'other_diff_of_means': 0.1}
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Change of the target label's score and of the others' between originals and counterfactuals.",
            citation="",
            inputs_description=(
                "predictions: scores of counterfactuals per label; references: of originals; targets: label indices."
            ),
            features=datasets.Features(
                {"predictions": _MATRIX, "references": _MATRIX, "targets": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions: Any, references: Any, targets: Any) -> dict[str, float]:
        """Means over images: `diff`, `other_diff`, and `other_diff_of_means`, the paper's variant."""
        after, before = np.asarray(predictions, dtype=np.float64), np.asarray(references, dtype=np.float64)
        labels = np.asarray(targets, dtype=np.int64)
        return {
            "diff": float(target_change(before, after, labels).mean()),
            "other_diff": float(other_change(before, after, labels).mean()),
            "other_diff_of_means": other_change_of_means(before, after, labels),
        }
