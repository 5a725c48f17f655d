"""Ours: a U-Net that first learns to denoise all images, then the few labels, then its own answers of all images.

The labels begin as a linear probe of what denoising taught (LP-FT), and the whole network follows at a lower rate.
"""

from __future__ import annotations

from mediffusion_diffusers.training.joint.config import JointConfig

from .setting import Setting
from .task import BenchmarkTask, Outcome, PublishedTask, outcome_of


# Named by the checkpoint then, not by options.
_SHAPE = ("block_out_channels", "layers_per_block", "down_block_types", "attention_head_dim", "norm_num_groups")

JOINT_WEIGHT = 0.3  # of the diffusion loss beside the class loss, relative to its weight alone


def from_pretrained(config: JointConfig, setting: Setting) -> JointConfig:
    """Start from the U-Net that can denoise, and from a linear probe of its features."""
    shape = dict.fromkeys(_SHAPE)
    path = str(setting.pretrained)
    return config.with_options(unet_path=path, unet_subfolder="unet", linear_probe_first=True, **shape)


def diffusion_first(setting: Setting) -> Outcome:
    """Diffusion on all images, then the class loss alone, from a linear probe on."""
    return outcome_of(from_pretrained(setting.class_stage("diffusion_first"), setting), BenchmarkTask)


def consolidated(setting: Setting) -> Outcome:
    """The whole recipe: `diffusion_first`, then its own soft answers on all images, with the diffusion loss on."""
    return outcome_of(from_pretrained(setting.pool_stage("consolidated", "diffusion_first"), setting), PublishedTask)


def joint(setting: Setting) -> Outcome:
    """Diffusion on all images, then both losses together, as the paper has it."""
    return outcome_of(_with_both_losses(setting.class_stage("joint"), setting), BenchmarkTask)


def joint_consolidated(setting: Setting) -> Outcome:
    """Then its own soft answers: the diffusion loss is never off."""
    config = _with_both_losses(setting.pool_stage("joint_consolidated", "joint"), setting)
    return outcome_of(config, PublishedTask)


def _with_both_losses(config: JointConfig, setting: Setting) -> JointConfig:
    weight = JOINT_WEIGHT * config.diffusion.diffusion_loss_weight
    return from_pretrained(config.with_options(joint_diffusion_loss_weight=weight), setting)
