"""Weights of the timesteps in the diffusion loss."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.training_utils import compute_snr


def snr_weights(
    noise_scheduler: Any, timesteps: torch.Tensor, snr_gamma: float, snr_weighting: str = "min"
) -> torch.Tensor:
    """Weights that bound how much a little noise counts; every prediction type gets the same on the clean image.

    With snr = abar_t / (1 - abar_t), an error of the clean image weighs

    - `"min"`: min(snr, gamma), Min-SNR (Hang et al., 2023, Sec. 3.4);
    - `"soft_min"`: snr * gamma / (snr + gamma), which has no kink (Crowson et al., 2024, Sec. 4.4). With gamma = 1 it
      is abar_t.

    The same is divided by snr for an error of the noise and by snr + 1 for one of the velocity.

    Args:
        noise_scheduler: diffusers scheduler, which also names the prediction type.
        timesteps: shape `(batch,)`.
        snr_gamma: gamma > 0; Hang et al. use 5.
        snr_weighting: `"min"` or `"soft_min"`.

    Returns:
        Shape `(batch,)`, float32.

    Raises:
        ValueError: for an unknown prediction type or weighting.
    """
    snr = compute_snr(noise_scheduler, timesteps)
    if snr_weighting == "min":
        weights = snr.clamp(max=snr_gamma)
    elif snr_weighting == "soft_min":
        weights = snr * snr_gamma / (snr + snr_gamma)
    else:
        raise ValueError(f"`snr_weighting` must be 'min' or 'soft_min', but got {snr_weighting!r}.")
    prediction_type = noise_scheduler.config.prediction_type
    if prediction_type == "sample":
        return weights
    if prediction_type == "epsilon":
        return weights / snr
    if prediction_type == "v_prediction":
        return weights / (snr + 1)
    raise ValueError(
        f"`prediction_type` must be 'epsilon', 'sample' or 'v_prediction', but the scheduler has {prediction_type!r}."
    )
