"""`python training/evaluate_classification.py` is `mediffusion evaluate classification`; see its `--help`."""

from mediffusion_diffusers.commands.mediffusion import main


if __name__ == "__main__":
    main("evaluate", "classification")
