#!/usr/bin/env python
"""Explain single images: a page with sliders to send to a colleague, panels and animations.

See `python training/explain_images.py --help`.
"""

from mediffusion_diffusers.commands.boundary import run_command
from mediffusion_diffusers.commands.explain_images import main


if __name__ == "__main__":
    run_command(main, "explain_images.py")
