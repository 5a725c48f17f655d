import numpy as np
import pytest

from mediffusion_diffusers.evaluation.bootstrap import (
    bootstrap,
    bootstrap_macro_auroc,
    bootstrap_mean,
    bootstrap_median,
)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_bootstrap_interval_holds_the_estimate_and_pairs_are_tighter(rng):
    labels = (rng.random((300, 2)) < 0.4).astype(float)
    scores = rng.normal(size=(300, 2)) + labels
    patients = np.repeat(np.arange(150), 2)
    alone = bootstrap_macro_auroc(labels, scores, patients, num_resamples=200)
    assert alone.low < alone.estimate < alone.high
    assert alone.num_patients == 150
    same = bootstrap_macro_auroc(labels, scores, patients, other_scores=2 * scores, num_resamples=50)
    assert (same.low, same.estimate, same.high) == (0, 0, 0)
    other = bootstrap_macro_auroc(
        labels, scores, patients, other_scores=scores + rng.normal(size=scores.shape) * 0.1, num_resamples=200
    )
    assert other.high - other.low < (alone.high - alone.low) / 2


def test_bootstrap_draws_patients_not_images(rng):
    labels = (rng.random((100, 1)) < 0.5).astype(float)
    scores = rng.normal(size=(100, 1)) + labels
    repeated = np.repeat(np.arange(100), 5)
    once = bootstrap_macro_auroc(labels, scores, np.arange(100), num_resamples=100, seed=1)
    five_times = bootstrap_macro_auroc(labels[repeated], scores[repeated], repeated, num_resamples=100, seed=1)
    assert (five_times.low, five_times.high) == pytest.approx((once.low, once.high))


def test_bootstrap_mean_shrinks_with_the_root_of_the_number(rng):
    few, many = (bootstrap_mean(rng.normal(size=num), range(num)) for num in (50, 5000))
    assert (few.high - few.low) / (many.high - many.low) == pytest.approx(10, rel=0.4)


@pytest.mark.parametrize("interval_of", [bootstrap_mean, bootstrap_median])
def test_images_of_one_patient_count_as_one_observation(rng, interval_of):
    values = rng.normal(size=40)
    once = interval_of(values, range(40), seed=1)
    copies = interval_of(np.repeat(values, 5), np.repeat(np.arange(40), 5), seed=1)
    assert (copies.low, copies.high, copies.num_patients) == pytest.approx((once.low, once.high, 40))
    as_if_independent = interval_of(np.repeat(values, 5), range(200), seed=1)
    assert as_if_independent.high - as_if_independent.low < 0.7 * (once.high - once.low)


def test_a_mean_is_over_images_and_leaves_unknown_ones_out():
    interval = bootstrap_mean(np.array([1.0, 1.0, 4.0, np.nan]), ["a", "a", "b", "c"])
    assert (interval.estimate, interval.num_patients) == (2.0, 2)
    assert (interval.low, interval.high) == (1.0, 4.0)  # only "a", only "b"


@pytest.mark.parametrize("values", [[], [np.nan], [0.3, 0.5]])
def test_fewer_than_two_patients_have_no_interval(values):
    interval = bootstrap_mean(np.array(values), ["a"] * len(values))
    assert np.isnan(interval.low) and np.isnan(interval.high)
    assert interval.to_dict()["low"] is None


def test_resamples_without_the_figure_are_left_out():
    labels = np.array([[1.0]] + [[0.0]] * 5)
    interval = bootstrap_macro_auroc(labels, np.arange(6.0)[::-1, None], range(6), num_resamples=50)
    assert (interval.low, interval.estimate, interval.high) == (1, 1, 1)
    nothing = bootstrap_macro_auroc(0 * labels, np.arange(6.0)[:, None], range(6), num_resamples=50)
    assert nothing.to_dict() | {"num_patients": 0} == {
        "estimate": None, "low": None, "high": None, "confidence": 0.95, "num_resamples": 50, "num_patients": 0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value"),
    [("num_resamples", 1), ("num_resamples", 2.5), ("confidence", 1.0), ("confidence", np.nan), ("seed", -1)],
)
def test_errors(name, value):
    with pytest.raises(ValueError, match=f"`{name}`"):
        bootstrap(lambda weights: weights.sum(), ["a", "b"], **{name: value})
    with pytest.raises(ValueError, match="`patient_ids` must have one entry per image"):
        bootstrap_mean(np.zeros(3), ["a"])
