import json

import numpy as np
import pytest
from support.sources import CHEST_HEADER, random_picture, write_chestxray14

from mediffusion_diffusers.data import convert_chestxray14, label_matrix, load_prepared
from mediffusion_diffusers.data.sources.chestxray14 import FINDINGS, parse_age


ROWS = [
    (1, 0, "Cardiomegaly"),
    (1, 1, "Cardiomegaly|Emphysema"),
    *((patient, 0, "No Finding") for patient in range(2, 22)),
    (30, 0, "Hernia|Infiltration"),
]
BOXES = ["00000030_000.png,Infiltrate,256.0,512.0,128.0,102.4"]


def convert(source, output, **kwargs):
    return convert_chestxray14(source, output, **{"num_workers": 2, **kwargs})


def read_report(folder):
    return json.loads((folder / "conversion_report.json").read_text())


def test_official_files(tmp_path):
    source = write_chestxray14(tmp_path / "nih", ROWS, test_patients=(30,), boxes=BOXES)
    info = convert(source, tmp_path / "set", validation_share=25)
    assert info.num_rows["test"] == 1
    assert sum(info.num_rows.values()) == len(ROWS)
    parts = {split: load_prepared(tmp_path / "set", split) for split in info.num_rows}
    patients = {split: set(part["patient_id"][:]) for split, part in parts.items()}
    assert len(patients["validation"]) == 5  # of 21 training patients, rounded down
    assert not patients["train"] & patients["validation"]
    assert patients["test"] == {"00000030"}

    test = parts["test"][0]
    assert label_matrix(parts["test"], info)[0].nonzero()[0].tolist() == [
        FINDINGS.index("Infiltration"),
        FINDINGS.index("Hernia"),
    ]
    box = test["boxes"][0]
    assert box.pop("label") == FINDINGS.index("Infiltration")
    np.testing.assert_allclose([box[key] for key in ("x", "y", "width", "height")], [0.25, 0.5, 0.125, 0.1])
    assert json.loads(test["metadata"]) == {"age": 58.0, "sex": "F", "view": "PA", "follow_up": 0}
    np.testing.assert_array_equal(np.asarray(test["image"]), np.asarray(random_picture(len(ROWS) - 1)))
    no_finding = [row for part in (parts["train"], parts["validation"]) for row in label_matrix(part, info)]
    assert sum(not row.any() for row in no_finding) == 20


def test_the_same_seed_holds_out_the_same_patients(tmp_path):
    source = write_chestxray14(tmp_path / "nih", ROWS)
    held_out = []
    for name, rows, seed in (("a", ROWS, 0), ("b", ROWS[::-1], 0), ("c", ROWS, 1)):
        source = write_chestxray14(tmp_path / name, rows, images=False)
        convert(source, tmp_path / f"set-{name}", validation_share=25, seed=seed)
        held_out.append(load_prepared(tmp_path / f"set-{name}", "validation", ["patient_id"])["patient_id"][:])
    assert held_out[0] == held_out[1]
    assert held_out[0] != held_out[2]


@pytest.mark.parametrize(
    "header",
    [
        CHEST_HEADER.replace("OriginalImage[Width,Height]", "OriginalImage[Width,Height],") + ",",
        CHEST_HEADER.replace("Patient Gender", "Patient Sex"),
        "\ufeff" + CHEST_HEADER.replace("View Position", "View Position "),
    ],
)
def test_header_variants(tmp_path, header):
    source = write_chestxray14(tmp_path / "nih", ROWS, header=header)
    convert(source, tmp_path / "set", validation_share=0)
    assert json.loads(load_prepared(tmp_path / "set")[0]["metadata"])["sex"] == "F"


def test_older_file_name_and_image_folders(tmp_path):
    source = write_chestxray14(tmp_path / "nih", ROWS)
    (source / "Data_Entry_2017_v2020.csv").rename(source / "Data_Entry_2017.csv")
    for index, path in enumerate(sorted((source / "images").iterdir())):
        folder = source / f"images_{1 + index % 2:03d}/images"
        folder.mkdir(parents=True, exist_ok=True)
        path.rename(folder / path.name)
    (source / "images").rmdir()
    assert convert(source, tmp_path / "set", validation_share=0).num_rows == {"train": len(ROWS)}


def test_colour_and_alpha_become_grey(tmp_path):
    source = write_chestxray14(tmp_path / "nih", ROWS)
    random_picture(7, mode="RGBA").save(source / "images/00000001_000.png")
    convert(source, tmp_path / "set", validation_share=0)
    assert {row["image"].mode for row in load_prepared(tmp_path / "set")} == {"L"}


def test_without_images_every_row_is_written_empty(tmp_path):
    source = write_chestxray14(tmp_path / "nih", ROWS, boxes=BOXES, images=False)
    for kwargs, reason in (({}, "as no image lies in"), ({"metadata_only": True}, "as asked for")):
        info = convert(source, tmp_path / "set", validation_share=0, overwrite=True, **kwargs)
        assert info.num_rows == {"train": len(ROWS)}
        assert any(reason in note for note in info.notes)
        assert load_prepared(tmp_path / "set")[0]["image"] is None


def test_missing_and_corrupt_images_are_named(tmp_path):
    source = write_chestxray14(tmp_path / "nih", ROWS)
    (source / "images/00000005_000.png").unlink()
    (source / "images/00000006_000.png").write_bytes(b"\x89PNG\r\n torn")
    info = convert(source, tmp_path / "set", validation_share=0)
    assert info.num_rows == {"train": len(ROWS) - 2}
    report = read_report(tmp_path / "set")
    assert report["missing"] == ["00000005_000.png"]
    assert [entry["file"] for entry in report["skipped"]] == ["00000006_000.png"]
    assert "corrupt" in report["skipped"][0]["reason"]
    assert "Listed images that were not found: 1." in info.notes
    with pytest.raises(ValueError, match=r"Cannot decode 00000006_000\.png"):
        convert(source, tmp_path / "strict", validation_share=0, strict=True)
    assert not (tmp_path / "strict").exists()


@pytest.mark.parametrize(
    ("text", "age"),
    [("058", 58.0), ("060Y", 60.0), ("013M", 1.08), ("005D", 0.01), ("411", None), ("", None), ("old", None)],
)
def test_ages(text, age):
    assert parse_age(text) == age


def test_odd_ages_are_noted(tmp_path):
    source = write_chestxray14(tmp_path / "nih", [*ROWS, (40, 0, "Mass", "411", "M"), (41, 0, "Mass", "060Y", "M")])
    info = convert(source, tmp_path / "set", validation_share=0)
    note = next(note for note in info.notes if "ages" in note)
    assert "00000040_000.png: '411' -> unknown; 00000041_000.png: '060Y' -> 60" in note
    assert info.demographics["train"]["age"]["known"] == len(ROWS) + 1


@pytest.mark.parametrize("findings", ["Scoliosis", "Mass|Scoliosis", "Mass|No Finding", ""])
def test_unknown_findings_are_refused(tmp_path, findings):
    source = write_chestxray14(tmp_path / "nih", [*ROWS, (50, 0, findings)], images=False)
    with pytest.raises(ValueError, match=r"line 25, image 00000050_000.png: unknown finding .*Known are Atelectasis"):
        convert(source, tmp_path / "set")


def test_malformed_files_are_refused(tmp_path):
    def refuse(message, spoil, **kwargs):
        source = write_chestxray14(tmp_path / message[:12].strip("`"), ROWS, boxes=BOXES, images=False, **kwargs)
        spoil(source)
        with pytest.raises(ValueError, match=message):
            convert(source, tmp_path / "set")
        assert not (tmp_path / "set").exists()

    table = "Data_Entry_2017_v2020.csv"
    refuse("`source_dir` must hold Data_Entry", lambda source: (source / table).unlink())
    refuse(r"test_list\.txt is needed", lambda source: (source / "test_list.txt").unlink())
    refuse("must have a column 'Patient Gender' or 'Patient Sex'", lambda source: None,
           header=CHEST_HEADER.replace("Patient Gender", "Gender"))  # fmt: skip
    refuse("line 25: 7 columns are expected", lambda source: append(source / table, "00000051_000.png,Mass,0"))
    refuse("the image 00000001_000.png is there twice",
           lambda source: append(source / table, "00000001_000.png,Mass,0,1,58,F,PA"))  # fmt: skip
    refuse("must not share patients, but 1 are in both",
           lambda source: append(source / "test_list.txt", "00000001_001.png"))  # fmt: skip
    boxes = "BBox_List_2017.csv"
    refuse("line 3, image x.png: unknown finding 'Spot'", lambda source: append(source / boxes, "x.png,Spot,1,2,3,4"))
    refuse("four numbers", lambda source: append(source / boxes, "x.png,Mass,1,2,3"))
    refuse("line 3: image, finding", lambda source: append(source / boxes, "x.png"))


def test_lists_with_folders_and_lists_of_other_images(tmp_path):
    source = write_chestxray14(tmp_path / "nih", ROWS, test_patients=(30,))
    for name, folder in (("train_val_list.txt", "images/"), ("test_list.txt", "images_001\\images\\")):
        names = (source / name).read_text().split()
        (source / name).write_text("\n".join(folder + image for image in names))
    info = convert(source, tmp_path / "set", validation_share=0)
    assert info.num_rows == {"train": len(ROWS) - 1, "test": 1}
    assert any("test_list.txt names folders" in note for note in info.notes)
    (source / "test_list.txt").write_text("00000030_000.jpg\n")
    with pytest.raises(ValueError, match=r"test_list\.txt must name images of the label file, but none of"):
        convert(source, tmp_path / "other")


def test_every_file_is_accounted_for(tmp_path):
    source = write_chestxray14(tmp_path / "nih", ROWS)
    for name in ("unlisted.png", "[x]/00000001_000.png", "._00000001_000.png"):
        (source / "images" / name).parent.mkdir(exist_ok=True)
        random_picture(0).save(source / "images" / name)
    (source / "README.txt").write_text("NIH")
    convert(source, tmp_path / "set", validation_share=0)
    report = read_report(tmp_path / "set")
    reasons = {entry["reason"] for entry in report["skipped"]}
    assert reasons == {"the label file has no row for it", "another image has the same name"}
    ignored = sum(map(len, report["ignored"].values()))
    assert report["found"] == len(ROWS) + len(report["skipped"]) + ignored + len(report["tables"])
    assert ignored == 2


def append(path, line):
    path.write_text(path.read_text().rstrip("\n") + "\n" + line + "\n")
