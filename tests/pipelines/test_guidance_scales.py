"""Guidance scales of any form: numbers of any library, and one per direction."""

import json

import numpy as np
import pytest
import torch
from support.components import generators, random_pil, tiny_pipeline
from support.edits import FAST, close

from mediffusion_diffusers import MediffusionCounterfactualPipeline


SCALES = {"away": 30.0, "towards": 10.0}


def test_each_counterfactual_gets_its_own(pipe, arguments):
    labels = {"away": [["Mass"], [], ["Mass"]], "towards": [[], ["Mass"], ["Effusion"]]}
    arguments = {**arguments, "guidance_scale": SCALES, "generator": generators(0)}
    together = pipe(random_pil(1), **labels, **arguments)
    assert together.guidance_scales.tolist() == [30.0, 10.0, 10.0]  # of two the smaller
    for row, scale in enumerate(together.guidance_scales.tolist()):
        assert together.settings_of(row) == {**together.settings, "guidance_scale": scale}
        wanted = {name: rows[row] or None for name, rows in labels.items()}
        arguments |= {**together.settings_of(row), "generator": generators(0)}
        close(together.images[row], pipe(random_pil(1), **wanted, **arguments).images[0])


def test_a_search_begins_there(pipe):
    tried = []

    def note(module, inputs):
        tried.append(pipe.guidance_scale)

    arguments = {**FAST, "target_probability": 1e-6, "guidance_scale": SCALES, "max_guidance_scale": 40.0}
    for labels in ({"away": "Mass"}, {"towards": "Mass"}):
        handle = pipe.unet.register_forward_pre_hook(note)
        try:
            pipe(random_pil(1), **labels, **arguments)
        finally:
            handle.remove()
    guided = [scale for scale in dict.fromkeys(tried) if scale]
    assert guided == [30.0, 40.0, 10.0, 20.0]  # 10 is doubled twice, up to the same 40
    with pytest.raises(ValueError, match=r"must be at least 30\.0, where the search begins"):
        pipe(random_pil(1), away="Mass", **{**arguments, "max_guidance_scale": 20.0})
    pipe(random_pil(1), away="Mass", **{**arguments, "guidance_scale": {"away": 30.0, "towards": 0.0}})


def test_numbers_of_any_library(pipe):
    for number in (np.float32(7), torch.tensor(7.0)):
        for scale in (number, {"away": number}):
            output = pipe(random_pil(1), away="Mass", **{**FAST, "guidance_scale": scale})
            assert output.guidance_scales.tolist() == [7.0] and "7.0" in json.dumps(output.settings)


def test_the_checkpoint_may_have_them(arguments):
    pipe = tiny_pipeline(MediffusionCounterfactualPipeline, guidance_defaults={"guidance_scale": SCALES})
    arguments = {name: value for name, value in arguments.items() if name != "guidance_scale"}
    output = pipe(random_pil(1), towards="Mass", generator=generators(0), **arguments)
    assert output.guidance_scales.tolist() == [10.0] and output.settings["guidance_scale"] == SCALES


@pytest.mark.parametrize(
    "scale, message",
    [
        ({}, "must hold a number for 'towards', for 'away' or for both"),
        ({"remove": 3.0}, r"but holds \['remove'\]"),
        ({"towards": 3.0}, "holds no scale for 'away'. Add it, or give one number"),
        ({"away": "3"}, "must be a number at least 0, but got '3'"),
        ({"away": -3.0}, "must be a number at least 0, but got -3.0"),
        ({10.0, 20.0}, "must be a number at least 0, but got {"),
    ],
)
def test_mistakes(pipe, scale, message):
    with pytest.raises(ValueError, match=message):
        pipe(random_pil(1), away="Mass", **{**FAST, "guidance_scale": scale})
