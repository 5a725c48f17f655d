"""No denoising step waits for the device, however it is guided."""

import pytest
from support.components import generators, random_pil, tiny_pipeline

from mediffusion_diffusers import MediffusionCounterfactualPipeline, MediffusionGuidedPipeline


WAYS = {
    "zt": {},
    "x0": {"guidance_mode": "x0"},
    "x0_detached": {"guidance_mode": "x0_detached"},
    "follow": {"follow_inversion": True},
    "fade and hold": {"fade_guidance": True, "hold": 0.02},
    "noise": {"start": "noise"},
    "sweep": {"guidance_scale": [1.0, 5.0]},
}


def reads(pretend, call, num_steps):
    call(num_steps)  # whatever is prepared once
    before = len(pretend.reads)
    call(num_steps)
    return len(pretend.reads) - before


@pytest.mark.parametrize("arguments", WAYS.values(), ids=WAYS)
def test_a_counterfactual_step(pretend, arguments):
    pipe = tiny_pipeline(MediffusionCounterfactualPipeline).to("pretend")
    given = {"guidance_scale": 5.0, "strength": 0.2, "controls": False, "output_type": "pt", **arguments}

    def call(num_steps):
        pipe(random_pil(2), away="Mass", num_inference_steps=num_steps, generator=generators(0, 1), **given)

    assert reads(pretend, call, 6) == reads(pretend, call, 2)


@pytest.mark.parametrize("scale", [0.0, 5.0])
def test_a_step_of_generation(pretend, scale):
    pipe = tiny_pipeline(MediffusionGuidedPipeline).to("pretend")

    def call(num_steps):
        pipe("Mass", num_inference_steps=num_steps, guidance_scale=scale, generator=generators(0)[0], output_type="pt")

    assert reads(pretend, call, 6) == reads(pretend, call, 2)
