"""Mediffusion for diffusers: one diffusion model that classifies, generates and explains medical images.

Research use only: not a medical device, not for the care of any person.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .registration import register_with_diffusers
from .version import __version__


if TYPE_CHECKING:
    from .image_classification import MediffusionImageClassificationPipeline
    from .image_features import MediffusionModel
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
    from .schedulers import MultistepDDIMScheduler

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
    "MediffusionImageClassificationPipeline",
    "MediffusionImageProcessor",
    "MediffusionModel",
    "MultistepDDIMScheduler",
    "SpaceToDepthAutoencoder",
    "__version__",
]

# Modules that are loaded when one of their names is asked for: torch takes seconds, `mediffusion --help` must not.
_HOMES = ("image_processor", "models", "schedulers", "pipelines", "image_classification", "image_features")


def __getattr__(name: str) -> Any:
    """A public name from its module (PEP 562), kept for the next time."""
    if name in __all__:
        for home in _HOMES:
            module = import_module(f".{home}", __name__)
            if hasattr(module, name):
                globals()[name] = getattr(module, name)
                return globals()[name]
    if name in _HOMES:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
