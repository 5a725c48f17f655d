import json
import warnings

import datasets
import numpy as np
import pytest

from mediffusion_diffusers.data import (
    DatasetInfo,
    LabelledSplit,
    draw_labelled_split,
    features,
    label_matrix,
    limit_by_patient,
    make_row,
    patient_validation_split,
)


MULTI, SINGLE = "multi_label_classification", "single_label_classification"
INFO = DatasetInfo("toy", "drawn", "CC0", "nobody", MULTI, ["Mass", "Edema"], 1)


def make_dataset(num=400, seed=0, info=INFO):
    """`num` images of `num / 4` patients, about 30 % positives each, some labels unknown."""
    rng = np.random.default_rng(seed)
    rows = []
    for index in range(num):
        patient = f"p{index // 4:04d}"
        if info.is_multi_label:
            labels = (rng.random(2) < 0.3).astype(float).tolist()
            rows.append(make_row(info, None, f"im{index:05d}", patient, None if index % 10 == 9 else labels))
        else:
            rows.append(make_row(info, None, f"im{index:05d}", patient, label=int(rng.integers(-1, 2))))
    return datasets.Dataset.from_list(rows, features=features(info.problem_type, info.num_labels))


def draw(dataset, share, seed=0, by="patient", info=INFO):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return draw_labelled_split(dataset, info, share, seed, by)


@pytest.mark.parametrize("by", ["patient", "class"])
def test_row_order_does_not_matter_but_the_seed_does(by):
    dataset = make_dataset()
    shuffled = dataset.shuffle(seed=1)
    split = draw(dataset, 10, by=by)
    assert draw(shuffled, 10, by=by) == split
    assert draw(dataset, 10, seed=1, by=by).image_ids != split.image_ids
    assert list(split.image_ids) == sorted(split.image_ids)
    rows = split.indices(shuffled)
    assert (np.diff(rows) > 0).all()
    assert set(shuffled.select(rows)["image_id"][:]) == set(split.image_ids)


@pytest.mark.parametrize("by", ["patient", "class"])
def test_a_smaller_share_is_part_of_a_larger_one(by):
    dataset = make_dataset()
    small, large = (set(draw(dataset, share, by=by).image_ids) for share in (5, 20))
    assert small < large


def test_patients_come_whole_and_only_with_known_labels():
    dataset = make_dataset()
    split = draw(dataset, 25)
    assert split.num_patients == 25
    known = ~np.isnan(label_matrix(dataset, INFO)).all(axis=1)
    owners = np.array(dataset["patient_id"][:])
    chosen = np.zeros(len(dataset), dtype=bool)
    chosen[split.indices(dataset)] = True
    assert not (chosen & ~known).any()
    for patient in set(owners[chosen]):
        assert chosen[(owners == patient) & known].all()
    assert draw(dataset, 100).num_images == known.sum()


def test_class_draw_is_a_share_of_every_class():
    info = DatasetInfo("toy", "drawn", "CC0", "nobody", MULTI, ["Mass", "Edema"], 1)
    # Without an image in two classes, the union is exactly the sum: 10 % of 100, 57, and 43 without a finding.
    labels = [[1, 0]] * 100 + [[0, 1]] * 57 + [[0, 0]] * 43 + [[None, 0]] * 50
    rows = [make_row(info, None, f"{index:03d}", None, row) for index, row in enumerate(labels)]
    dataset = datasets.Dataset.from_list(rows, features=features(MULTI, 2))
    split = draw(dataset, 10, by="class")
    assert split.positives == {"Mass": 10, "Edema": 5, "No Finding": 4}
    assert split.num_images == 19
    # Rounding down is exact: 57 % of 100 is 57, though 0.57 * 100 = 56.99... in floating point.
    assert draw(dataset, 57, by="class").positives["Mass"] == 57


def test_single_label_draws():
    info = DatasetInfo("toy", "drawn", "CC0", "nobody", SINGLE, ["benign", "malignant"], 3)
    dataset = make_dataset(info=info)
    counts = label_matrix(dataset, info)
    split = draw(dataset, 10, by="class", info=info)
    assert split.positives == {
        name: int((counts[:, index] == 1).sum() * 0.1) for index, name in enumerate(info.label_names)
    }
    assert draw(dataset, 100, info=info).num_images == (~np.isnan(counts)).all(axis=1).sum()


def test_file_round_trip_and_changed_files(tmp_path):
    dataset = make_dataset()
    split = draw(dataset, 10)
    path = split.save(tmp_path / "splits/labelled.json")
    assert LabelledSplit.load(path) == split
    values = json.loads(path.read_text())
    assert values["sha256"] == split.hash
    assert values["num_images"] == split.num_images
    assert draw(dataset, 10.0).hash == split.hash

    values["image_ids"][0] = "im99999"
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError, match="was changed after it was written"):
        LabelledSplit.load(path)
    path.write_text("{}")
    with pytest.raises(ValueError, match="must be a split file"):
        LabelledSplit.load(path)
    with pytest.raises(ValueError, match="must be a split file"):
        LabelledSplit.load(tmp_path / "none.json")


def test_a_split_of_another_dataset_is_refused():
    split = draw(make_dataset(), 10)
    with pytest.raises(ValueError, match="does not have"):
        split.indices(make_dataset(8))


def test_an_empty_split_is_refused_and_absent_classes_are_named():
    with pytest.raises(ValueError, match=r"empty: 0.5 % by patient"):
        draw_labelled_split(make_dataset(), INFO, 0.5)
    rows = [make_row(INFO, None, str(index), None, [index % 2, 0]) for index in range(8)]
    dataset = datasets.Dataset.from_list(rows, features=features(MULTI, 2))
    with pytest.warns(UserWarning, match="no positive image of: Edema"):
        draw_labelled_split(dataset, INFO, 100)
    unknown = [make_row(INFO, None, str(index)) for index in range(8)]
    dataset = datasets.Dataset.from_list(unknown, features=features(MULTI, 2))
    with pytest.raises(ValueError, match="of 0 labelled images"):
        draw_labelled_split(dataset, INFO, 100)


@pytest.mark.parametrize("share", [0, -1, 100.1, float("nan")])
def test_share_is_a_percentage(share):
    with pytest.raises(ValueError, match="`share` must be a percentage"):
        draw_labelled_split(make_dataset(8), INFO, share)


def test_unknown_draw():
    with pytest.raises(ValueError, match="`by` must be one of"):
        draw_labelled_split(make_dataset(8), INFO, 10, by="image")


def test_held_out_patients_are_whole_and_independent_of_the_order():
    owners = np.array([f"p{index // 3}" for index in range(300)], dtype=object)
    kept, held_out = patient_validation_split(owners, 20, seed=3)
    assert sorted([*kept, *held_out]) == list(range(300))
    assert not set(owners[kept]) & set(owners[held_out])
    assert len(set(owners[held_out])) == 20
    order = np.random.default_rng(0).permutation(300)
    again = patient_validation_split(owners[order], 20, seed=3)[1]
    assert set(owners[order][again]) == set(owners[held_out])


def test_strata_are_each_drawn_from():
    owners = [f"p{index}" for index in range(100)]
    strata = ["rare"] * 10 + ["common"] * 90
    held_out = patient_validation_split(owners, 20, strata=strata)[1]
    assert sum(row < 10 for row in held_out) == 2
    assert len(held_out) == 20


def test_validation_is_no_larger_than_the_labelled_set():
    owners = [f"p{index // 3}" for index in range(300)]
    held_out = patient_validation_split(owners, 50, max_images=20)[1]
    assert len(held_out) == 18  # six patients of three images; a seventh does not fit
    kept = limit_by_patient(owners, 20, seed=1)
    assert len(kept) == 18
    assert all(owners.count(owner) == 3 for owner in {owners[row] for row in kept})
    assert len(limit_by_patient(owners, 1000)) == 300


def test_holding_out_refuses():
    with pytest.raises(ValueError, match=r"`share` must be a percentage in \[0, 100\)"):
        patient_validation_split(["a"], 100)
    assert len(patient_validation_split([], 10)[0]) == 0
    assert len(patient_validation_split(["a", "b"], 0)[1]) == 0
    with pytest.raises(ValueError, match="`max_images`"):
        limit_by_patient(["a"], 0)


def test_a_split_that_cannot_be_drawn_written_or_read_says_so(tmp_path):
    with pytest.raises(ValueError, match="`seed` must be a whole number"):
        draw(make_dataset(), 10, seed=-1)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"`path` must be a file to write, .*/file' cannot be made: "):
        draw(make_dataset(), 10).save(tmp_path / "file" / "labelled.json")
    with pytest.raises(ValueError, match="`path` must be a file to write"):
        draw(make_dataset(), 10).save(tmp_path)
    for content in (b"\xff\xfe", b"[" * 100_000, b"[]", b'{"sha256": 1}'):
        (tmp_path / "split.json").write_bytes(content)
        with pytest.raises(ValueError, match=r"`path` must be a split file .*split\.json"):
            LabelledSplit.load(tmp_path / "split.json")
