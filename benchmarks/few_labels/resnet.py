"""A small ResNet: supervised, and self-distilled on the pool."""

from __future__ import annotations

from .pixel_network import PixelTask, on_pixels
from .setting import Setting
from .task import Outcome, outcome_of


def resnet(setting: Setting) -> Outcome:
    """Labels alone."""
    return outcome_of(on_pixels(setting.class_stage("resnet")), PixelTask)


def resnet_distilled(setting: Setting) -> Outcome:
    """Then its own soft answers of the whole pool, clean: noise harmed it."""
    config = setting.pool_stage("resnet_distilled", "resnet", consolidation_noise_prob=0.0)
    return outcome_of(on_pixels(config), PixelTask)
