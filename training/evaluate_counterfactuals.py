"""`python training/evaluate_counterfactuals.py` is `mediffusion evaluate counterfactuals`; see its `--help`."""

from mediffusion_diffusers.commands.mediffusion import main


if __name__ == "__main__":
    main("evaluate", "counterfactuals")
