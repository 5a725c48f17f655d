import numpy as np
import pytest

from mediffusion_diffusers.evaluation.counterfactual_selection import (
    NUM_WRONG_BOXES,
    rows_with_box,
    select_images,
    target_masks,
    wrong_masks,
)


LABELS = np.array([[1, 0], [1, 1], [0, 0], [0, 0], [np.nan, 0], [1, 0]], dtype=float)
SEEN = np.array([[1, 0], [0, 1], [0, 0], [1, 0], [1, 1], [1, 1]], dtype=bool)
BOXES = [
    [{"label": 0, "x": 0.0, "y": 0.0, "width": 0.5, "height": 0.5}],
    [{"label": 1, "x": 0.5, "y": 0.5, "width": 0.5, "height": 0.5}],
    [], [], [], [],
]  # fmt: skip


def _pairs(selection):
    return list(zip(selection.rows.tolist(), selection.targets.tolist(), strict=True))


def test_removals_have_the_finding_and_are_seen_by_the_model():
    assert _pairs(select_images(LABELS, SEEN, "remove", 9)) == [(0, 0), (5, 0), (1, 1)]
    assert _pairs(select_images(LABELS, SEEN, "remove", 1)) == [(0, 0), (1, 1)]
    both = np.ones((3, 2))  # an image with two findings may lose either
    assert _pairs(select_images(both, both.astype(bool), "remove", 2)) == [(0, 0), (1, 0), (0, 1), (1, 1)]


def test_additions_have_no_finding_at_all_and_no_image_serves_twice():
    # Row 3 has no finding, but the model already sees label 0 in it; row 4 is unknown. Label 0 fits one image, label 1
    # two: so label 0 draws first, and label 1 takes the other.
    assert _pairs(select_images(LABELS, SEEN, "add", 9)) == [(2, 0), (3, 1)]


def test_one_class_per_image_is_added_to_images_of_the_others():
    labels, seen = np.eye(3), np.eye(3, dtype=bool)
    assert _pairs(select_images(labels, seen, "add", 9, single_label=True)) == [(1, 0), (2, 1), (0, 2)]
    labels, seen = np.tile(labels, (3, 1)), np.tile(seen, (3, 1))
    chosen = select_images(labels, seen, "add", 3, single_label=True)
    assert sorted(chosen.rows) == list(range(9)) and (labels[chosen.rows, chosen.targets] == 0).all()


@pytest.mark.parametrize("seed", range(5))
def test_additions_are_to_distinct_patients_where_numbers_allow(seed):
    rng = np.random.default_rng(seed)
    labels = (rng.random((120, 4)) < 0.1).astype(float)
    seen = rng.random((120, 4)) < 0.5
    patients = [f"p{row // 3}" for row in range(120)]
    chosen = select_images(labels, seen, "add", 4, patient_ids=patients)
    assert np.bincount(chosen.targets).tolist() == [4, 4, 4, 4]
    assert len(set(chosen.rows.tolist())) == len({patients[row] for row in chosen.rows}) == 16
    assert (labels[chosen.rows] == 0).all()
    again = select_images(labels, seen, "add", 4, patient_ids=patients)
    np.testing.assert_array_equal(chosen.rows, again.rows)
    few = select_images(labels, seen, "add", 4, patient_ids=["a", "b"] * 60)  # not enough patients: other images
    assert len(set(few.rows.tolist())) == 16


def test_a_number_beyond_all_images_takes_them_all():
    labels, seen = np.zeros((50, 2)), np.zeros((50, 2), dtype=bool)
    chosen = select_images(labels, seen, "add", 10**12)
    assert sorted(chosen.rows) == list(range(50)) and np.bincount(chosen.targets).tolist() == [25, 25]


def test_candidates_limit_the_choice():
    chosen = select_images(LABELS, SEEN, "remove", 9, candidates=rows_with_box(BOXES, 2))
    assert _pairs(chosen) == [(0, 0), (1, 1)]


def test_masks_of_the_target_and_of_other_findings():
    chosen = select_images(LABELS, SEEN, "remove", 9)
    masks = target_masks(BOXES, chosen, 8, 8)
    assert masks[0, :4, :4].all() and masks[0].sum() == 16
    assert not masks[1].any()  # row 5 has no box
    wrong = wrong_masks(BOXES, chosen, 8, 8)
    assert wrong.shape == (3, NUM_WRONG_BOXES, 8, 8)
    assert wrong[0, :, 4:, 4:].all() and not wrong[0, :, :4, :4].any()
    assert wrong[2, :, :4, :4].all()
    assert wrong_masks([BOXES[0]], chosen, 8, 8) is None


@pytest.mark.parametrize(
    ("direction", "num", "message"),
    [("up", 1, "`direction`"), ("add", 0, "at least 1"), ("add", float("nan"), "`num_images_per_label`")],
)
def test_errors(direction, num, message):
    with pytest.raises(ValueError, match=message):
        select_images(LABELS, SEEN, direction, num)
