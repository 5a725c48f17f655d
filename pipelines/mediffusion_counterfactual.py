"""Explain a prediction by a counterfactual image; a community pipeline (`custom_pipeline=`) for diffusers.

Needs `mediffusion_diffusers`, whose class this file hands to the loader. Research use only.
"""

from mediffusion_diffusers import MediffusionCounterfactualPipeline


__all__ = ["MediffusionCounterfactualPipeline"]
