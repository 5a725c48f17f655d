"""How good and how steady an oracle is."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from ...evaluation.classification import per_label_auroc, youden_threshold
from ...models.oracle_classifier import OracleClassifier
from .disturbances import TEST_BLUR_SIGMA, TEST_NOISE_L1, disturbed_variants


def measure_oracle(
    oracle: OracleClassifier, images: torch.Tensor, labels: np.ndarray, seed: int = 0
) -> dict[str, Any]:
    """How good and how steady an oracle is.

    Args:
        oracle: the classifier.
        images: held-out images, shape `(num, channels, height, width)` in [-1, 1].
        labels: their labels, shape `(num, num_labels)`, NaN = unknown.
        seed: of the noise.

    Returns:
        `auroc` per label and `macro_auroc` on clean, noised and blurred images, and how much noise and blur move the
        scores: mean absolute and mean signed change.
    """
    clean_scores = oracle(images)
    result: dict[str, Any] = {"num_images": len(images), "noise_l1": TEST_NOISE_L1, "blur_sigma": TEST_BLUR_SIGMA}
    result["clean"] = auroc_record(labels, clean_scores, oracle.label_names)
    for name, pictures in disturbed_variants(images, seed).items():
        scores = oracle(pictures)
        change = scores - clean_scores
        result[name] = {
            **auroc_record(labels, scores, oracle.label_names),
            "mean_absolute_score_change": float(change.abs().mean()),
            "mean_score_change": float(change.mean()),
        }
    return result


def auroc_record(labels: np.ndarray, scores: torch.Tensor, label_names: list[str]) -> dict[str, Any]:
    """`macro_auroc`, and `auroc` of every label that has one.

    Raises:
        FloatingPointError: if a score is not finite.
    """
    if not bool(scores.isfinite().all()):
        raise FloatingPointError("The scores became NaN. Lower `learning_rate`.")
    values = dict(zip(label_names, per_label_auroc(labels, scores.numpy()).tolist(), strict=True))
    auroc = {name: value for name, value in values.items() if not math.isnan(value)}
    return {"macro_auroc": float(np.mean(list(auroc.values()))) if auroc else None, "auroc": auroc}


def choose_thresholds(oracle: OracleClassifier, images: torch.Tensor, labels: np.ndarray) -> list[float]:
    """Youden's threshold of each label on the validation images; 0.5 where none exists."""
    scores = oracle(images).numpy()
    thresholds = [youden_threshold(labels[:, k], scores[:, k]) for k in range(labels.shape[1])]
    return [0.5 if math.isnan(threshold) else threshold for threshold in thresholds]
