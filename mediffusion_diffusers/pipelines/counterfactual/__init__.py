"""Counterfactual images: the pipeline, and the settings that everything about its options follows from."""

from .pipeline import MediffusionCounterfactualPipeline
from .settings import CounterfactualSettings


__all__ = [
    "CounterfactualSettings",
    "MediffusionCounterfactualPipeline",
]
