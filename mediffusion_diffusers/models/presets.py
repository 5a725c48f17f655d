"""The paper's network shapes, as configs of `JointUNet2DModel` and `AutoencoderKL` (App. B and C)."""

from __future__ import annotations

from typing import Any


# App. B: base width 256, multipliers 1, 2, 4, attention at every level; 257,733,124 U-Net parameters,
# 5,632 classifier features. The printed "attention at 4x4, 2x2, 1x1" are downsampling factors.
PAPER_UNET: dict[str, Any] = {
    "sample_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (256, 512, 1024),
    "layers_per_block": 2,
    "down_block_types": ("AttnDownBlock2D",) * 3,
    "up_block_types": ("AttnUpBlock2D",) * 3,
    "attention_head_dim": 32,
    "classifier_pool_size": 1,
    "classifier_hidden_size": 1024,
    "classifier_dropout": 0.3,
}

# App. C: 256x256 <-> 32x32x4, the shape of Stable Diffusion's autoencoder.
PAPER_AUTOENCODER: dict[str, Any] = {
    "sample_size": 256,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "latent_channels": 4,
    "norm_num_groups": 32,
}

# Noise schedule of the paper: 1,000 steps, linear in the square root.
PAPER_NOISE_SCHEDULE: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0015,
    "beta_end": 0.0195,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
}
