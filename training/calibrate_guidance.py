#!/usr/bin/env python
"""Choose a checkpoint's strength, region and guidance scales on the validation split, and store them in its config.

See `python training/calibrate_guidance.py --help`.
"""

from mediffusion_diffusers.commands.boundary import run_command
from mediffusion_diffusers.commands.calibrate_guidance import main


if __name__ == "__main__":
    run_command(main, "calibrate_guidance.py")
