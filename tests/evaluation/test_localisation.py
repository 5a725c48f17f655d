import json

import numpy as np
import pytest

from mediffusion_diffusers.evaluation import localisation as loc
from mediffusion_diffusers.evaluation.counterfactual_summary import localise


@pytest.fixture
def rng():
    return np.random.default_rng(2)


def _localise(case):
    return localise(case, [f"p{row}" for row in range(len(case.masks))])


def _masks(num=6, size=16):
    masks = np.zeros((num, size, size), dtype=bool)
    for row in range(num):
        masks[row, 2 + row : 6 + row, 3:9] = True
    return masks


def test_box_masks_follow_pixel_centres():
    box = {"label": 1, "x": 0.25, "y": 0.5, "width": 0.25, "height": 0.25}
    mask = loc.box_mask([box], 1, 8, 8)
    assert np.argwhere(mask).tolist() == [[4, 2], [4, 3], [5, 2], [5, 3]]
    assert not loc.box_mask([box], 0, 8, 8).any()


def test_every_box_has_a_pixel_and_two_boxes_are_united():
    tiny = {"label": 0, "x": 0.999, "y": 0.3, "width": 0.0005, "height": 0.0005}
    assert loc.box_mask([tiny], 0, 8, 8).sum() == 1
    other = {"label": 0, "x": 0.0, "y": 0.0, "width": 0.25, "height": 0.25}
    assert loc.box_mask([tiny, other], 0, 8, 8).sum() == 5
    whole = {"label": 0, "x": 0.0, "y": 0.0, "width": 1.0, "height": 1.0}
    assert loc.box_mask([whole], 0, 8, 8).all()


def test_inside_outside_agree_with_a_loop(rng):
    masks, change = _masks(), rng.random((6, 16, 16))
    inside, outside = loc.inside_outside(change, masks)
    for row in range(6):
        assert inside[row] == pytest.approx(change[row][masks[row]].mean())
        assert outside[row] == pytest.approx(change[row][~masks[row]].mean())


def test_a_perfect_change_is_finite_and_perfect_everywhere(rng):
    masks = _masks()
    case = loc.LocalisationCase(0.5 * masks[:, None], masks, np.zeros(6, dtype=int))
    summary = _localise(case)
    assert summary["ratio"] == pytest.approx(0.5 / loc.MIN_OUTSIDE_CHANGE)
    assert summary["energy_share_inside"] == summary["iou"] == summary["pointing"] == summary["share_above_1"] == 1
    json.dumps(summary, allow_nan=False)


def test_no_change_localises_nothing():
    masks = _masks()
    summary = _localise(loc.LocalisationCase(np.zeros((6, 1, 16, 16)), masks, np.zeros(6, dtype=int)))
    assert summary["ratio"] == summary["energy_share_inside"] == summary["pointing"] == 0


def test_noise_localises_nothing(rng):
    masks = np.repeat(_masks(), 30, axis=0)
    noise = rng.normal(size=(180, 1, 16, 16))
    summary = _localise(loc.LocalisationCase(noise, masks, np.zeros(180, dtype=int)))
    assert summary["ratio"] == pytest.approx(1, abs=0.1)
    assert summary["energy_share_inside"] == pytest.approx(24 / 256, abs=0.02)
    assert summary["pointing"] == pytest.approx(24 / 256, abs=0.08)


def test_a_change_in_the_right_box_beats_the_wrong_box(rng):
    masks = _masks()
    wrong = masks[:, None, ::-1, ::-1].repeat(3, axis=1)
    difference = masks[:, None] * 0.3 + 0.05 * rng.random((6, 1, 16, 16))
    summary = _localise(loc.LocalisationCase(difference, masks, np.zeros(6, dtype=int), wrong))
    assert summary["ratio"] > 5 > 2 > summary["wrong_box_ratio"]


def test_average_box_leaves_the_image_itself_out():
    masks = _masks(4)
    averages = loc.average_box_changes(masks, np.array([0, 0, 0, 1]))
    np.testing.assert_allclose(averages[0], (masks[1].astype(float) + masks[2]) / 2)
    assert not averages[3].any()


def test_central_findings_reward_the_central_null():
    masks = np.zeros((3, 16, 16), dtype=bool)
    masks[:, 5:11, 5:11] = True
    summary = _localise(loc.LocalisationCase(np.ones((3, 1, 16, 16)), masks, np.zeros(3, dtype=int)))
    assert summary["ratio"] == pytest.approx(1)
    assert summary["central_body_ratio"] > 2
    assert summary["average_box_ratio"] > 1000  # the same box in every image: the average box is perfect


def test_empty_and_full_boxes_are_left_out():
    masks = _masks(3)
    masks[0], masks[1] = False, True
    case = loc.LocalisationCase(np.ones((3, 1, 16, 16)), masks, np.zeros(3, dtype=int))
    assert _localise(case)["num_images"] == 1
    none = loc.LocalisationCase(np.ones((1, 1, 16, 16)), masks[:1], np.zeros(1, dtype=int))
    assert _localise(none) == {"num_images": 0, "num_patients": 0}


def test_the_interval_of_the_ratio_resamples_patients(rng):
    masks, difference = np.repeat(_masks(), 4, axis=0), rng.random((24, 1, 16, 16))
    case = loc.LocalisationCase(difference, masks, np.zeros(24, dtype=int))
    alone, together = localise(case, [str(row) for row in range(24)]), localise(case, ["same"] * 24)
    assert alone["ratio_interval_95"][0] < alone["ratio"] < alone["ratio_interval_95"][1]
    assert (alone["num_patients"], together["num_patients"]) == (24, 1)
    assert together["ratio"] == alone["ratio"] and together["ratio_interval_95"] == [None, None]
