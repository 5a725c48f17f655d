"""Mediffusion for diffusers: one diffusion model that classifies, generates and explains medical images.

Research use only: not a medical device, not for the care of any person.
"""

from .models import JointUNet2DModel, JointUNet2DOutput, SpaceToDepthAutoencoder
from .registration import register_with_diffusers
from .version import __version__


register_with_diffusers()

__all__ = [
    "JointUNet2DModel",
    "JointUNet2DOutput",
    "SpaceToDepthAutoencoder",
    "__version__",
]
