"""Eq. 2 and its companions as pure functions of tensors, for every `prediction_type`."""

from __future__ import annotations

from typing import Any

import torch


def guide_model_output(
    model_output: torch.Tensor,
    log_prob_grad: torch.Tensor,
    alpha_prod_t: torch.Tensor,
    guidance_scale: float | torch.Tensor,
    prediction_type: str = "epsilon",
) -> torch.Tensor:
    r"""Shift a prediction towards a target: Eq. 2 with a scale s, for every `prediction_type`.

    eps'(z_t) = eps(z_t) - s * sqrt(1 - abar_t) * grad_{z_t} log g(y | z_t)

    `z_t = sqrt(abar_t) z_0 + sqrt(1 - abar_t) eps` carries the shift of eps over to the predicted `z_0`
    (`"sample"`) and to `v = sqrt(abar_t) eps - sqrt(1 - abar_t) z_0`.

    Args:
        model_output: prediction of the U-Net, shape `(batch, channels, height, width)`.
        log_prob_grad: gradient of the *summed* log-probability with respect to z_t, same shape; in float32 where the
            prediction has half precision.
        alpha_prod_t: abar_t in [0, 1], a scalar. At 0 (zero terminal SNR) z_t holds nothing of an image, and the
            prediction of `z_0` or v stays unguided.
        guidance_scale: s >= 0, no unit, a number or one per image; 0 is unguided (unlike classifier-free guidance,
            where 1 is).
        prediction_type: `"epsilon"`, `"sample"` or `"v_prediction"`.

    Returns:
        Guided prediction, same shape and dtype.

    Raises:
        ValueError: if the shapes differ, the scale is negative or the prediction type unknown.
    """
    if model_output.shape != log_prob_grad.shape:
        raise ValueError(
            f"`log_prob_grad` must have the shape of `model_output`, {tuple(model_output.shape)}, but got "
            f"{tuple(log_prob_grad.shape)}."
        )
    is_tensor = isinstance(guidance_scale, torch.Tensor)
    scale: Any = guidance_scale if is_tensor else torch.tensor(guidance_scale, dtype=torch.float64)
    if not (scale >= 0).all():
        raise ValueError(
            f"`guidance_scale` must be at least 0, but got {guidance_scale}. To lower a label's probability name it "
            "in `away`."
        )
    is_pure_noise = bool(alpha_prod_t == 0)
    scale = scale.to(log_prob_grad, non_blocking=True)
    shift = -scale.reshape(-1, 1, 1, 1) * (1 - alpha_prod_t).sqrt() * log_prob_grad
    if prediction_type == "epsilon":
        return (model_output + shift).to(model_output.dtype)
    if is_pure_noise:
        return model_output.clone()
    if prediction_type == "v_prediction":
        return (model_output + shift / alpha_prod_t.sqrt()).to(model_output.dtype)
    if prediction_type == "sample":
        return (model_output - shift * ((1 - alpha_prod_t) / alpha_prod_t).sqrt()).to(model_output.dtype)
    raise ValueError(f"`prediction_type` must be 'epsilon', 'sample' or 'v_prediction', but got {prediction_type!r}.")


def predict_original_sample(
    model_output: torch.Tensor, sample: torch.Tensor, alpha_prod_t: torch.Tensor, prediction_type: str = "epsilon"
) -> torch.Tensor:
    """The clean latents z_0 that a prediction implies (Eq. 12 of DDIM, "predicted x_0"); same shape."""
    if prediction_type == "epsilon":
        return (sample - (1 - alpha_prod_t).sqrt() * model_output) / alpha_prod_t.sqrt()
    if prediction_type == "v_prediction":
        return alpha_prod_t.sqrt() * sample - (1 - alpha_prod_t).sqrt() * model_output
    return model_output


def predict_epsilon(
    model_output: torch.Tensor, sample: torch.Tensor, alpha_prod_t: torch.Tensor, prediction_type: str = "epsilon"
) -> torch.Tensor:
    """The noise eps that a prediction implies: `(z_t - sqrt(abar_t) z_0) / sqrt(1 - abar_t)`; same shape."""
    if prediction_type == "epsilon":
        return model_output
    z_0 = predict_original_sample(model_output, sample, alpha_prod_t, prediction_type)
    return (sample - alpha_prod_t.sqrt() * z_0) / (1 - alpha_prod_t).sqrt()
