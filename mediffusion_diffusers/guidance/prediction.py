"""One guided evaluation of the model: Eq. 2 and 7, with the classifier asked in one of four places."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from ..models import JointUNet2DModel
from .formulas import guide_model_output, predict_original_sample
from .freezing import hold_saved_tensors
from .targets import GuidanceTarget


# The model's own classifier, in three places; and a classifier of pixels, through the decoder (App. H).
OWN_GUIDANCE_MODES = ("zt", "x0_detached", "x0")
GUIDANCE_MODES = (*OWN_GUIDANCE_MODES, "external")

# Clean latents to logits, differentiable: the decoder followed by a classifier of pixels.
LatentClassifier = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class GuidedPrediction:
    """One guided evaluation of the model, without a graph.

    Args:
        model_output: the guided prediction in the scheduler's `prediction_type`, shape of the latents.
        logits: class scores that the gradient was taken of, shape `(batch, num_labels)`.
        unguided: the prediction before it was shifted, shape of the latents.
    """

    model_output: torch.Tensor
    logits: torch.Tensor
    unguided: torch.Tensor


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
        # The sum, not the mean: images of a batch must not dilute one another.
        (gradient,) = torch.autograd.grad(target.objective(logits.float()).sum(), leaf)
        if mode in ("x0_detached", "external"):
            gradient = gradient / alpha.to(gradient).sqrt()
    unguided = model_output.detach()
    guided = guide_model_output(unguided, gradient, alpha_prod_t, guidance_scale, prediction_type)
    return GuidedPrediction(guided, logits.detach(), unguided)


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
