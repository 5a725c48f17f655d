"""`python -m mediffusion_diffusers` is the command `mediffusion`."""

from .commands.mediffusion import main


if __name__ == "__main__":
    main()
