#!/usr/bin/env python
"""Train one U-Net to denoise and to classify.

    accelerate launch training/train_joint.py --preset phantom-demo --dataset_dir runs/phantom \
        --labelled_split runs/phantom/labelled-10.json --output_dir runs/joint

See `python training/train_joint.py --help`. To resume, run the same command with `--resume_from_checkpoint latest`.
"""

from __future__ import annotations

import sys

from mediffusion_diffusers.training.arguments import parse_arguments
from mediffusion_diffusers.training.joint.arguments import joint_parser
from mediffusion_diffusers.training.joint.trainer import train_joint
from mediffusion_diffusers.training.presets import JOINT_PRESETS


def main() -> None:
    """Parse the command line and train."""
    try:
        train_joint(parse_arguments(joint_parser, JOINT_PRESETS))
    except (OSError, ValueError) as error:
        sys.exit(f"train_joint.py: {error}")


if __name__ == "__main__":
    main()
