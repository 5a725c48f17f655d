"""The same U-Net's encoder without diffusion, as in Table 3 of the paper; alone, and self-distilled on the pool."""

from __future__ import annotations

from .setting import Setting
from .task import Outcome, outcome_of


_WITHOUT_DIFFUSION = {"diffusion_loss_weight": 0.0, "joint_diffusion_loss_weight": None}


def same_encoder(setting: Setting) -> Outcome:
    """Labels alone."""
    return outcome_of(setting.class_stage("same_encoder", **_WITHOUT_DIFFUSION))


def same_encoder_distilled(setting: Setting) -> Outcome:
    """Then its own soft answers of the whole pool, clean."""
    options = {**_WITHOUT_DIFFUSION, "consolidation_noise_prob": 0.0}
    return outcome_of(setting.pool_stage("same_encoder_distilled", "same_encoder", **options))
