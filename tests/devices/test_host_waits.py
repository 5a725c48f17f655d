"""How often the host waits for the device: each wait leaves an accelerator without work."""

from collections import Counter

import pytest
import torch
from support.components import generators, random_pil, tiny_pipeline

from mediffusion_diffusers import MediffusionCounterfactualPipeline, MediffusionGuidedPipeline


SETTINGS = {
    "inversion": {},
    "follow": {"follow_inversion": True},
    "noise": {"start": "noise"},
    "x0_detached": {"guidance_mode": "x0_detached"},
    "x0": {"guidance_mode": "x0"},
    "one scale each": {"guidance_scale": [5.0, 6.0]},
    "hold": {"hold": 0.02},
    "fade": {"fade_guidance": True},
    "region": {"mask": torch.eye(16)},
    "noised paths": {"start": "noised_paths", "num_noises": 2},
    "noised paths, one scale each": {"start": "noised_paths", "guidance_scale": [0.0, 6.0], "mask": torch.eye(16)},
    "noised paths, hold": {"start": "noised_paths", "hold": 0.02, "guidance_mode": "x0_detached"},
}


def explain(num_steps, **settings):
    pipe = tiny_pipeline(MediffusionCounterfactualPipeline).to("pretend")
    arguments = {"away": "Mass", "guidance_scale": 5.0, "strength": 0.2, "controls": False, "output_type": "pt"}
    pipe(random_pil(2), **{**arguments, **settings}, num_inference_steps=num_steps, generator=generators(0, 1))


def generate(num_steps, guidance_scale):
    pipe = tiny_pipeline(MediffusionGuidedPipeline).to("pretend")
    arguments = {"guidance_scale": guidance_scale, "num_images": 2, "output_type": "pt"}
    pipe(towards="Mass", num_inference_steps=num_steps, **arguments)


def waits_per_step(pretend, call, **settings):
    """What a further step costs: the difference of two calls, by kind and place."""
    counts = []
    for num_steps in (2, 3):
        pretend.waits.clear()
        call(num_steps, **settings)
        counts.append(Counter(f"{wait.kind} in {wait.place}" for wait in pretend.waits))
    few, many = counts
    return {place: many[place] - few[place] for place in many if many[place] != few[place]}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_a_guided_step_waits_for_nothing(pretend, settings):
    assert waits_per_step(pretend, explain, **settings) == {}


@pytest.mark.parametrize("guidance_scale", [0.0, 5.0])
def test_a_step_of_generation_waits_for_nothing(pretend, guidance_scale):
    assert waits_per_step(pretend, generate, guidance_scale=guidance_scale) == {}
