#!/usr/bin/env python
"""Explain held-out images and measure the explanations: `counterfactuals.json`, panels and `report.html`.

See `python training/evaluate_counterfactuals.py --help`.
"""

from mediffusion_diffusers.commands.boundary import run_command
from mediffusion_diffusers.commands.evaluate_counterfactuals import main


if __name__ == "__main__":
    run_command(main, "evaluate_counterfactuals.py")
