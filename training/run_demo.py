"""`python training/run_demo.py` is `mediffusion demo`; see its `--help`."""

from mediffusion_diffusers.commands.mediffusion import main


if __name__ == "__main__":
    main("demo")
