"""What an explained image measures, and what it refuses."""

from dataclasses import replace

import numpy as np
import pytest
from support.explanations import explained_phantom

from mediffusion_diffusers.reports.pictures.explained_image import GuidanceSweep, ScoredImage


@pytest.fixture(scope="module")
def explained():
    return explained_phantom()


def test_controls_that_are_missing_have_no_name(explained):
    assert [name for name, _ in explained.changed()] == ["Counterfactual", "Null edit", "Random noise"]
    bare = replace(explained, null_edit=None, random_noise=None)
    assert [name for name, _ in bare.changed()] == ["Counterfactual"]


def test_the_noise_has_the_counterfactuals_size_but_not_its_frequencies(explained):
    noise, counterfactual = explained.random_noise, explained.counterfactual
    assert explained.change_size(noise) == pytest.approx(explained.change_size(counterfactual), rel=1e-3)
    assert explained.high_frequency(noise) == pytest.approx(0.8, abs=0.05)
    assert explained.high_frequency(counterfactual) < 0.3
    assert np.isnan(explained.high_frequency(explained.original)) and explained.change_size(explained.original) == 0


def test_differences_add_up_and_average_channels(explained):
    difference = explained.difference(explained.counterfactual)
    assert difference + explained.original.image[0] == pytest.approx(explained.counterfactual.image[0])
    assert explained_phantom(channels=3).difference(explained.counterfactual) == pytest.approx(difference)
    last = explained.sweep.differences(explained.original.image)[-1]
    assert last == pytest.approx(difference, abs=1e-6)


def test_all_differences_fit_on_one_scale(explained):
    strong = ScoredImage(1 - explained.original.image, 0.5)
    assert replace(explained, random_noise=strong).limit() > explained.limit()


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((2, 8, 8)), r"`image` must have shape"),
        (np.zeros(8), r"`image` must have shape"),
        (np.full((8, 8), -1.0), r"`image` must lie in \[0, 1\]"),
        (np.full((8, 8), 255.0), r"`image` must lie in \[0, 1\]"),
        (np.full((8, 8), np.nan), r"`image` must lie in \[0, 1\]"),
    ],
)
def test_what_is_no_picture_is_refused(image, message):
    with pytest.raises(ValueError, match=message):
        ScoredImage(image, 0.5)


def test_what_is_no_probability_is_refused():
    with pytest.raises(ValueError, match="`probability` must lie"):
        ScoredImage(np.zeros((8, 8)), 1.5)
    with pytest.raises(ValueError, match="`oracle_probability` must lie"):
        ScoredImage(np.zeros((8, 8)), 0.5, float("nan"))


def test_what_does_not_fit_together_is_refused(explained):
    small = ScoredImage(np.zeros((8, 8)), 0.5)
    with pytest.raises(ValueError, match="Null edit has"):
        replace(explained, null_edit=small)
    with pytest.raises(ValueError, match="sweep has"):
        replace(explained, sweep=GuidanceSweep([0, 1], [small, small]))
    with pytest.raises(ValueError, match="`region` must have shape"):
        replace(explained, region=np.ones((8, 8)))
    with pytest.raises(ValueError, match="`boxes` must hold x, y"):
        replace(explained, boxes=[{"x": 0.1}])
    with pytest.raises(ValueError, match="equally many"):
        GuidanceSweep([0, 1], [small])
    with pytest.raises(ValueError, match="must ascend"):
        GuidanceSweep([1, 0], [small, small])
    with pytest.raises(ValueError, match="one shape"):
        GuidanceSweep([0, 1], [small, explained.original])
    with pytest.raises(ValueError, match="`original` must have the height"):
        explained.sweep.differences(np.zeros((8, 8)))
