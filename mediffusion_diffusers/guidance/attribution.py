"""Which part of a change makes a classifier change its mind."""

from __future__ import annotations

import torch

from .freezing import hold_saved_tensors
from .prediction import LatentClassifier, gradient_of
from .targets import GuidanceTarget


def attribute_change(
    classify: LatentClassifier,
    latents: torch.Tensor,
    deviation: torch.Tensor,
    target: GuidanceTarget,
    num_points: int = 2,
) -> torch.Tensor:
    r"""What each position of a change adds to the log-odds of the target.

    Integrated gradients (Sundararajan et al., 2017, arXiv:1703.01365, Eq. 1) on the straight line from the image to
    its edit, by the midpoint rule:

        r = sum_c d * mean_i grad_z logit g(y | z_0 + a_i d),   a_i = (i - 1/2) / n

    Over all positions r adds up to what the change makes of the log-odds (there: completeness), exactly where these
    are quadratic on the line. Works under `torch.inference_mode`.

    Args:
        classify: logits of clean latents, differentiable, shape `(rows, num_labels)`; its parameters should be frozen.
        latents: z_0, shape `(rows, channels, height, width)`.
        deviation: d, same shape.
        target: labels, one row per image; the log-odds of several add up.
        num_points: n, evaluations of the classifier for each row, at least 1.

    Returns:
        Shape `(rows, 1, height, width)`, float32 or better; above 0 where the change speaks for the target.
    """
    with torch.inference_mode(False), torch.enable_grad(), hold_saved_tensors():
        # Clones, because tensors made under an outer inference mode can never carry a gradient.
        clean, change, target = latents.detach().clone(), deviation.detach().clone(), target.clone()
        total = torch.zeros_like(change)
        for point in range(num_points):
            share = (point + 0.5) / num_points
            leaf = (clean + share * change).to(clean.dtype).requires_grad_()
            total += gradient_of(target.log_odds, classify(leaf), leaf)
    return (change * total / num_points).sum(1, keepdim=True)
