"""`accelerate launch training/explain_dataset.py` is `mediffusion explain-dataset`; see its `--help`."""

from mediffusion_diffusers.commands.mediffusion import main


if __name__ == "__main__":
    main("explain-dataset")
