"""The three pipelines: classify, generate, explain."""

from .classify import MediffusionClassifyPipeline
from .counterfactual import MediffusionCounterfactualPipeline
from .guided import MediffusionGuidedPipeline
from .outputs import (
    MediffusionClassifyPipelineOutput,
    MediffusionCounterfactualPipelineOutput,
    MediffusionGuidedPipelineOutput,
)


__all__ = [
    "MediffusionClassifyPipeline",
    "MediffusionClassifyPipelineOutput",
    "MediffusionCounterfactualPipeline",
    "MediffusionCounterfactualPipelineOutput",
    "MediffusionGuidedPipeline",
    "MediffusionGuidedPipelineOutput",
]
