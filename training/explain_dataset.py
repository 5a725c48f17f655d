#!/usr/bin/env python
"""Explain every image of a dataset of parquet files, in a folder or on the Hub, with any number of processes.

See `python training/explain_dataset.py --help`.
"""

from mediffusion_diffusers.commands.boundary import run_command
from mediffusion_diffusers.commands.explain_dataset import main


if __name__ == "__main__":
    run_command(main, "explain_dataset.py")
