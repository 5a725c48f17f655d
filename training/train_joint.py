#!/usr/bin/env python
"""Train one U-Net to denoise and to classify.

    accelerate launch training/train_joint.py --preset phantom-demo --dataset_dir runs/phantom \
        --labelled_split runs/phantom/labelled-10.json --output_dir runs/joint

See `python training/train_joint.py --help`. To resume, run the same command with `--resume_from_checkpoint latest`.
"""

from __future__ import annotations

from mediffusion_diffusers.commands.boundary import run_command
from mediffusion_diffusers.training.joint.config import JointConfig
from mediffusion_diffusers.training.joint.task import train_joint
from mediffusion_diffusers.training.presets import JOINT_PRESETS


def main() -> None:
    """Parse the command line and train."""
    train_joint(JointConfig.parse(None, JOINT_PRESETS, description="L = L_diff + w * L_class (paper Sec. 3.3)."))


if __name__ == "__main__":
    run_command(main, "train_joint.py")
