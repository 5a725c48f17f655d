import json

import numpy as np
import pytest

from mediffusion_diffusers.controls import high_frequency_share
from mediffusion_diffusers.evaluation import counterfactuals as cf
from mediffusion_diffusers.evaluation.counterfactual_summary import summarize, summarize_per_label


@pytest.fixture
def rng():
    return np.random.default_rng(1)


def _scores(rng, num=12, num_labels=4, thresholds=True):
    before, after, null = rng.random((3, num, num_labels))
    return cf.Scores(before, after, null, np.full(num_labels, 0.5) if thresholds else None)


def _set(rng, num=12, direction="remove", **changes):
    originals = rng.random((num, 1, 8, 8))
    values = {
        "originals": originals,
        "images": (originals + 0.1 * rng.normal(size=originals.shape)).clip(0, 1),
        "null_images": originals,
        "targets": np.arange(num) % 4,
        "direction": direction,
        "own": _scores(rng, num),
        "oracle": _scores(rng, num),
    }
    return cf.Counterfactuals(**{**values, **changes})


def test_score_changes_agree_with_a_loop(rng):
    scores, targets = _scores(rng), np.arange(12) % 4
    diff, other = [], []
    for before, after, k in zip(scores.before, scores.after, targets, strict=True):
        diff.append(after[k] - before[k])
        other.append(np.mean([abs(after[j] - before[j]) for j in range(4) if j != k]))
    assert cf.target_change(scores.before, scores.after, targets) == pytest.approx(np.array(diff))
    assert cf.other_change(scores.before, scores.after, targets) == pytest.approx(np.array(other))
    summary = cf.summarize_scores(scores, targets, "remove", range(12))
    assert summary["diff"] == pytest.approx(np.mean(diff))
    assert summary["other_diff"] == pytest.approx(np.mean(other))
    assert summary["diff_interval_95"][0] < summary["diff"] < summary["diff_interval_95"][1]


def test_the_papers_other_diff_cancels_signs():
    before = np.full((2, 3), 0.5)
    after = before + np.array([[0.0, 0.2, 0.1], [0.0, -0.2, 0.1]])
    targets = np.zeros(2, dtype=int)
    assert cf.other_change(before, after, targets).mean() == pytest.approx(0.15)
    assert cf.other_change_of_means(before, after, targets) == pytest.approx(0.05)


def test_the_papers_other_diff_is_never_larger(rng):
    scores, targets = _scores(rng, num=60), np.arange(60) % 4
    mean = cf.other_change(scores.before, scores.after, targets).mean()
    assert cf.other_change_of_means(scores.before, scores.after, targets) <= mean


def test_flips_count_only_what_could_flip():
    scores = cf.Scores(
        before=np.array([[0.9], [0.9], [0.1]]),
        after=np.array([[0.2], [0.8], [0.05]]),
        null=np.zeros((3, 1)),
        thresholds=np.array([0.5]),
    )
    targets = np.zeros(3, dtype=int)
    np.testing.assert_array_equal(cf.flips(scores, targets, "remove"), [1, 0, np.nan])
    np.testing.assert_array_equal(cf.flips(scores, targets, "add"), [np.nan, np.nan, 0])


def test_one_class_per_image_decides_by_the_most_probable_label():
    scores = np.array([[0.4, 0.35, 0.25], [0.3, 0.4, 0.3]])
    np.testing.assert_array_equal(cf.is_present(scores, np.array([0, 0]), None), [True, False])


def test_nothing_changes_without_a_change(rng):
    scores = _scores(rng)
    still = cf.Scores(scores.before, scores.before, scores.before, scores.thresholds)
    originals = rng.random((12, 1, 8, 8))
    unchanged = _set(rng, originals=originals, images=originals, null_images=originals, own=still, oracle=still)
    summary = summarize(unchanged)
    assert summary["own"]["diff"] == summary["own"]["other_diff"] == summary["change"]["l1"] == 0
    assert summary["own"]["flip_rate"] == 0
    assert summary["agreement"] == 1
    assert summary["change"]["high_frequency_share"] is None  # no energy to share


def test_everything_against_the_null_edit_too(rng):
    originals = rng.random((12, 1, 8, 8))
    both = _set(rng, originals=originals, images=originals + 0.03, null_images=originals + 0.02)
    change = summarize(both)["change"]
    assert change["l1"] == pytest.approx(0.03)
    assert change["l1_vs_null"] == pytest.approx(0.01)
    assert change["null_l1"] == pytest.approx(0.02)


def test_high_frequency_share_of_noise_waves_and_bumps(rng):
    noise = rng.normal(size=(20, 1, 32, 32))
    assert high_frequency_share(noise).mean() == pytest.approx(1 - np.pi / 16, abs=0.02)
    x = np.arange(32)
    slow, fast = (np.cos(2 * np.pi * cycles / 32 * x)[None, None, None].repeat(32, 2) for cycles in (2, 12))
    assert high_frequency_share(slow)[0] == pytest.approx(0, abs=1e-9)
    assert high_frequency_share(fast)[0] == pytest.approx(1)
    assert high_frequency_share(3 * noise) == pytest.approx(high_frequency_share(noise))


def test_per_label_summaries_add_up(rng):
    counterfactuals = _set(rng)
    per_label = summarize_per_label(counterfactuals, ["a", "b", "c", "d"])
    assert sum(row["num_images"] for row in per_label.values()) == len(counterfactuals)
    mean = np.average([row["own"]["diff"] for row in per_label.values()], weights=[3, 3, 3, 3])
    assert summarize(counterfactuals)["own"]["diff"] == pytest.approx(mean)
    json.dumps(per_label, allow_nan=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"direction": "sideways"}, "'remove' or 'add'"),
        ({"images": np.zeros((12, 1, 4, 4))}, "one shape"),
        ({"targets": np.zeros(3, dtype=int)}, "equally many"),
    ],
)
def test_errors(rng, changes, message):
    with pytest.raises(ValueError, match=message):
        _set(rng, **changes)
