import pytest
from support.components import random_pil, tiny_pipeline

from mediffusion_diffusers import MediffusionCounterfactualPipeline
from mediffusion_diffusers.app import Example
from mediffusion_diffusers.app.desk import Desk


@pytest.fixture(scope="session")
def pipe():
    """A tiny pipeline that remembers, in its checkpoint, settings that tell before from after."""
    defaults = {"strength": 0.2, "num_inference_steps": 4, "guidance_scale": {"towards": 20.0, "away": 30.0}}
    return tiny_pipeline(MediffusionCounterfactualPipeline, guidance_defaults=defaults)


@pytest.fixture(scope="session")
def desk(pipe):
    return Desk(pipe, [Example(f"Example {index}", image) for index, image in enumerate(random_pil(2))])


@pytest.fixture(scope="session")
def opened(desk):
    return desk.examples[0]
