"""One guided evaluation of the model: Eq. 2 and 7, with the classifier asked in one of four places."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import get_args

import torch

from ..choices import OwnGuidanceMode
from ..models import JointUNet2DModel
from .formulas import guide_model_output, predict_original_sample
from .freezing import hold_saved_tensors
from .targets import GuidanceTarget


# The model's own classifier, in three places; and a classifier of pixels, through the decoder (App. H).
OWN_GUIDANCE_MODES = get_args(OwnGuidanceMode)
GUIDANCE_MODES = (*OWN_GUIDANCE_MODES, "external")

# Size at which gradients are passed backwards, as a power of two: far below what float16 holds (2^16), and far above
# what pooling divides by.
_BACKWARD_EXPONENT = 6
_SMALLEST_EXPONENT = -100  # of a gradient: below, the target is certain to all ends

# Clean latents to logits, differentiable: the decoder followed by a classifier of pixels.
LatentClassifier = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class GuidedPrediction:
    """One guided evaluation of the model, without a graph.

    Args:
        model_output: the guided prediction in the scheduler's `prediction_type`, shape of the latents.
        logits: class scores that the gradient was taken of, shape `(batch, num_labels)`.
        unguided: the prediction before it was shifted, shape of the latents.
        log_prob_grad: gradient of `log g` alone, where what guides holds other labels too; else None.
    """

    model_output: torch.Tensor
    logits: torch.Tensor
    unguided: torch.Tensor
    log_prob_grad: torch.Tensor | None = None


def predict_guided(
    unet: JointUNet2DModel,
    sample: torch.Tensor,
    timestep: torch.Tensor,
    target: GuidanceTarget,
    guidance_scale: float | torch.Tensor,
    alpha_prod_t: torch.Tensor,
    prediction_type: str = "epsilon",
    mode: str = "zt",
    classifier: LatentClassifier | None = None,
) -> GuidedPrediction:
    """Predict the noise and steer it by the gradient of a classifier (Eq. 2 and 7).

    The classifier is asked in one of four places:

    - `"zt"`: the model's own head at z_t and its timestep, Eq. 2 as printed. One shared encoder pass gives logits,
      gradient and skips; the decoder runs without a graph.
    - `"x0_detached"`: the own head at the predicted clean latents and t = 0 with eps held constant, so that
      d z_0 / d z_t = 1 / sqrt(abar_t); it may have been trained at t = 0 only.
    - `"x0"`: the same with the gradient through the whole U-Net, as the paper's authors do.
    - `"external"`: `classifier` at the predicted clean latents, eps held constant (App. H).

    Only `sample` carries a gradient; `unet` should be frozen (see `sampling_mode`). Works under
    `torch.inference_mode`.

    Args:
        unet: the joint model.
        sample: z_t, shape `(batch, channels, height, width)`.
        timestep: t, a scalar.
        target: labels to push, one row per image.
        guidance_scale: s >= 0, a number or one per image, shape `(batch,)`.
        alpha_prod_t: abar_t, a scalar.
        prediction_type: of the scheduler.
        mode: see above.
        classifier: for `"external"`.

    Returns:
        Guided and unguided prediction and logits.

    Raises:
        ValueError: for an unknown mode, a missing `classifier`, and as `guide_model_output`.
    """
    _check_mode(mode, classifier)
    with torch.inference_mode(False), torch.enable_grad(), hold_saved_tensors():
        # Clones, because tensors made under an outer inference mode can never carry a gradient.
        z_t, t, alpha = sample.detach().clone(), timestep.clone(), alpha_prod_t.clone()
        target = target.clone()
        if mode == "zt":
            leaf = z_t.requires_grad_()
            output = unet(leaf, t, detach_decoder=True)
            model_output, logits = output.sample, output.logits
        elif mode == "x0":
            leaf = z_t.requires_grad_()
            model_output = unet(leaf, t, return_logits=False).sample
            z_0 = predict_original_sample(model_output, leaf, alpha, prediction_type)
            logits = unet(z_0, 0, return_sample=False).logits
        else:
            with torch.no_grad():
                model_output = unet(z_t, t, return_logits=False).sample
            leaf = predict_original_sample(model_output, z_t, alpha, prediction_type).requires_grad_()
            logits = unet(leaf, 0, return_sample=False).logits if classifier is None else classifier(leaf)
        is_held = target.hold > 0
        gradient = gradient_of(target.objective, logits, leaf, retain_graph=is_held)
        log_prob_grad = gradient_of(target.log_prob, logits, leaf) if is_held else None
        if mode in ("x0_detached", "external"):
            root = alpha.to(gradient.dtype).sqrt()  # d z_0 / d z_t = 1 / sqrt(abar_t)
            gradient = gradient / root
            log_prob_grad = None if log_prob_grad is None else log_prob_grad / root
    unguided = model_output.detach()
    guided = guide_model_output(unguided, gradient, alpha_prod_t, guidance_scale, prediction_type)
    return GuidedPrediction(guided, logits.detach(), unguided, log_prob_grad)


def gradient_of(
    objective: Callable[[torch.Tensor], torch.Tensor],
    logits: torch.Tensor,
    leaf: torch.Tensor,
    retain_graph: bool = False,
) -> torch.Tensor:
    """Gradient of a sum of objectives that half precision cannot round to 0.

    Where a target is almost certain its gradient is tiny. So the gradient with respect to the logits is taken in
    float32, brought to about 2^`_BACKWARD_EXPONENT` by a power of two for each image, passed backwards, and brought
    back: in float32 the same bit for bit.

    Args:
        objective: of logits in float32, shape `(batch,)`. They add up: images must not dilute one another.
        logits: shape `(batch, num_labels)`, with a graph to `leaf`.
        leaf: shape `(batch, channels, height, width)`.
        retain_graph: whether the graph will be used again.

    Returns:
        Shape of `leaf`, float32 or better.
    """
    scores = logits.detach().float().requires_grad_()
    (slope,) = torch.autograd.grad(objective(scores).sum(), scores)
    gradient, exponent = gradient_at_size(logits, slope, slope.abs().amax(dim=1), leaf, retain_graph)
    return torch.ldexp(gradient, exponent.view(-1, 1, 1, 1))


def gradient_at_size(
    outputs: torch.Tensor, slope: torch.Tensor, size: torch.Tensor, leaf: torch.Tensor, retain_graph: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pass a gradient backwards at a size that half precision holds, whatever its own.

    Args:
        outputs: with a graph to `leaf`, one row per image.
        slope: gradient with respect to them, shape of `outputs`, float32.
        size: what the gradient of each image is in proportion to, shape `(batch,)`, at least 0.
        leaf: shape `(batch, channels, height, width)`.
        retain_graph: whether the graph will be used again.

    Returns:
        The gradient of each image divided by a power of two, float32 or better, and that power, shape `(batch,)`.
    """
    exponent = torch.where(size > 0, torch.frexp(size).exponent - _BACKWARD_EXPONENT, 0).clamp_min(_SMALLEST_EXPONENT)
    by_row = exponent.view(-1, *[1] * (slope.ndim - 1))
    weighted = torch.ldexp(slope, -by_row).to(outputs)
    (gradient,) = torch.autograd.grad(outputs, leaf, weighted, retain_graph=retain_graph)
    return gradient.to(torch.promote_types(gradient.dtype, torch.float32)), exponent


@torch.no_grad()
def hold_at(
    target: GuidanceTarget,
    unet: JointUNet2DModel,
    sample: torch.Tensor,
    timestep: torch.Tensor,
    model_output: torch.Tensor,
    alpha_prod_t: torch.Tensor,
    prediction_type: str = "epsilon",
    mode: str = "zt",
    classifier: LatentClassifier | None = None,
) -> GuidanceTarget:
    """Hold the labels that are not targeted where these latents, the null edit's, have them.

    Args:
        target: labels to push, one row per image.
        unet: the joint model.
        sample: the null edit's z_t, one per row of `target`.
        timestep: t, a scalar.
        model_output: the model's prediction for them.
        alpha_prod_t: abar_t, a scalar.
        prediction_type: of the scheduler.
        mode: where the classifier is asked, as in `predict_guided`.
        classifier: for `"external"`.

    Returns:
        The target with `reference_logits`.
    """
    _check_mode(mode, classifier)
    if mode == "zt":
        return replace(target, reference_logits=unet(sample, timestep, return_sample=False).logits.float())
    z_0 = predict_original_sample(model_output, sample, alpha_prod_t, prediction_type)
    logits = unet(z_0, 0, return_sample=False).logits if classifier is None else classifier(z_0)
    return replace(target, reference_logits=logits.float())


def _check_mode(mode: str, classifier: LatentClassifier | None) -> None:
    if mode not in GUIDANCE_MODES:
        raise ValueError(f"`guidance_mode` must be one of {GUIDANCE_MODES}, but got {mode!r}.")
    if (mode == "external") != (classifier is not None):
        raise ValueError(
            "`classifier` and `guidance_mode='external'` belong together: pass an image classifier with this mode, "
            f"and none with the others, but the mode is {mode!r} and the classifier "
            f"{'is missing' if classifier is None else type(classifier).__name__}."
        )
