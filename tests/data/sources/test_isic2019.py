import json

import numpy as np
import pytest
from support.sources import write_isic2019

from mediffusion_diffusers.data import convert_isic2019, label_matrix, load_prepared
from mediffusion_diffusers.data.sources.isic2019 import DIAGNOSES


# Two images of every lesion, 20 lesions of each of two diagnoses; the last image has no lesion_id.
ROWS = [
    (f"ISIC_{2 * lesion + view:07d}", "MEL" if lesion < 20 else "NV", f"HAM_{lesion:07d}")
    for lesion in range(40)
    for view in range(2)
] + [("ISIC_0000900", "DF", "")]


def convert(source, output, **kwargs):
    return convert_isic2019(source, output, **{"test_share": 20, "validation_share": 25, "num_workers": 2, **kwargs})


def test_official_files(tmp_path):
    source = write_isic2019(tmp_path / "isic", ROWS, unlabelled=[("ISIC_0000950", "HAM_0000999")])
    info = convert(source, tmp_path / "set")
    assert info.label_names == list(DIAGNOSES)
    assert any(note.startswith("The column UNK is dropped") for note in info.notes)
    assert any("1 images without a label are the unlabelled pool" in note for note in info.notes)
    parts = {split: load_prepared(tmp_path / "set", split) for split in ("train", "validation", "test")}
    lesions = {split: part["patient_id"][:] for split, part in parts.items()}
    assert not set(lesions["train"]) & (set(lesions["validation"]) | set(lesions["test"]))
    # 20 % of the 20 lesions of each diagnosis, both images of each; then 25 % of the 16 that are left.
    counts = {split: np.nansum(label_matrix(part, info), axis=0) for split, part in parts.items()}
    for split, expected in (("test", 8), ("validation", 8), ("train", 24)):
        assert counts[split][DIAGNOSES.index("MEL")] == expected
        assert counts[split][DIAGNOSES.index("NV")] == expected
    assert sum(info.num_rows.values()) == len(ROWS) + 1

    rows = {row["image_id"]: row for row in parts["train"].remove_columns("image")}
    assert rows["ISIC_0000950"]["label"] == -1
    assert rows["ISIC_0000900"]["patient_id"] == "ISIC_0000900"
    assert json.loads(rows["ISIC_0000900"]["metadata"]) == {"age": 45.0, "sex": "female", "site": "back"}
    image = parts["train"][0]["image"]
    assert (image.mode, image.size) == ("RGB", (20, 16))


def test_an_unlabelled_view_of_a_test_lesion_stays_out_of_training(tmp_path):
    pool = [(f"ISIC_{800 + lesion:07d}", f"HAM_{lesion:07d}") for lesion in range(40)]
    source = write_isic2019(tmp_path / "isic", ROWS, unlabelled=pool)
    info = convert(source, tmp_path / "set")
    assert any("16 of them show lesions of the validation or test split" in note for note in info.notes)


def test_draws_are_seeded(tmp_path):
    source = write_isic2019(tmp_path / "isic", ROWS)
    ids = []
    for seed in (0, 0, 1):
        convert(source, tmp_path / "set", seed=seed, overwrite=True)
        ids.append(load_prepared(tmp_path / "set", "test", ["image_id"])["image_id"][:])
    assert ids[0] == ids[1] != ids[2]


def test_unk_missing_and_corrupt_images(tmp_path):
    source = write_isic2019(tmp_path / "isic", [*ROWS, ("ISIC_0000960", "UNK", "")])
    pictures = source / "ISIC_2019_Training_Input"
    (pictures / "ISIC_0000000.jpg").unlink()
    (pictures / "ISIC_0000900.jpg").write_bytes(b"\xff\xd8\xff torn")
    info = convert(source, tmp_path / "set")
    assert any("1 images carry it and count as unlabelled" in note for note in info.notes)
    report = json.loads((tmp_path / "set/conversion_report.json").read_text())
    assert report["missing"] == ["ISIC_0000000"]
    assert [entry["file"] for entry in report["skipped"]] == ["ISIC_0000900.jpg"]


def test_without_metadata_every_image_is_a_lesion(tmp_path):
    source = write_isic2019(tmp_path / "isic", ROWS)
    (source / "ISIC_2019_Training_Metadata.csv").unlink()
    info = convert(source, tmp_path / "set")
    assert any("every image counts as a lesion of its own" in note for note in info.notes)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("ISIC_0000970,1,1,0,0,0,0,0,0,0", "line 83, image ISIC_0000970: exactly one diagnosis"),
        ("ISIC_0000970,0,0,0,0,0,0,0,0,0", "exactly one diagnosis must be 1"),
        ("ISIC_0000970,yes,0,0,0,0,0,0,0,0", "line 83: 1 or 0 per diagnosis"),
        ("ISIC_0000970,1", "line 83: 1 or 0 per diagnosis"),
        ("ISIC_0000900,1,0,0,0,0,0,0,0,0", "ISIC_0000900 is there twice"),
    ],
)
def test_malformed_labels_are_refused(tmp_path, line, message):
    source = write_isic2019(tmp_path / "isic", ROWS)
    path = source / "ISIC_2019_Training_GroundTruth.csv"
    path.write_text(path.read_text() + "\n" + line)
    with pytest.raises(ValueError, match=message):
        convert(source, tmp_path / "set")


def test_foreign_columns_and_empty_folders_are_refused(tmp_path):
    source = write_isic2019(tmp_path / "isic", ROWS)
    path = source / "ISIC_2019_Training_GroundTruth.csv"
    text = path.read_text()
    path.write_text(text.replace("UNK", "WART"))
    with pytest.raises(ValueError, match=r"unknown diagnoses \['WART'\]"):
        convert(source, tmp_path / "set")
    path.write_text(text.replace("SCC", "SQUAMOUS"))
    with pytest.raises(ValueError, match="must have a column 'SCC'"):
        convert(source, tmp_path / "set")
    path.write_text(text)
    for picture in (source / "ISIC_2019_Training_Input").iterdir():
        picture.unlink()
    with pytest.raises(ValueError, match="has none"):
        convert(source, tmp_path / "set")
