"""`python training/explain_images.py` is `mediffusion explain`; see its `--help`."""

from mediffusion_diffusers.commands.mediffusion import main


if __name__ == "__main__":
    main("explain")
