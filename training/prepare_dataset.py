#!/usr/bin/env python
"""Convert the files of a dataset to the parquet folder that training reads, or draw its labelled share.

See `python training/prepare_dataset.py --help`.
"""

from mediffusion_diffusers.commands.boundary import run_command
from mediffusion_diffusers.commands.prepare_dataset import main


if __name__ == "__main__":
    run_command(main, "prepare_dataset.py")
