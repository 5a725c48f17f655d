"""What every classifier in training needs: its loss over what is known, its AUROC, its thresholds."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ..evaluation.classification import per_label_auroc, youden_threshold


def known_terms(labels: torch.Tensor, problem_type: str) -> torch.Tensor:
    """Number of terms in the classification loss: known entries (multi-label) or known rows (single-label).

    A scalar on the labels' device.
    """
    known = ~torch.isnan(labels)
    return known.sum() if problem_type == "multi_label_classification" else known.all(dim=1).sum()


def count_known(labels: torch.Tensor, problem_type: str) -> int:
    """`known_terms` as a number; waits for the labels' device."""
    return int(known_terms(labels, problem_type))


def classification_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    problem_type: str,
    num_known: int | None = None,
    pos_weight: torch.Tensor | None = None,
) -> torch.Tensor:
    """Classification loss L_class over what is known; the one place that masks missing labels.

    Multi-label: binary cross-entropy, mean over the known entries. Single-label: cross-entropy, mean over the rows
    whose class is known. Targets may be probabilities, such as another model's answers.

    Args:
        logits: shape `(batch, num_labels)`.
        labels: shape `(batch, num_labels)`: 1 present, 0 absent, between them a probability, NaN unknown; for
            single-label rows that sum to 1 (one-hot, or probabilities), or a row of NaN.
        problem_type: `"multi_label_classification"` or `"single_label_classification"`.
        num_known: divisor of the sum; the global batch's `count_known` when this is a slice of it.
        pos_weight: weights, `(num_labels,)`: multi-label of each label's positive term, single-label of each class's
            term; see `resolve_pos_weight`. The divisor stays a count.

    Returns:
        A scalar; zero, with a graph, if nothing is known.

    Raises:
        ValueError: for an unknown `problem_type` or other shapes.
    """
    if logits.shape != labels.shape:
        raise ValueError(
            f"`labels` must have the logits' shape {tuple(logits.shape)}, but got {tuple(labels.shape)}. Give unknown "
            "labels as NaN and classes as one-hot rows."
        )
    logits = logits.float()
    known = ~torch.isnan(labels)
    targets = torch.nan_to_num(labels).to(logits)
    if problem_type == "multi_label_classification":
        terms = F.binary_cross_entropy_with_logits(logits, targets, reduction="none", pos_weight=pos_weight)
    elif problem_type == "single_label_classification":
        known = known.all(dim=1)
        terms = F.cross_entropy(logits, targets, reduction="none", weight=pos_weight)
    else:
        raise ValueError(
            "`problem_type` must be 'multi_label_classification' or 'single_label_classification', but got "
            f"{problem_type!r}."
        )
    divisor = int(known.sum()) if num_known is None else num_known
    return torch.where(known, terms, torch.zeros_like(terms)).sum() / max(1, divisor)


def probabilities(logits: torch.Tensor, problem_type: str) -> torch.Tensor:
    """Sigmoid (multi-label) or softmax (single-label) of logits, `(num_images, num_labels)`."""
    logits = logits.float()
    return logits.sigmoid() if problem_type == "multi_label_classification" else logits.softmax(dim=1)


def auroc_record(labels: np.ndarray, scores: np.ndarray, label_names: list[str]) -> dict[str, Any]:
    """`macro_auroc`, and `auroc` of every label that has positives and negatives among its known entries.

    Args:
        labels: `(num_images, num_labels)`, NaN = unknown.
        scores: of the same shape.
        label_names: one per column.

    Raises:
        FloatingPointError: if a score is not finite.
    """
    if not np.isfinite(scores).all():
        raise FloatingPointError("The scores became NaN. Lower `learning_rate`.")
    values = dict(zip(label_names, per_label_auroc(labels, scores).tolist(), strict=True))
    auroc = {name: value for name, value in values.items() if not math.isnan(value)}
    return {"macro_auroc": float(np.mean(list(auroc.values()))) if auroc else None, "auroc": auroc}


def label_thresholds(labels: np.ndarray, scores: np.ndarray) -> list[float]:
    """Per label the probability from which it counts as present: Youden's, inside (0, 1); 0.5 where there is none."""
    thresholds = [youden_threshold(labels[:, k], scores[:, k]) for k in range(scores.shape[1])]
    return [0.5 if math.isnan(value) else min(max(value, 1e-6), 1 - 1e-6) for value in thresholds]
