#!/usr/bin/env python
"""The whole road in minutes: phantoms, oracle, joint training, classification, counterfactuals, a report.

See `python training/run_demo.py --help`.
"""

from functools import partial
from pathlib import Path

from mediffusion_diffusers.commands.boundary import run_command
from mediffusion_diffusers.commands.run_demo import main


if __name__ == "__main__":
    run_command(partial(main, Path(__file__).parent), "run_demo.py")
