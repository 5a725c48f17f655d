"""Mediffusion for diffusers."""
from .version import __version__
