"""Counterfactual images: the pipeline, and the settings that everything about its options follows from."""

from .pipeline import MediffusionCounterfactualPipeline
from .settings import CounterfactualSettings, describe_options, given_options, stored_options


__all__ = [
    "CounterfactualSettings",
    "MediffusionCounterfactualPipeline",
    "describe_options",
    "given_options",
    "stored_options",
]
