"""`accelerate launch training/train_joint.py` is `mediffusion train joint`; see its `--help`."""

from mediffusion_diffusers.commands.mediffusion import main


if __name__ == "__main__":
    main("train", "joint")
