"""`python training/train_oracle.py` is `mediffusion train oracle`; see its `--help`."""

from mediffusion_diffusers.commands.mediffusion import main


if __name__ == "__main__":
    main("train", "oracle")
