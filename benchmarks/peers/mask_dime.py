"""An adaptive dual mask at every step, after the idea of MaskDiME (Guo, Christensen, Dahl, Hannemose 2026, "MaskDiME:
Adaptive Masked Diffusion for Precise and Efficient Visual Counterfactual Explanations").

Its code was not published when this was written, and its formulas were not at hand: this follows the abstract alone,
and is MaskDiME-*like*. At every step the classifier's own gradient says where the decision is made; the positions with
the largest gradients form a mask, which is used twice: on the gradient, so that nothing else is pushed, and on the
sample, so that everywhere else the original is noised anew (RePaint, Eq. 8). The gradient is taken at the one-step
prediction of the clean image, as in FastDiME.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .problem import PeerSettings, Problem, change_mask


@dataclass(frozen=True)
class MaskDiMESettings(PeerSettings):
    """Settings of `mask_dime`.

    Args:
        region_share: positions that the mask holds before it is dilated, as a share of all, in (0, 1].
        dilation: of the mask, in positions on each side.
    """

    num_inference_steps: int = 25
    region_share: float = 0.1
    dilation: int = 1


def mask_dime(problem: Problem, settings: MaskDiMESettings) -> torch.Tensor:
    """Change images within a mask that follows the classifier's gradient; returns latents."""
    steps = problem.steps(settings)
    z_t = problem.add_noise(problem.latents, steps[0][0])
    for t, next_t in steps:
        z_0, epsilon = problem.predict(z_t, t)
        gradient = problem.log_prob_grad(z_0)
        mask = largest_mask(gradient, settings.region_share, settings.dilation)
        push = mask * settings.guidance_scale * gradient / problem.alpha(t).sqrt()  # the first use
        z_t = problem.blend(mask, problem.step(z_0, epsilon, t, next_t, push), next_t)  # the second
    return z_t


def largest_mask(gradient: torch.Tensor, region_share: float, dilation: int) -> torch.Tensor:
    """The share of positions where a gradient is largest, dilated: 1 or 0, shape `(num, 1, height, width)`."""
    size = gradient.abs().mean(1, keepdim=True)
    count = max(round(region_share * size[0].numel()), 1)
    smallest = size.flatten(1).topk(count).values[:, -1].view(-1, 1, 1, 1)
    return change_mask((size * (size >= smallest)).sign(), 0.5, dilation)
