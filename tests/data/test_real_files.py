"""The converters on real files, where `shared/data` lies beside the repository; skipped elsewhere."""

from pathlib import Path

import numpy as np
import pytest

from mediffusion_diffusers.data import (
    convert_chestxray14,
    convert_dicom,
    convert_isic2019,
    convert_medmnist,
    draw_labelled_split,
    label_matrix,
    load_prepared,
    summarize_prepared,
)
from mediffusion_diffusers.evaluation.localisation import box_mask, change_ratio, inside_outside


REAL = Path(__file__).parents[3] / "shared/data"
pytestmark = pytest.mark.skipif(not REAL.is_dir(), reason="the real files are not here")


def central_ratios(boxes, label_names, side=64):
    """By finding, the median ratio of change inside to outside its boxes, for a uniform change of the central disc.

    It knows no image: whoever localises must do better than this.
    """
    y, x = np.indices((side, side)) / side + 0.5 / side - 0.5
    disc = (np.hypot(x, y) < 0.45).astype(float)
    ratios = {}
    for label, name in enumerate(label_names):
        found = [row for row in boxes if any(box["label"] == label for box in row)]
        if found:
            masks = np.stack([box_mask(row, label, side, side) for row in found])
            ratios[name] = float(np.median(change_ratio(*inside_outside(np.broadcast_to(disc, masks.shape), masks))))
    return ratios


def test_all_rows_of_chestxray14(tmp_path):
    info = convert_chestxray14(REAL / "chestxray14-metadata", tmp_path / "set", validation_share=0)
    assert info.num_rows == {"train": 86524, "test": 25596}
    assert any("all 112,120 images are empty" in note for note in info.notes)
    summary = summarize_prepared(tmp_path / "set")
    assert (summary["train"].patients, summary["test"].patients) == (28008, 2797)
    assert summary["train"].no_finding == 50500
    assert (summary["train"].positives["Hernia"], summary["test"].positives["Hernia"]) == (141, 86)
    boxes = {split: load_prepared(tmp_path / "set", split, ["boxes"])["boxes"][:] for split in info.num_rows}
    assert sum(len(row) for row in boxes["test"]) == 984
    assert sum(bool(row) for row in boxes["test"]) == 880
    assert not any(boxes["train"])
    ratios = central_ratios(boxes["test"], info.label_names)
    assert len(ratios) == 8 and all(1.5 <= ratio <= 1.9 for ratio in ratios.values()), ratios

    # The size of ACPL's published 2 % split.
    train = load_prepared(tmp_path / "set", "train", ["image_id", "patient_id", "labels"])
    split = draw_labelled_split(train, info, 2, seed=7, by="class")
    assert split.num_images == 2075
    sizes = {draw_labelled_split(train, info, 2, seed=seed, by="class").num_images for seed in range(3)}
    assert all(abs(size - 2075) <= 10 for size in sizes)
    assert draw_labelled_split(train, info, 2).num_patients == 560


def test_chestxray14_images(tmp_path):
    info = convert_chestxray14(REAL / "chestxray14-subset", tmp_path / "set", image_size=64)
    assert sum(info.num_rows.values()) == 1563
    summary = summarize_prepared(tmp_path / "set")
    assert all(split.pictures == split.images for split in summary.values())
    picture = load_prepared(tmp_path / "set", "test")[0]["image"]
    assert (picture.mode, picture.size) == ("L", (64, 64))


def test_isic2019_images(tmp_path):
    info = convert_isic2019(REAL / "isic2019-subset", tmp_path / "set", image_size=32)
    assert sum(info.num_rows.values()) == 6329
    summary = summarize_prepared(tmp_path / "set")
    assert sum(split.labelled for split in summary.values()) == 4817
    assert all(min(split.positives.values()) >= 1 for split in summary.values())


def test_pneumoniamnist(tmp_path):
    info = convert_medmnist(REAL / "medmnist/pneumoniamnist.npz", tmp_path / "set")
    assert info.num_rows == {"train": 4708, "validation": 524, "test": 624}
    labels = label_matrix(load_prepared(tmp_path / "set", "test", ["label"]), info)
    assert labels.sum(axis=0).tolist() == [234, 390]


def test_dicom(tmp_path):
    info = convert_dicom(REAL / "dicom", tmp_path / "set", test_share=0, validation_share=0)
    assert info.num_rows == {"train": 3}
    assert "Files that could not be converted and were skipped: 1." in info.notes
    for row in load_prepared(tmp_path / "set"):
        assert row["image"].mode == "I;16"
        assert np.asarray(row["image"]).max() > 60000
