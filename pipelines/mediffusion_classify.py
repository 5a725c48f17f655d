"""Classify images; a community pipeline (`custom_pipeline=`) for diffusers.

Needs `mediffusion_diffusers`, whose class this file hands to the loader. Research use only.
"""

from mediffusion_diffusers import MediffusionClassifyPipeline


__all__ = ["MediffusionClassifyPipeline"]
