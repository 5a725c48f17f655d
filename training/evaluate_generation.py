"""`python training/evaluate_generation.py` is `mediffusion evaluate generation`; see its `--help`."""

from mediffusion_diffusers.commands.mediffusion import main


if __name__ == "__main__":
    main("evaluate", "generation")
