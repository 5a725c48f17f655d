"""Whether a flip holds, and what a procedure does there and back, over seeds and with a scrambled classifier."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from support.studies import prepare_world

from mediffusion_diffusers.evaluation.counterfactual_study import CounterfactualStudyRunner
from mediffusion_diffusers.evaluation.measure_options import MeasureOptions
from mediffusion_diffusers.evaluation.sanity_checks import (
    diversity,
    head_randomisation,
    reversibility,
    with_shuffled_head,
)
from mediffusion_diffusers.evaluation.study_controls import average_change, latent_regions, random_regions
from mediffusion_diffusers.evaluation.validity import Validity, change_rank


SETTINGS = {"num_inference_steps": 2, "guidance_scale": 20.0, "strength": 0.3}


@pytest.fixture(scope="module")
def runner(tmp_path_factory):
    world = prepare_world(tmp_path_factory.mktemp("validity"))
    return CounterfactualStudyRunner(world / "pipeline", world / "data", settings=SETTINGS, batch_size=4)


@pytest.fixture(scope="module")
def made(runner):
    return runner.explain(runner.select("remove", 2), "remove")


def test_pixels_are_inserted_most_changed_first():
    difference = np.zeros((1, 2, 2, 3))
    difference[0, 0] = [[0, 3, -1], [-6, 0, 2]]
    rank = change_rank(difference)
    assert rank.shape == (1, 1, 2, 3)
    np.testing.assert_allclose(rank[0, 0] * 6, [[4, 1, 3], [0, 5, 2]])


def test_cout_is_an_area_between_scores(runner, made, monkeypatch):
    """A classifier that looks at one pixel goes over when it is inserted: at once, or last of all."""
    originals = np.full((2, 1, 16, 16), 0.5, dtype=np.float32)
    images = originals + np.linspace(0.4, 0.1, 256, dtype=np.float32).reshape(1, 1, 16, 16)
    some = made.select(np.array([0, 1]))
    validity = Validity(runner.pipeline, originals)

    def watch(pixel):
        def score(pictures):
            scores = np.zeros((2, 5))
            scores[np.arange(2), some.targets] = pictures[:, 0].reshape(2, -1)[:, pixel] == 0.5
            return scores

        monkeypatch.setattr(validity, "probabilities", score)
        return validity.cout(type(some)(originals, images, originals, some.targets, "remove", some.own))

    first, last = watch(0), watch(255)
    np.testing.assert_allclose(first, 0.9)  # all but the first half step of ten
    np.testing.assert_allclose(last, -0.9)


def test_denoising_and_smoothing_do_not_depend_on_the_batch(runner, made):
    one, other = (Validity(runner.pipeline, made.originals, batch_size) for batch_size in (1, 64))
    np.testing.assert_allclose(one.denoised(made.images[:3]), other.denoised(made.images[:3]), atol=1e-5)
    smooth = [each.smoothed_probabilities(made.images[:3]) for each in (one, other)]
    np.testing.assert_allclose(*smooth, atol=1e-5)
    assert np.abs(one.denoised(made.images[:3]) - made.images[:3]).max() > 1e-3


def test_an_edit_of_nothing_flips_nothing(runner, made):
    nothing = replace(made, images=made.originals, own=replace(made.own, after=made.own.before))
    figures = Validity(runner.pipeline, made.originals).summarize(nothing)
    assert figures["denoised_flip_rate"] == figures["smoothed_flip_rate"] == 0


def test_deterministic_edits_have_no_diversity_and_the_way_back_is_an_edit(runner, made):
    some, seeds = made.select(np.array([0, 1])), [1, 2]
    assert diversity(runner, some, seeds) == {"distance": pytest.approx(0, abs=1e-5), "cosine": pytest.approx(1)}
    back = runner.edit(torch.from_numpy(some.images), some.targets, "add", seeds)
    expected = np.linalg.norm(back.images - some.originals) / np.linalg.norm(some.images - some.originals)
    assert reversibility(runner, some, seeds)["error"] == pytest.approx(expected, rel=1e-5)


def test_a_shuffled_head_is_another_of_the_same_weights(runner, made):
    unet = runner.pipeline.unet
    before = copy.deepcopy(unet.state_dict())
    shuffled = with_shuffled_head(unet, seed=0)
    for name, parameter in unet.state_dict().items():
        other = shuffled.state_dict()[name]
        torch.testing.assert_close(parameter, before[name], rtol=0, atol=0)
        torch.testing.assert_close(parameter.flatten().sort().values, other.flatten().sort().values, rtol=0, atol=0)
        assert name.startswith("classifier.") or torch.equal(parameter, other)
    figures = head_randomisation(runner, made.select(np.array([0, 1])), [1, 2])
    assert figures["cosine"] < 0.99 and set(figures) == {"cosine", "region_iou", "region_iou_by_chance"}


def test_random_regions_are_as_large_and_elsewhere(made):
    regions = latent_regions(made, (8, 8))
    others = random_regions(regions, seed=0)
    torch.testing.assert_close(others.flatten(1).sort().values, regions.flatten(1).sort().values)
    assert not torch.equal(others, regions) and torch.equal(others, random_regions(regions, seed=0))


def test_the_average_change_knows_nothing_of_the_image(made):
    """Another change of one image leaves its own average change as it was, but for the size."""
    other = copy.deepcopy(made)
    other.images[0] = 1 - other.images[0]
    one, two = (average_change(each)[0] - made.originals[0] for each in (made, other))
    inside = (np.abs(one) > 1e-4) & (np.abs(two) > 1e-4)
    assert inside.any() and (np.sign(one[inside]) == np.sign(two[inside])).all()


def test_unknown_checks_are_refused():
    with pytest.raises(ValueError, match=r"`checks` must be among reversibility, .* but got beauty"):
        MeasureOptions(checks=["beauty"])
