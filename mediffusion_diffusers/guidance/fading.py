"""Guidance over a whole step: the push fades as the target becomes certain within the step.

Eq. 2 pushes by the gradient at the step's beginning. With a large scale and few steps that goes on pushing when the
target has long been reached. Here the classifier's logit `l = log(g / (1 - g))` is taken to be linear along the push;
then `grad log g = (1 - g) grad l`, and over a step (u from 0 to 1)

    dl/du = K (1 - g(l)),   K = (first-order gain of log g over the step) / (1 - g_0)^2

has the solution `m - exp(-m)` falling by K, for `m = -l`. The push that the step takes is the mean over the step.
Where other labels are held, the gain is that of `log g` alone, and only its part of the push fades.
"""

from __future__ import annotations

import torch

from .formulas import guide_model_output, predict_epsilon
from .prediction import GuidedPrediction
from .targets import GuidanceTarget


_NUM_NEWTON_STEPS = 20


def fading_factor(log_prob: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    """Mean push over a step, as a share of the push at its beginning.

    Args:
        log_prob: log g at the beginning, at most 0.
        gain: what log g would gain over the step to first order, at least 0; same shape.

    Returns:
        In (0, 1], same shape, float64; 1 where there is no push.
    """
    log_prob, gain = log_prob.double(), gain.double()
    rest = -torch.expm1(log_prob)  # 1 - g
    has_push = (rest > 0) & (gain > 0)
    rest = torch.where(has_push, rest, 0.5)
    start = torch.log(rest) - torch.where(has_push, log_prob, -0.5)
    strength = torch.where(has_push, gain, 1.0) / rest.square()
    goal = start - torch.exp(-start) - strength
    # m - exp(-m) is concave and rises: from a point below the root, Newton's method climbs to it.
    end = torch.where(goal > 0, goal, -torch.log1p(-goal.clamp(max=0)))
    for _ in range(_NUM_NEWTON_STEPS):
        end = end - (end - torch.exp(-end) - goal) / (1 + torch.exp(-end))
    factor = (start - end) / (strength * rest)
    return torch.where(has_push, factor.clamp(0, 1), 1.0)


def fade(
    predicted: GuidedPrediction,
    sample: torch.Tensor,
    target: GuidanceTarget,
    guidance_scale: float | torch.Tensor,
    alpha_prod_t: torch.Tensor,
    noise_weight: torch.Tensor,
    prediction_type: str = "epsilon",
) -> torch.Tensor:
    """The guided prediction with the push that is the mean over the step.

    Args:
        predicted: guided and unguided prediction, and logits.
        sample: z_t, shape `(batch, channels, height, width)`.
        target: labels that were pushed.
        guidance_scale: s, a number or one per image.
        alpha_prod_t: abar_t, a scalar.
        noise_weight: what the noise adds to the next sample, dz / d eps, a scalar (below 0 on the way down).
        prediction_type: of the predictions.

    Returns:
        The prediction, shape of the latents.
    """
    if alpha_prod_t == 0:  # nothing is pushed: z_t holds nothing of an image
        return predicted.model_output
    place = (sample, alpha_prod_t, prediction_type)
    shift = predict_epsilon(predicted.model_output, *place) - predict_epsilon(predicted.unguided, *place)
    # shift = -s sqrt(1 - abar) grad log g, and the step moves z by noise_weight * shift.
    scale = torch.as_tensor(guidance_scale, dtype=torch.float64).to(shift.device, non_blocking=True)
    per_gradient = -scale * (1 - alpha_prod_t.double()).sqrt()
    push, held = predicted.model_output - predicted.unguided, None
    if predicted.log_prob_grad is None:
        size = shift.double().flatten(1).square().sum(1)
    else:
        own_shift = per_gradient.reshape(-1, 1, 1, 1) * predicted.log_prob_grad.double()
        size = (own_shift * shift.double()).flatten(1).sum(1)
        own = (predicted.log_prob_grad, alpha_prod_t, guidance_scale, prediction_type)
        own_push = guide_model_output(torch.zeros_like(push), *own)
        push, held = own_push, push - own_push
    gain = torch.where(per_gradient < 0, noise_weight.double() / per_gradient, 0.0) * size
    factor = fading_factor(target.log_prob(predicted.logits.float()), gain)
    faded = predicted.unguided + factor.to(push).reshape(-1, 1, 1, 1) * push
    return faded if held is None else faded + held
