#!/usr/bin/env python
"""Train the autoencoder whose latents the joint U-Net works on.

    accelerate launch training/train_autoencoder.py --dataset_dir runs/cxr --resolution 64 \
        --block_out_channels 32 64 --norm_num_groups 8 --max_train_steps 2000 --output_dir runs/autoencoder

See `python training/train_autoencoder.py --help`. To resume, run the same command with
`--resume_from_checkpoint latest`.
"""

from __future__ import annotations

from mediffusion_diffusers.commands.boundary import run_command
from mediffusion_diffusers.training.autoencoder.config import AutoencoderConfig
from mediffusion_diffusers.training.autoencoder.task import train_autoencoder
from mediffusion_diffusers.training.presets import AUTOENCODER_PRESETS


def main() -> None:
    """Parse the command line and train."""
    train_autoencoder(AutoencoderConfig.parse(None, AUTOENCODER_PRESETS, description="Paper App. C."))


if __name__ == "__main__":
    run_command(main, "train_autoencoder.py")
