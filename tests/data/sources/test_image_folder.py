import json

import datasets
import numpy as np
import pytest
from support.sources import random_picture

from mediffusion_diffusers.data import (
    ColumnNames,
    convert_dataset,
    convert_hub_dataset,
    convert_image_folder,
    label_matrix,
    load_prepared,
)


NO_DRAWS = {"test_share": 0, "validation_share": 0, "num_workers": 2}


def write_pictures(folder, names, mode="L"):
    for index, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        random_picture(index, mode=mode).save(path)
    return folder


def rows_by_id(folder, split="train"):
    return {row["image_id"]: row for row in load_prepared(folder, split)}


def test_one_folder_per_class(tmp_path):
    names = [f"{kind}/{index}.png" for kind in ("well", "sick") for index in range(10)]
    source = write_pictures(tmp_path / "photos", names, "RGB")
    info = convert_image_folder(source, tmp_path / "set", test_share=20, validation_share=25)
    assert (info.name, info.channels) == ("photos", 3)
    assert (info.problem_type, info.label_names) == ("single_label_classification", ["sick", "well"])
    assert info.num_rows == {"train": 12, "validation": 4, "test": 4}
    row = rows_by_id(tmp_path / "set", "test").popitem()[1]
    assert info.label_names[row["label"]] == row["image_id"].split("/")[0]
    np.testing.assert_array_equal(
        np.asarray(row["image"]), np.asarray(random_picture(names.index(row["image_id"]), mode="RGB"))
    )


def test_given_splits_are_kept(tmp_path):
    names = [
        f"{split}/{kind}/{index}.png" for split in ("train", "val", "test") for kind in "ab" for index in range(3)
    ]
    info = convert_image_folder(write_pictures(tmp_path / "photos", names), tmp_path / "set")
    assert info.num_rows == {"train": 6, "validation": 6, "test": 6}
    assert info.channels == 1
    assert all(name.startswith("test/") for name in rows_by_id(tmp_path / "set", "test"))


def test_csv_with_patients_and_missing_labels(tmp_path):
    source = write_pictures(tmp_path / "photos", [f"{index}.png" for index in range(6)], "I;16")
    rows = [f"{index}.png,{('1', '0', '')[index % 3]},{index % 2},p{index // 2},3{index}" for index in range(6)]
    (source / "metadata.csv").write_text("\n".join(["file_name,mass,edema,patient_id,age", *rows]))
    columns = ColumnNames(label_columns=["mass", "edema"])
    info = convert_image_folder(source, tmp_path / "set", columns=columns, **NO_DRAWS)
    assert info.label_names == ["mass", "edema"]
    found = rows_by_id(tmp_path / "set")
    np.testing.assert_array_equal(
        [found[f"{index}.png"]["labels"] for index in range(3)], [[1, 0], [0, 1], [np.nan, 0]]
    )
    assert found["5.png"]["patient_id"] == "p2"
    assert json.loads(found["5.png"]["metadata"]) == {"age": 35}
    assert found["5.png"]["image"].mode == "I;16"
    np.testing.assert_array_equal(np.asarray(found["5.png"]["image"]), np.asarray(random_picture(5, mode="I;16")))


def test_jsonl_with_lists(tmp_path):
    source = write_pictures(tmp_path / "photos", ["0.png", "1.png", "2.png"])
    labels = [["mass", "edema"], [], None]
    lines = [json.dumps({"file_name": f"{index}.png", "labels": value}) for index, value in enumerate(labels)]
    (source / "metadata.jsonl").write_text("\n".join(lines))
    info = convert_image_folder(source, tmp_path / "set", **NO_DRAWS)
    assert info.label_names == ["edema", "mass"]
    found = rows_by_id(tmp_path / "set")
    # An empty list means no finding; null means unknown.
    np.testing.assert_array_equal(
        [found[f"{index}.png"]["labels"] for index in range(3)], [[1, 1], [0, 0], [np.nan] * 2]
    )


@pytest.mark.parametrize(("values", "names"), [([2, 10, None], ["2", "10"]), (["b", "a", ""], ["a", "b"])])
def test_classes_of_numbers_or_texts(tmp_path, values, names):
    pictures = [random_picture(index) for index in range(3)]
    dataset = datasets.Dataset.from_dict({"image": pictures, "label": values}).cast_column("image", datasets.Image())
    info = convert_dataset(datasets.DatasetDict(train=dataset), tmp_path / "set", name="toy", **NO_DRAWS)
    assert info.label_names == names
    assert load_prepared(tmp_path / "set")["label"][2] == -1
    np.testing.assert_array_equal(label_matrix(load_prepared(tmp_path / "set"), info)[:2].sum(axis=0), [1, 1])


def test_dataset_of_parquet_as_from_the_hub(tmp_path):
    features = datasets.Features(
        {
            "picture": datasets.Image(),
            "finding": datasets.ClassLabel(names=["none", "mass"]),
            "case": datasets.Value("int64"),
        }
    )
    rows = [{"picture": random_picture(index), "finding": index % 2, "case": index // 2} for index in range(8)]
    (tmp_path / "repository/data").mkdir(parents=True)
    part = datasets.Dataset.from_list(rows, features=features)
    part.to_parquet(tmp_path / "repository/data/train-00000-of-00001.parquet")
    part.to_parquet(tmp_path / "repository/data/test-00000-of-00001.parquet")
    columns = ColumnNames(image="picture", label="finding", patient_id="case")
    with pytest.raises(ValueError, match="'0' is in 'train' and 'test'"):
        convert_hub_dataset(str(tmp_path / "repository"), tmp_path / "set", columns=columns, validation_share=0)
    (tmp_path / "repository/data/test-00000-of-00001.parquet").unlink()
    info = convert_hub_dataset(str(tmp_path / "repository"), tmp_path / "set", columns=columns, **NO_DRAWS)
    assert (info.name, info.label_names) == ("repository", ["none", "mass"])
    found = rows_by_id(tmp_path / "set")
    assert found["train-000005"]["label"] == 1
    assert found["train-000005"]["patient_id"] == "2"
    np.testing.assert_array_equal(np.asarray(found["train-000005"]["image"]), np.asarray(random_picture(5)))


def test_corrupt_images_are_named(tmp_path):
    source = write_pictures(tmp_path / "photos", ["a/0.png", "a/1.png", "a/2.png", "b/2.png"])
    (source / "a/0.png").write_bytes(b"\x89PNG\r\n torn")
    (source / "a/1.png").write_text("text")
    info = convert_image_folder(source, tmp_path / "set", **NO_DRAWS)
    assert info.num_rows == {"train": 2}
    skipped = json.loads((tmp_path / "set/conversion_report.json").read_text())["skipped"]
    assert [entry["file"] for entry in skipped] == ["a/0.png", "a/1.png"]
    assert not any(str(tmp_path) in entry["reason"] for entry in skipped)
    with pytest.raises(ValueError, match=r"Cannot decode a/0\.png"):
        convert_image_folder(source, tmp_path / "strict", strict=True, **NO_DRAWS)


def test_refuses(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="must be a folder with images"):
        convert_image_folder(tmp_path / "empty", tmp_path / "set")
    flat = write_pictures(tmp_path / "flat", ["0.png", "1.png"])
    with pytest.raises(ValueError, match=r"no picture, such as '0\.png', lies in a class folder"):
        convert_image_folder(flat, tmp_path / "set")
    with pytest.raises(ValueError, match=r"no table such as metadata\.csv"):
        convert_image_folder(flat, tmp_path / "set", columns=ColumnNames(label="kind"))
    (flat / "metadata.csv").write_text("file_name,mass\n0.png,1\n1.png,2\n")
    with pytest.raises(ValueError, match=r"1\.png, column 'mass': a label must be 1"):
        convert_image_folder(flat, tmp_path / "set", columns=ColumnNames(label_columns=["mass"]), **NO_DRAWS)
    (flat / "metadata.csv").write_text("name,mass\n0.png,1\n")
    with pytest.raises(ValueError, match=r"metadata\.csv must have a column 'file_name'"):
        convert_image_folder(flat, tmp_path / "set")
    (flat / "metadata.csv").write_text("file_name,label\n")
    with pytest.raises(ValueError, match=r"metadata\.csv must have a row for each picture"):
        convert_image_folder(flat, tmp_path / "set")
    (flat / "metadata.csv").write_text("")
    with pytest.raises(ValueError, match=r"table metadata\.csv .* cannot be used: the file is empty"):
        convert_image_folder(flat, tmp_path / "set")
    pictures = datasets.Dataset.from_dict({"image": ["a", "b"], "label": [0, 1]})
    with pytest.raises(ValueError, match="must hold images"):
        convert_dataset(datasets.DatasetDict(train=pictures), tmp_path / "set", name="toy")
    with pytest.raises(ValueError, match=r"it has \['extra'\]"):
        convert_dataset(datasets.DatasetDict(extra=pictures), tmp_path / "set", name="toy")
    assert not (tmp_path / "set").exists()
