#!/usr/bin/env python
"""Evaluate a pipeline's classifier on a held-out split: `classification.json`, with intervals and provenance.

See `python training/evaluate_classification.py --help`.
"""

from mediffusion_diffusers.commands.boundary import run_command
from mediffusion_diffusers.commands.evaluate_classification import main


if __name__ == "__main__":
    run_command(main, "evaluate_classification.py")
