"""A change that stops where it suffices."""

import pytest
import torch
from support.components import generators, random_pil, tiny_pipeline

from mediffusion_diffusers import MediffusionCounterfactualPipeline


PATHS = {"start": "noised_paths", "strength": 0.4, "num_inference_steps": 4, "num_noises": 2, "guidance_scale": 40.0}
ARGUMENTS = {**PATHS, "output_type": "latent", "controls": False}


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline(MediffusionCounterfactualPipeline)


def explain(pipe, **arguments):
    return pipe(random_pil(2), generator=generators(0, 1), **{**ARGUMENTS, **arguments})


@pytest.mark.parametrize("start", [{}, {"start": "inversion", "num_noises": None}])
def test_the_least_share_of_the_change_that_suffices(pipe, start):
    whole = explain(pipe, away="Mass", **start)
    before, after = whole.probabilities_before[:, 2], whole.probabilities_after[:, 2]
    goal = float((before + after)[0] / 2)
    short = explain(pipe, away="Mass", stop_probability={"away": goal}, **start)
    share = short.null_difference / whole.null_difference
    sixteenths = share[0].median() * 16
    torch.testing.assert_close(sixteenths, sixteenths.round(), rtol=0.0, atol=1e-3)
    assert 0 < sixteenths < 16 and short.probabilities_after[0, 2] <= goal
    less = whole.null_images[:1] + (sixteenths - 1) / 16 * whole.null_difference[:1]
    assert pipe.logits_to_probabilities(pipe.classify_latents(less))[0, 2] > goal


def test_what_does_not_suffice_stays_whole_bit_for_bit(pipe):
    whole = explain(pipe, away="Mass")
    for stop in ({"away": 1e-6}, {"towards": 0.5}, 1e-6):
        assert torch.equal(explain(pipe, away="Mass", stop_probability=stop).images, whole.images)


def test_one_number_is_a_margin_for_both_directions(pipe):
    arguments = {"towards": [["Mass"], []], "away": [[], ["Effusion"]]}
    one, other, each = (
        explain(pipe, stop_probability=stop, **arguments) for stop in (0.4, 0.6, {"towards": 0.6, "away": 0.4})
    )
    assert torch.equal(one.images, other.images) and torch.equal(one.images, each.images)


class TestSettings:
    def test_a_checkpoints_gives_way_to_a_scale_and_to_a_search(self):
        stored = {"guidance_scale": 20.0, "stop_probability": {"away": 0.2}}
        pipe = tiny_pipeline(MediffusionCounterfactualPipeline, guidance_defaults=stored)
        assert pipe.resolve_settings().stop_probability == {"away": 0.2}
        assert pipe.resolve_settings(guidance_scale=30.0).stop_probability is None
        assert pipe.resolve_settings(target_probability=0.1).stop_probability is None
        assert pipe.resolve_settings(guidance_scale=30.0, stop_probability=0.3).stop_probability == 0.3

    @pytest.mark.parametrize(
        "wrong, message",
        [
            ({"stop_probability": 1.0}, "`stop_probability`"),
            ({"stop_probability": {"up": 0.5}}, "`stop_probability` as a dict must hold a number for 'towards'"),
            ({"stop_probability": 0.2, "target_probability": 0.2}, "give one of them"),
        ],
    )
    def test_mistakes(self, pipe, wrong, message):
        with pytest.raises(ValueError, match=message):
            pipe.resolve_settings(**wrong)
