import pytest
from support.components import tiny_pipeline
from support.edits import FAST, STARTS

from mediffusion_diffusers import MediffusionCounterfactualPipeline


@pytest.fixture(scope="module")
def pipe():
    """A counterfactual pipeline; some test modules have another one of this name."""
    return tiny_pipeline(MediffusionCounterfactualPipeline)


@pytest.fixture(params=STARTS.values(), ids=STARTS)
def arguments(request):
    """Of a short call, from every kind of start."""
    return {**FAST, **request.param}
