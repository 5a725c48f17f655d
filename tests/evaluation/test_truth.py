"""Distance to the true counterfactual: the truth has none, the original all of it."""

import numpy as np
import pytest

from mediffusion_diffusers.evaluation.truth import (
    cosines_to_truth,
    error_difference,
    error_to_truth,
    nearest_errors,
    region_overlaps,
    summarize_truth,
)


@pytest.fixture
def world():
    """Originals and true counterfactuals that differ in one place."""
    generator = np.random.default_rng(0)
    originals = generator.random((6, 1, 16, 16))
    truth = originals.copy()
    truth[:, :, 3:7, 4:9] += generator.random((6, 1, 4, 5)) + 0.5
    return originals, truth


def test_ends_of_the_scale(world):
    originals, truth = world
    assert error_to_truth(truth, originals, truth) == 0 and error_to_truth(originals, originals, truth) == 1
    np.testing.assert_allclose(cosines_to_truth(truth, originals, truth), 1)
    np.testing.assert_array_equal(cosines_to_truth(originals, originals, truth), 0)
    np.testing.assert_array_equal(region_overlaps(truth, originals, truth), 1)
    np.testing.assert_array_equal(region_overlaps(originals, originals, truth), 0)


@pytest.mark.parametrize("share", [-0.5, 0.25, 2.0])
def test_part_of_the_way_and_beyond(world, share):
    """Going a share s of the right way leaves the error |1 - s|, and the cosine is the sign of s."""
    originals, truth = world
    images = originals + share * (truth - originals)
    assert error_to_truth(images, originals, truth) == pytest.approx(abs(1 - share))
    np.testing.assert_allclose(cosines_to_truth(images, originals, truth), np.sign(share))


def test_an_unrelated_change_makes_it_worse(world):
    """A change at a right angle adds its square: error^2 = 1 + |d|^2 / |t|^2."""
    originals, truth = world
    images = originals.copy()
    images[:, :, 12:] += 0.3
    expected = np.sqrt(1 + ((images - originals) ** 2).sum() / ((truth - originals) ** 2).sum())
    assert error_to_truth(images, originals, truth) == pytest.approx(expected) and expected > 1
    assert region_overlaps(images, originals, truth).max() == 0


def test_the_nearest_of_many_ways_counts(world):
    originals, truth = world
    elsewhere = originals + np.roll(truth - originals, 8, axis=3)
    ways = list(np.stack([truth, elsewhere], axis=1))
    for images in (truth, elsewhere):
        np.testing.assert_allclose(nearest_errors(images, originals, ways), 0)
    np.testing.assert_allclose(nearest_errors(originals, originals, ways), 1)
    assert error_to_truth(elsewhere, originals, truth) > 1
    one = nearest_errors(0.5 * (originals + elsewhere), originals, ways)
    np.testing.assert_allclose(one, 0.5)


def test_intervals_and_paired_differences(world):
    originals, truth = world
    half, noisy = 0.5 * (originals + truth), originals + 0.1 * np.random.default_rng(1).normal(size=originals.shape)
    patients = ["a", "a", "b", "b", "c", "d"]
    summary = summarize_truth(noisy, originals, truth, patients, list(truth[:, None]))
    low, high = summary["error_interval_95"]
    assert low < summary["error"] < high and summary["num_ways"] == 1 and summary["share_closer"] < 1
    minus = error_difference(half, noisy, originals, truth, patients)
    assert minus["error"] == pytest.approx(0.5 - summary["error"]) and minus["error_interval_95"][1] < 0
    assert minus["cosine_interval_95"][0] > 0
    same = error_difference(half, half, originals, truth, patients)
    assert same["error_interval_95"] == [0, 0]


def test_nothing_to_change_has_no_error(world):
    originals, _ = world
    assert np.isnan(error_to_truth(originals, originals, originals))
