"""Pseudo-labels: what the averaged model is sure about becomes a target for the model in training.

Beyond the paper, which uses unlabelled images for the diffusion loss only. The teacher is the moving average of the
weights (Tarvainen and Valpola, 2017), the mask and the mean over *all* images of the batch are FixMatch's (Sohn et
al., 2020, Eq. 4).
"""

from __future__ import annotations

import torch


def confident_labels(logits: torch.Tensor, threshold: float, problem_type: str) -> torch.Tensor:
    """Targets where the teacher is sure, NaN where it is not.

    Args:
        logits: of the teacher, `(batch, num_labels)`.
        threshold: least probability of the answer, in (0.5, 1). Multi-label: of presence *or* absence of each label.
            Single-label: of the likeliest class.
        problem_type: `"multi_label_classification"` or `"single_label_classification"`.

    Returns:
        As `classification_loss` takes them: multi-label 1, 0 or NaN per entry; single-label one-hot rows or rows of
        NaN. Same shape as `logits`.

    Raises:
        ValueError: for an unknown `problem_type`.
    """
    logits = logits.float()
    unknown = torch.full_like(logits, torch.nan)
    if problem_type == "multi_label_classification":
        probabilities = logits.sigmoid()
        labels = (probabilities > 0.5).to(logits)
        return torch.where(torch.maximum(probabilities, 1 - probabilities) >= threshold, labels, unknown)
    if problem_type == "single_label_classification":
        confidence, winner = logits.softmax(dim=1).max(dim=1)
        labels = torch.nn.functional.one_hot(winner, logits.shape[1]).to(logits)
        return torch.where((confidence >= threshold).unsqueeze(1), labels, unknown)
    raise ValueError(
        "`problem_type` must be 'multi_label_classification' or 'single_label_classification', but got "
        f"{problem_type!r}."
    )


def num_pseudo_terms(num_images: int, num_labels: int, problem_type: str) -> int:
    """Terms of the loss if the teacher were sure of everything: what the sum is divided by."""
    return num_images * num_labels if problem_type == "multi_label_classification" else num_images
