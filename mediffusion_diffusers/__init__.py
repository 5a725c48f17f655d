"""Mediffusion for diffusers: one diffusion model that classifies, generates and explains medical images.

Research use only: not a medical device, not for the care of any person.
"""

from .image_processor import MediffusionImageProcessor
from .models import JointUNet2DModel, JointUNet2DOutput, SpaceToDepthAutoencoder
from .pipelines import (
    MediffusionClassifyPipeline,
    MediffusionClassifyPipelineOutput,
    MediffusionCounterfactualPipeline,
    MediffusionCounterfactualPipelineOutput,
    MediffusionGuidedPipeline,
    MediffusionGuidedPipelineOutput,
)
from .registration import register_with_diffusers
from .schedulers import MultistepDDIMScheduler
from .version import __version__


register_with_diffusers()

__all__ = [
    "JointUNet2DModel",
    "JointUNet2DOutput",
    "MediffusionClassifyPipeline",
    "MediffusionClassifyPipelineOutput",
    "MediffusionCounterfactualPipeline",
    "MediffusionCounterfactualPipelineOutput",
    "MediffusionGuidedPipeline",
    "MediffusionGuidedPipelineOutput",
    "MediffusionImageProcessor",
    "MultistepDDIMScheduler",
    "SpaceToDepthAutoencoder",
    "__version__",
]
