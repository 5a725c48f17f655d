"""A planted shortcut: a marker that goes with a finding, and changes nothing else."""

import json

import numpy as np
import pytest
import torch

from mediffusion_diffusers.data.phantom import prepare_phantoms, sample_patients, true_counterfactual, true_ways
from mediffusion_diffusers.data.phantom_shortcut import MARKER_SIZE, Shortcut, paint_markers
from mediffusion_diffusers.data.schema import load_prepared


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("shortcut")
    for name, shortcut in (("free", None), ("planted", "Effusion:0.9")):
        prepare_phantoms(root / name, 0, 0, 24, image_size=32, shortcut=shortcut, show_progress=False)
    return root


def rows(folder):
    return list(load_prepared(folder, "test"))


def test_the_marker_alone_is_new(folders):
    with_marker = 0
    for free, planted in zip(rows(folders / "free"), rows(folders / "planted"), strict=True):
        for name in ("image_id", "patient_id", "labels", "boxes"):
            assert free[name] == planted[name], name
        metadata = json.loads(planted["metadata"])
        changed = np.argwhere(np.asarray(free["image"]) != np.asarray(planted["image"])) / 32
        assert metadata["has_marker"] == (metadata.get("marker") is not None) == bool(len(changed))
        if len(changed):
            box, pixel = metadata["marker"], 1 / 32
            for axis, (name, side) in enumerate((("y", "height"), ("x", "width"))):
                assert changed[:, axis].min() >= box[name] - pixel
                assert changed[:, axis].max() <= box[name] + box[side]
            with_marker += 1
    assert 0 < with_marker < 24


def test_it_goes_with_the_finding_as_often_as_was_asked():
    patients, labels = sample_patients(2000, seed=1)
    has_marker = np.array([box is not None for box in Shortcut("Effusion", 0.9).markers(1, patients.index, labels)])
    has_finding = labels[:, 1].numpy() == 1
    assert has_marker[has_finding].mean() == pytest.approx(0.9, abs=0.04)
    assert has_marker[~has_finding].mean() == pytest.approx(0.1, abs=0.03)
    for other in (0, 2, 3, 4):  # it knows no other finding
        shares = [has_marker[labels[:, other].numpy() == value].mean() for value in (0, 1)]
        assert abs(shares[0] - shares[1]) < 0.08


def test_a_patients_marker_depends_on_nobody_else():
    patients, labels = sample_patients(6, seed=1)
    shortcut = Shortcut("Mass", 0.7)
    together = shortcut.markers(1, patients.index, labels)
    assert together == [shortcut.markers(1, [index], labels[[row]])[0] for row, index in enumerate(patients.index)]


def test_the_true_counterfactual_keeps_the_marker(folders):
    row = next(one for one in rows(folders / "planted") if json.loads(one["metadata"])["has_marker"])
    box = json.loads(row["metadata"])["marker"]
    inside = tuple(slice(round(32 * box[name]) + 1, round(32 * (box[name] + MARKER_SIZE)) - 1) for name in ("y", "x"))
    image = torch.from_numpy(np.asarray(row["image"]) / 255)
    for answer in (true_counterfactual(row, "Effusion")[0], true_ways(row, "Mass", 2)[1, 0]):
        assert (answer[inside] - image[inside]).abs().max() < 1 / 255


def test_a_marker_covers_what_its_box_covers():
    box = {"x": 0.1, "y": 0.2, "width": 0.3, "height": 0.15}
    black = torch.zeros(2, 1, 24, 20)
    painted = paint_markers(black, [box, None])
    assert painted[0].sum().item() / (24 * 20) == pytest.approx(0.95 * 0.3 * 0.15, rel=1e-4)
    assert not painted[1].any() and not black.any()


@pytest.mark.parametrize("text", ["Effusion", "Effusion:", "Effusion:1.2", "Effusion:nan", "Tube:0.9", ":0.9"])
def test_a_shortcut_that_cannot_be_is_refused(text, tmp_path):
    with pytest.raises(ValueError, match="`shortcut` must"):
        prepare_phantoms(tmp_path / "out", 0, 0, 1, shortcut=text)
    assert not (tmp_path / "out").exists()
