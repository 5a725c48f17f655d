"""Where an edit may happen."""

import numpy as np
import pytest
import torch
from support.components import generators, random_pil, tiny_pipeline
from support.edits import FAST, close

from mediffusion_diffusers import MediffusionCounterfactualPipeline
from mediffusion_diffusers.guidance import attribute_change, build_target
from mediffusion_diffusers.regions import region_of_change, region_of_evidence


def test_ones_are_no_mask(pipe, arguments):
    without, ones = (
        pipe(random_pil(2), away="Mass", mask=mask, generator=generators(0, 1), **arguments)
        for mask in (None, np.ones((16, 16)))
    )
    assert torch.equal(without.images, ones.images)


def test_zeros_are_the_null_edit(pipe, arguments):
    zeros = pipe(random_pil(2), away="Mass", mask=np.zeros((16, 16)), generator=generators(0, 1), **arguments)
    assert torch.equal(zeros.images, zeros.null_images)


def test_outside_is_the_null_edit_bit_for_bit(pipe, arguments):
    boxes = [{"x": 0.0, "y": 0.25, "width": 0.5, "height": 0.5}]
    output = pipe(random_pil(2), away="Mass", mask=boxes, generator=generators(0, 1), **arguments)
    inside = torch.from_numpy(output.region)[0, 0].bool()
    assert 0 < inside.sum() < inside.numel()
    assert torch.equal(output.images[..., ~inside], output.null_images[..., ~inside])
    assert not torch.equal(output.images[..., inside], output.null_images[..., inside])


@pytest.mark.parametrize("direction", ["away", "towards"])
def test_found_by_the_model(pipe, arguments, direction):
    asked = {direction: "Mass"}
    output = pipe(random_pil(2), **asked, mask="auto", generator=generators(0, 1), **arguments)
    inside = torch.from_numpy(output.region).bool().expand_as(output.images)
    assert 0.05 < inside.float().mean() < 0.95
    assert torch.equal(output.images[~inside], output.null_images[~inside])
    everywhere = pipe(random_pil(2), **asked, generator=generators(0, 1), **arguments)
    region = region_of_change(everywhere.null_difference)
    if arguments.get("start") == "noised_paths":
        target = build_target(
            asked.get("towards"), asked.get("away"), 2, pipe.label_names, pipe.unet.config.problem_type
        )
        change = (everywhere.null_images, everywhere.null_difference)
        evidence = attribute_change(pipe.classify_latents, *change, target)
        # A finding is taken away wherever it is, and added in one place.
        region = region_of_evidence(evidence, in_one_place=torch.full((2,), direction == "towards"))
    assert torch.equal(torch.from_numpy(output.region), region)
    assert output.settings["mask"] == "auto" and everywhere.settings["mask"] == "everywhere"


def test_an_unknown_word(pipe):
    with pytest.raises(ValueError, match=r"`mask` must be one of 'auto', 'everywhere', but got 'lungs'"):
        pipe(random_pil(1), away="Mass", mask="lungs", **FAST)


def test_the_checkpoint_may_ask_for_it(arguments):
    by_default = tiny_pipeline(MediffusionCounterfactualPipeline, guidance_defaults={"mask": "auto"})
    plain = tiny_pipeline(MediffusionCounterfactualPipeline)
    for given, same in ((None, "auto"), ("everywhere", None), (np.ones((16, 16)), "everywhere")):
        first = by_default(random_pil(1), away="Mass", mask=given, generator=generators(0), **arguments)
        second = plain(random_pil(1), away="Mass", mask=same, generator=generators(0), **arguments)
        assert torch.equal(first.images, second.images)


def test_one_mask_per_counterfactual(pipe, arguments):
    left, right = np.zeros((16, 16)), np.zeros((16, 16))
    left[:, :8], right[:, 8:] = 1, 1
    both = pipe(random_pil(1), away=[["Mass"]] * 2, mask=[left, right], generator=generators(0), **arguments)
    for row, mask in enumerate((left, right)):
        alone = pipe(random_pil(1), away="Mass", mask=mask, generator=generators(0), **arguments)
        close(both.images[row], alone.images[0])
