"""How good and how steady an oracle is."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ...models.oracle_classifier import OracleClassifier
from ..classification import auroc_record
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
    result["clean"] = auroc_record(labels, clean_scores.numpy(), oracle.label_names)
    for name, pictures in disturbed_variants(images, seed).items():
        scores = oracle(pictures)
        change = scores - clean_scores
        result[name] = {
            **auroc_record(labels, scores.numpy(), oracle.label_names),
            "mean_absolute_score_change": float(change.abs().mean()),
            "mean_score_change": float(change.mean()),
        }
    return result
