import json

import numpy as np
import pytest
import torch

from mediffusion_diffusers.data.phantom import (
    PHANTOM_LABELS,
    PHANTOM_VERSION,
    finding_boxes,
    finding_effects,
    load_patients,
    prepare_phantoms,
    render,
    sample_patients,
    true_counterfactual,
    true_ways,
)
from mediffusion_diffusers.data.schema import load_info, load_prepared


@pytest.fixture(scope="module")
def population():
    return sample_patients(48, seed=3)


def test_render_shape_and_range(population):
    patients, labels = population
    for image_size in (16, 28, 32, 64):
        images = render(patients.select(slice(0, 3)), labels[:3], image_size)
        assert images.shape == (3, 1, image_size, image_size)
        assert images.dtype == torch.float32
        assert images.min() >= 0 and images.max() <= 1
        assert images.flatten(1).std(1).min() > 0.05  # not empty


def test_larger_pictures_are_painted_directly(population):
    patients, labels = population
    one = patients.select([0])
    coarse, fine = render(one, labels[:1], 64), render(one, labels[:1], 128)
    pooled = torch.nn.functional.avg_pool2d(fine, 2)
    assert (pooled - coarse).abs().mean() < 0.05  # the same body, other noise
    assert np.corrcoef(pooled.flatten(), coarse.flatten())[0, 1] > 0.9


def test_a_patient_depends_on_seed_and_index_only(population):
    patients, labels = population
    images = render(patients, labels, 32)
    alone, alone_labels = load_patients(3, [17])
    assert torch.equal(alone_labels[0], labels[17])
    assert torch.equal(render(alone, alone_labels, 32)[0], images[17])
    later, later_labels = sample_patients(5, seed=3, start=15)
    assert torch.equal(render(later, later_labels, 32)[2], images[17])
    other, other_labels = load_patients(4, [17])
    assert not torch.equal(render(other, other_labels, 32)[0], images[17])


def test_chunks_do_not_change_pictures(population, monkeypatch):
    patients, labels = population
    images = render(patients, labels, 32)
    monkeypatch.setattr("mediffusion_diffusers.data.phantom._CHUNK", 7)
    assert torch.allclose(render(patients, labels, 32), images, atol=1e-6)


@pytest.mark.parametrize("label", range(len(PHANTOM_LABELS)), ids=PHANTOM_LABELS)
def test_a_finding_changes_its_own_region_only(population, label):
    patients, labels = population
    effects = finding_effects(patients, labels, label, 32)[:, 0].abs()
    assert (effects.flatten(1).amax(1) > 1 / 255).all()  # always visible
    assert (effects.flatten(1) < 1e-6).float().mean() > 0.05  # and never everywhere: noise cancels exactly
    with_finding, without = labels.clone(), labels.clone()
    with_finding[:, label], without[:, label] = 1, 0
    absent = labels[:, label] == 0
    assert torch.equal(render(patients, labels, 32)[absent], render(patients, without, 32)[absent])
    assert torch.equal(render(patients, labels, 32)[~absent], render(patients, with_finding, 32)[~absent])


def test_boxes_hold_the_change_of_their_finding(population):
    patients, labels = population
    boxes = finding_boxes(patients, labels, render(patients, labels, 32))
    assert {(row, box["label"]) for row, found in enumerate(boxes) for box in found} == {
        tuple(pair) for pair in np.argwhere(labels.numpy() == 1).tolist()
    }
    for row, found in enumerate(boxes):
        for box in found:
            effect = finding_effects(patients.select([row]), labels[[row]], box["label"], 32)[0, 0].abs()
            left, top = round(box["x"] * 32), round(box["y"] * 32)
            right, bottom = left + round(box["width"] * 32), top + round(box["height"] * 32)
            assert 0 <= left < right <= 32 and 0 <= top < bottom <= 32
            inside = torch.zeros(32, 32, dtype=torch.bool)
            inside[top:bottom, left:right] = True
            assert effect[inside].sum() > 0.7 * effect.sum()
            assert effect[~inside].max() <= 0.15 * effect.max() + 1e-6


def test_prevalence_and_independence():
    _, labels = sample_patients(3000, seed=0)
    assert np.allclose(labels.mean(0), 0.25, atol=0.03)
    correlation = np.corrcoef(labels.numpy().T)
    assert np.abs(correlation - np.eye(5)).max() < 0.07


def _row(index: int, labels: torch.Tensor) -> dict:
    metadata = {"phantom_version": PHANTOM_VERSION, "phantom_seed": 3, "phantom_index": index}
    return {"labels": labels.tolist(), "metadata": json.dumps(metadata)}


def test_true_counterfactual_toggles_one_finding(population):
    patients, labels = population
    expected = labels[[5]].clone()
    expected[0, 2] = 1 - expected[0, 2]
    counterfactual = true_counterfactual(_row(5, labels[5]), "Mass", image_size=32)
    assert torch.equal(counterfactual, render(patients.select([5]), expected, 32)[0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda patients, labels: sample_patients(0, seed=1), "`num` must be at least 1"),
        (lambda patients, labels: sample_patients(2, seed=-1), "must be at least 0"),
        (lambda patients, labels: render(patients, labels[:, :4], 32), "`labels` must have shape"),
        (lambda patients, labels: render(patients, labels * float("nan"), 32), "unknown finding"),
        (lambda patients, labels: render(patients, labels, 4), "`image_size` must be at least 8"),
        (lambda patients, labels: true_counterfactual(_row(0, labels[0]), "Hernia", 32), "`label` must be one of"),
        (lambda patients, labels: true_ways(_row(0, labels[0]), "Mass", 0, 32), "`num_ways` must be a whole number"),
        (lambda patients, labels: true_counterfactual({"metadata": "{}"}, "Mass", 32), "must be a phantom of version"),
    ],
)
def test_errors_name_the_parameter(population, call, message):
    with pytest.raises(ValueError, match=message):
        call(*population)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantoms") / "dataset"
    prepare_phantoms(folder, num_train=6, num_validation=3, num_test=4, image_size=32, seed=3, show_progress=False)
    return folder


def test_prepared_folder_holds_the_same_patients(prepared, population):
    info = load_info(prepared)
    assert info.label_names == list(PHANTOM_LABELS)
    assert info.num_rows == {"train": 6, "validation": 3, "test": 4}
    patients, labels = population
    images = render(patients, labels, 32)
    boxes = finding_boxes(patients, labels, images)
    for position, row in enumerate(load_prepared(prepared, "train")):
        assert row["labels"] == labels[position].tolist()
        assert len(row["boxes"]) == len(boxes[position])
        picture = np.asarray(row["image"], dtype=np.float32) / 255
        assert np.abs(picture - images[position, 0].numpy()).max() <= 0.5 / 255 + 1e-6


def test_test_split_does_not_depend_on_the_others(prepared, tmp_path):
    prepare_phantoms(tmp_path / "alone", 0, 0, num_test=2, image_size=32, seed=3, show_progress=False)
    alone, among = load_prepared(tmp_path / "alone", "test"), load_prepared(prepared, "test")
    assert alone["image_id"][:] == among["image_id"][:2]
    assert np.array_equal(np.asarray(alone[1]["image"]), np.asarray(among[1]["image"]))


def test_a_finding_has_many_true_ways(population):
    """The first is the patient's own; all change the finding alone, each somewhere else."""
    patients, labels = population
    row = _row(5, torch.zeros_like(labels[5]))
    without = render(patients.select([5]), torch.zeros(1, len(PHANTOM_LABELS)), 32)
    for label in PHANTOM_LABELS:
        ways = true_ways(row, label, 4, image_size=32)
        torch.testing.assert_close(ways[0], true_counterfactual(row, label, image_size=32), rtol=0, atol=0)
        change = (ways - without).abs().amax((1, 2, 3))
        assert ways.shape == (4, 1, 32, 32) and (change > 1 / 255).all()
        assert len({float(one) for one in (ways - without).square().sum((1, 2, 3))}) == 4
        torch.testing.assert_close(ways[:2], true_ways(row, label, 2, image_size=32), rtol=0, atol=0)


def test_true_counterfactual_of_a_prepared_row_differs_in_the_box_only(prepared):
    row = next(row for split in ("train", "test") for row in load_prepared(prepared, split) if row["boxes"])
    box = row["boxes"][0]
    without = true_counterfactual(row, PHANTOM_LABELS[box["label"]])
    change = np.abs(without[0].numpy() - np.asarray(row["image"], dtype=np.float32) / 255)
    left, top = round(box["x"] * 32), round(box["y"] * 32)
    inside = change[top : top + round(box["height"] * 32), left : left + round(box["width"] * 32)]
    assert inside.sum() > 0.5 * change.sum()
    assert inside.max() == change.max()


def test_preparing_refuses_nothing_and_a_taken_folder(prepared, tmp_path):
    with pytest.raises(ValueError, match="one above 0"):
        prepare_phantoms(tmp_path / "none", 0, 0, 0)
    with pytest.raises(ValueError, match="already holds a prepared dataset"):
        prepare_phantoms(prepared, 1, 0, 0)
