"""`python training/calibrate_guidance.py` is `mediffusion calibrate`; see its `--help`."""

from mediffusion_diffusers.commands.mediffusion import main


if __name__ == "__main__":
    main("calibrate")
