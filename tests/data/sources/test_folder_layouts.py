"""Folders and tables as people have them: every file accounted for, nothing guessed."""

import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.sources import random_picture

from mediffusion_diffusers.data import (
    ColumnNames,
    convert_hub_dataset,
    convert_image_folder,
    encode_png,
    load_prepared,
)


NO_DRAWS = {"test_share": 0, "validation_share": 0, "num_workers": 2}
CLASSES = [f"{kind}/{index}.png" for kind in ("sick", "well") for index in range(2)]
SUFFIXES = (".png", ".jpeg", ".tif")


def write_pictures(folder, names):
    for index, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        random_picture(index).save(path)
    return folder


def convert(source, output, **kwargs):
    info = convert_image_folder(source, output, **{**NO_DRAWS, **kwargs})
    report = json.loads((output / "conversion_report.json").read_text())
    ignored = sum(map(len, report["ignored"].values()))
    assert report["found"] == report["converted"] + len(report["skipped"]) + ignored + len(report["tables"])
    assert report["converted"] == sum(info.num_rows.values())
    return info, report


def rows_by_id(folder):
    return {row["image_id"]: row for row in load_prepared(folder)}


@pytest.mark.parametrize("folder", ["[2021] study", "a::b", "what? *", "m\u00fcller \n x"])
def test_letters_in_paths_are_letters(tmp_path, folder):
    source = write_pictures(tmp_path / folder / folder, [f"{folder}/{name}" for name in ("0.png", "1.png")])
    info, _ = convert(source, tmp_path / folder / "set")
    assert (info.num_rows, info.label_names) == ({"train": 2}, [" ".join(folder.split())])
    for columns in (None, ["image_id"]):
        loaded = load_prepared(tmp_path / folder / "set", columns=columns)
        assert loaded["image_id"][:] == [f"{folder}/0.png", f"{folder}/1.png"]


@pytest.mark.parametrize(
    ("names", "rows", "num_labels"),
    [
        # Split folders in any case, and no word inside a name.
        ([f"{top}/{name}" for top in ("Training", "Testing") for name in CLASSES], {"train": 4, "test": 4}, 2),
        ([f"{top}/{name}" for top in ("TRAIN", "Dev") for name in CLASSES], {"train": 4, "validation": 4}, 2),
        (["covid-test-positive/0.png", "covid-test-negative/0.png"], {"train": 2}, 2),
        (["well/0_stress_test.png", "sick/val_1.png", "sick/train.png"], {"train": 3}, 2),
        (["test set/0.png", "train2/0.png"], {"train": 2}, 2),
        # Leftovers of macOS and Windows, notes, upper case suffixes, an empty folder.
        ([*CLASSES, "__MACOSX/sick/._0.png", "sick/._0.txt", "sick/Thumbs.db", "README.md"], {"train": 4}, 2),
        (["sick/0.PNG", "well/1.JPEG", "well/2.Tif"], {"train": 3}, 2),
    ],
)
def test_layouts(tmp_path, names, rows, num_labels):
    source = tmp_path / "photos"
    write_pictures(source, [name for name in names if name.lower().endswith(SUFFIXES)])
    for name in names:
        if not name.lower().endswith(SUFFIXES):
            (source / name).write_text("no picture")
    (source / "nothing").mkdir()
    info, report = convert(source, tmp_path / "set")
    assert (info.num_rows, info.num_labels) == (rows, num_labels)
    assert report["skipped"] == []


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["train/sick/0.png", "extra/1.png"], r"split folders \['train'\] lie beside 1 other pictures"),
        (["test/0.png", "control/1.png"], r"split folders \['test'\] lie beside 1"),
        (["train/sick/0.png", "1.png"], r"beside 1 other pictures, such as '1\.png'"),
        (["val/a/0.png", "valid/a/1.png"], r"\['val', 'valid'\] are \['validation', 'validation'\]"),
        (["train/sick/0.png", "test/1.png"], r"is mixed: 1 pictures, such as 'test/1\.png', lie in no class folder"),
        (["sick/0.png", "overview.png"], r"is mixed: 1 pictures, such as 'overview\.png', lie in no class folder"),
        (["sick/mild/0.png", "well/1.png"], r"'sick/mild/0\.png', lie deeper than a class folder"),
        (["sick/train/0.png", "well/test/1.png"], "Split folders, such as 'test' there, must lie at the top"),
        (["chest/train/a/0.png", "chest/test/a/0.png"], "below the one folder 'chest': name that one as `source_dir`"),
        (["Normal/0.png", "normal/1.png"], "'Normal' and 'normal' are the same but for case"),
    ],
)
def test_mixed_layouts_are_refused(tmp_path, names, message):
    with pytest.raises(ValueError, match=message):
        convert_image_folder(write_pictures(tmp_path / "photos", names), tmp_path / "set", **NO_DRAWS)
    assert not (tmp_path / "set").exists()


def test_links_twins_and_masks(tmp_path):
    shared = write_pictures(tmp_path / "shared", ["0.png", "1.png"])
    source = write_pictures(tmp_path / "photos", ["sick/0.png", "sick/0_mask.png", "sick/1.tif", "sick/1.bmp"])
    (source / "well").symlink_to(shared)
    (source / "well/loop").symlink_to(source)
    (shared / "2.png").symlink_to("0.png")
    (shared / "3.png").touch()
    info, report = convert(source, tmp_path / "set")
    assert info.num_rows == {"train": 7}
    assert {entry["file"] for entry in report["skipped"]} == {"well/loop/", "well/3.png"}
    patients = {name: row["patient_id"] for name, row in rows_by_id(tmp_path / "set").items()}
    # One file under two names, and one name with two suffixes, must not come apart in the splits.
    assert patients["well/2.png"] == patients["well/0.png"] != patients["well/1.png"]
    assert patients["sick/1.tif"] == patients["sick/1.bmp"] != patients["sick/0.png"]
    assert any("named like masks of others, such as 'sick/0_mask.png'" in note for note in info.notes)


def test_the_same_picture_in_two_given_splits_is_refused(tmp_path):
    source = write_pictures(tmp_path / "photos", ["train/a/0.png", "test/a/1.png"])
    (source / "test/a/2.png").symlink_to(source / "train/a/0.png")
    with pytest.raises(ValueError, match="No patient may be in two splits"):
        convert_image_folder(source, tmp_path / "set")


def test_names_in_tables(tmp_path):
    names = ["a/0.png", "a/1.PNG", "a/e\u0301.png", "b [x]/2.png", "b [x]/3.png", "4.png"]
    source = write_pictures(tmp_path / "photos", names)
    (source / "empty.png").touch()
    rows = ["a\\0.png;x", "./a/1.png;y", "a/\u00e9.png;x", "b [x]/2.png;", "b [x]/2.png;", "gone.png;x"]
    rows += ["empty.png;x", f"{source.absolute()}/4.png;y"]
    (source / "metadata.csv").write_text("\n".join(["File_Name;Label", *rows]), encoding="utf-8-sig")
    info, report = convert(source, tmp_path / "set")
    labels = {name: row["label"] for name, row in rows_by_id(tmp_path / "set").items()}
    assert labels == {"a/0.png": 0, "a/1.PNG": 1, "a/e\u0301.png": 0, "b [x]/2.png": -1, "4.png": 1}
    assert report["missing"] == ["gone.png"]
    assert {entry["file"] for entry in report["skipped"]} == {"empty.png", "b [x]/3.png"}
    assert (report["tables"], report["unlabelled"]) == (["metadata.csv"], 1)
    assert "1 rows were there twice and count once." in info.notes


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("file_name,label\n0.png,a\n0.png,b\n", r"line 3: '0\.png' is named twice, with other values in .*line 2"),
        ("file_name,label\n,a\n", "line 2: the column 'file_name' must name a file"),
        ("file_name,label\nx.png,a\n", r"None of the files named in metadata\.csv .*'x\.png'; a file: '0\.png'"),
        ("file_name,label\n0.png,a,b\n", "line 2: 2 columns are expected, but got 3"),
        ("file_name,label,label\n0.png,a,b\n", "must name every column once"),
        ("file_name,label\n0.png,\n", "The column 'label' is empty in every row"),
    ],
)
def test_tables_that_are_refused(tmp_path, table, message):
    source = write_pictures(tmp_path / "photos", ["0.png"])
    (source / "metadata.csv").write_text(table)
    with pytest.raises(ValueError, match=message):
        convert_image_folder(source, tmp_path / "set", **NO_DRAWS)


def test_what_is_said_of_a_table(tmp_path):
    source = write_pictures(tmp_path / "photos", ["0.png", "1.png"])
    (source / "metadata.csv").write_text("file_name,mass,split,PatientID\n0.png,,train,7\n1.png,,test,8\n")
    info, report = convert(source, tmp_path / "set", columns=ColumnNames(label_columns=["mass"]))
    assert report["unlabelled"] == 2
    for said in ("No image has a known label", "The column 'split' names splits, but is not used", "'PatientID'"):
        assert any(said in note for note in info.notes)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("validation_share", float("nan")), ("validation_share", 100), ("test_share", -1), ("seed", -1)),
        *(("num_workers", 0), ("image_size", 0)),
    ],
)
def test_options_out_of_range(tmp_path, option, value):
    source = write_pictures(tmp_path / "photos", CLASSES)
    with pytest.raises(ValueError, match=f"`{option}` must be"):
        convert_image_folder(source, tmp_path / "set", **{option: value})
    assert not (tmp_path / "set").exists()


def test_identifiers_are_kept_as_written(tmp_path):
    source = write_pictures(tmp_path / "photos", [f"{index}.png" for index in range(5)])
    written = [("007", "000100"), ("7", "100"), (" 7 ", "101"), ("", "102"), ("1.0", "")]
    rows = [f"{index}.png,{'ab'[index % 2]},{patient},{image}" for index, (patient, image) in enumerate(written)]
    (source / "metadata.csv").write_text("\n".join(["file_name,label,patient_id,image_id", *rows]))
    info, _ = convert(source, tmp_path / "set")
    found = {name: row["patient_id"] for name, row in rows_by_id(tmp_path / "set").items()}
    assert found == {"000100": "007", "100": "7", "101": "7", "102": "102", "4.png": "1.0"}
    assert any("1 images without 'patient_id'" in note for note in info.notes)
    with pytest.raises(ValueError, match=r"no column 'patients' \(`patient_id`\)"):
        convert_image_folder(source, tmp_path / "other", columns=ColumnNames(patient_id="patients"), **NO_DRAWS)


@pytest.mark.parametrize("name", ["None", "NA", "null", "nan"])
def test_a_class_may_have_the_name_of_nothing(tmp_path, name):
    source = write_pictures(tmp_path / "photos", ["0.png", "1.png", "2.png"])
    (source / "metadata.csv").write_text(f"file_name,label\n0.png,{name}\n1.png,Mild\n2.png,\n")
    info, report = convert(source, tmp_path / "set")
    assert sorted(info.label_names) == sorted([name, "Mild"])
    assert report["unlabelled"] == 1
    assert any(f"The text {name!r} is a class (1 images)" in note for note in info.notes)


def write_shard(path, rows, **features):
    path.parent.mkdir(parents=True, exist_ok=True)
    features = {"image": datasets.Image(), **features}
    pq.write_table(pa.Table.from_pylist(rows, schema=datasets.Features(features).arrow_schema), path)


def picture_cell(index):
    return {"bytes": encode_png(random_picture(index)), "path": None}


def test_unused_columns_are_never_decoded(tmp_path):
    torn = {"bytes": b"torn", "path": None}
    rows = [{"image": picture_cell(index), "mask": torn, "label": "ab"[index % 2]} for index in range(4)]
    features = {"mask": datasets.Image(), "label": datasets.Value("string")}
    write_shard(tmp_path / "[x]::y/data/train-00000-of-00001.parquet", rows, **features)
    for convert_it in (convert_hub_dataset, convert_image_folder):
        info = convert_it(str(tmp_path / "[x]::y"), tmp_path / "set", overwrite=True, **NO_DRAWS)
        assert info.num_rows == {"train": 4}


def test_patients_that_differ_in_space_are_one(tmp_path):
    features = {"label": datasets.Value("string"), "patient_id": datasets.Value("string")}
    for split, patient in (("train", "p0"), ("test", "p0 ")):
        rows = [{"image": picture_cell(index), "label": "ab"[index % 2], "patient_id": patient} for index in range(2)]
        write_shard(tmp_path / f"source/data/{split}-00000-of-00001.parquet", rows, **features)
    with pytest.raises(ValueError, match="'p0' is in 'train' and 'test'"):
        convert_hub_dataset(str(tmp_path / "source"), tmp_path / "set")


def test_parquet_files_that_are_refused(tmp_path):
    rows = [{"image": picture_cell(index), "label": "ab"[index % 2]} for index in range(2)]
    path = tmp_path / "source/train.parquet"
    write_shard(path, rows, label=datasets.Value("string"))
    write_shard(tmp_path / "source/latest.parquet", rows, label=datasets.Value("string"))
    with pytest.raises(ValueError, match=r"The split of 'latest\.parquet' cannot be told"):
        convert_hub_dataset(str(tmp_path / "source"), tmp_path / "set")
    (tmp_path / "source/latest.parquet").unlink()
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ValueError, match=r"train\.parquet is damaged or no parquet file"):
        convert_hub_dataset(str(tmp_path / "source"), tmp_path / "set")
