#!/usr/bin/env python
"""Train the outside classifier that judges counterfactuals.

    python training/train_oracle.py --dataset_dir runs/oracle-phantoms --output_dir runs/oracle

See `python training/train_oracle.py --help`. Give it other patients than the model that it will judge. To resume, run
the same command with `--resume_from_checkpoint latest`.
"""

from __future__ import annotations

import json

from mediffusion_diffusers.commands.boundary import run_command
from mediffusion_diffusers.training.oracle.config import OracleConfig
from mediffusion_diffusers.training.oracle.task import train_oracle


def main() -> None:
    """Parse the command line, train, and print the figures."""
    print(json.dumps(train_oracle(OracleConfig.parse(None, {}, description=OracleConfig.__doc__)), indent=2))


if __name__ == "__main__":
    run_command(main, "train_oracle.py")
