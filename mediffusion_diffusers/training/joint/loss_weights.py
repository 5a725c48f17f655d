"""Weights of the timesteps in the diffusion loss."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.training_utils import compute_snr


def min_snr_weights(noise_scheduler: Any, timesteps: torch.Tensor, snr_gamma: float) -> torch.Tensor:
    """Min-SNR weights (Hang et al., 2023, Sec. 3.4): every prediction type gets the same weight on the clean image.

    With snr = abar_t / (1 - abar_t): min(snr, gamma) on an error of the clean image; the same divided by snr for the
    noise and by snr + 1 for the velocity.

    Args:
        noise_scheduler: diffusers scheduler, which also names the prediction type.
        timesteps: shape `(batch,)`.
        snr_gamma: gamma > 0; the authors use 5.

    Returns:
        Shape `(batch,)`, float32.

    Raises:
        ValueError: for an unknown prediction type.
    """
    snr = compute_snr(noise_scheduler, timesteps)
    clipped = snr.clamp(max=snr_gamma)
    prediction_type = noise_scheduler.config.prediction_type
    if prediction_type == "sample":
        return clipped
    if prediction_type == "epsilon":
        return clipped / snr
    if prediction_type == "v_prediction":
        return clipped / (snr + 1)
    raise ValueError(
        f"`prediction_type` must be 'epsilon', 'sample' or 'v_prediction', but the scheduler has {prediction_type!r}."
    )
