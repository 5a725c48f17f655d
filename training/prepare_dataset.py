"""`python training/prepare_dataset.py` is `mediffusion prepare`; see its `--help`."""

from mediffusion_diffusers.commands.mediffusion import main


if __name__ == "__main__":
    main("prepare")
