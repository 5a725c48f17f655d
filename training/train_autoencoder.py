#!/usr/bin/env python
"""Train the autoencoder whose latents the joint U-Net works on.

    accelerate launch training/train_autoencoder.py --dataset_dir runs/cxr --resolution 64 \
        --block_out_channels 32 64 --norm_num_groups 8 --max_train_steps 2000 --output_dir runs/autoencoder

See `python training/train_autoencoder.py --help`. To resume, run the same command with
`--resume_from_checkpoint latest`.
"""

from __future__ import annotations

import sys

from mediffusion_diffusers.training.arguments import parse_arguments
from mediffusion_diffusers.training.autoencoder.arguments import autoencoder_parser
from mediffusion_diffusers.training.autoencoder.trainer import train_autoencoder
from mediffusion_diffusers.training.presets import AUTOENCODER_PRESETS


def main() -> None:
    """Parse the command line and train."""
    try:
        train_autoencoder(parse_arguments(autoencoder_parser, AUTOENCODER_PRESETS))
    except (OSError, ValueError) as error:
        sys.exit(f"train_autoencoder.py: {error}")


if __name__ == "__main__":
    main()
