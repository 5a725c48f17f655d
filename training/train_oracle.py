#!/usr/bin/env python
"""Train the outside classifier that judges counterfactuals.

    python training/train_oracle.py --dataset_dir runs/oracle-phantoms --output_dir runs/oracle

See `python training/train_oracle.py --help`. Give it other patients than the model that it will judge.
"""

from __future__ import annotations

import json
import sys

from mediffusion_diffusers.training.oracle.trainer import oracle_parser, train_oracle


def main() -> None:
    """Parse the command line, train, and print the figures."""
    try:
        print(json.dumps(train_oracle(oracle_parser().parse_args()), indent=2))
    except (OSError, ValueError) as error:
        sys.exit(f"train_oracle.py: {error}")


if __name__ == "__main__":
    main()
