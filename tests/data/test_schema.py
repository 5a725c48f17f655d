import dataclasses
import json
import math
import shutil

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from support.sources import random_picture

from mediffusion_diffusers.data import (
    ConversionReport,
    DatasetInfo,
    encode_png,
    format_summary,
    label_matrix,
    load_info,
    load_prepared,
    make_row,
    summarize_prepared,
    write_prepared,
)
from mediffusion_diffusers.data.metadata import metadata_text, read_metadata


MULTI, SINGLE = "multi_label_classification", "single_label_classification"


def make_info(problem_type=MULTI, **kwargs):
    values = {"label_names": ["Mass", "Edema"], "channels": 1, **kwargs}
    return DatasetInfo("toy", "drawn", "CC0", "nobody", problem_type, **values)


def make_rows(info, num, start=0, **kwargs):
    for index in range(start, start + num):
        image = encode_png(random_picture(index))
        yield make_row(info, image, f"im{index}", f"p{index // 2}", metadata={"age": 40 + index, "sex": "F"}, **kwargs)


def test_what_is_written_is_what_is_read(tmp_path):
    info = make_info()
    box = {"label": 1, "x": 0.25, "y": 0.0, "width": 0.5, "height": 1.0}
    rows = [
        make_row(info, encode_png(random_picture(0)), "a", "p", [1, 0], boxes=[box], metadata={"age": 3.0}),
        make_row(info, None, "b", None, [None, math.nan]),
        make_row(info, encode_png(random_picture(1)), "c"),
    ]
    saved = write_prepared(tmp_path / "set", {"train": rows, "test": make_rows(info, 4, 10)}, info)
    assert load_info(tmp_path / "set") == saved
    assert saved.num_rows == {"train": 3, "test": 4}
    assert saved.demographics["test"]["age"]["mean"] == 51.5
    assert saved.demographics["test"]["patients"] == 2

    dataset = load_prepared(tmp_path / "set")
    assert dataset["image_id"][:] == ["a", "b", "c"]
    assert dataset["patient_id"][:] == ["p", "b", "c"]  # an image without a patient is its own
    np.testing.assert_array_equal(np.asarray(dataset[0]["image"]), np.asarray(random_picture(0)))
    assert dataset[1]["image"] is None
    assert dataset[0]["boxes"] == [box]
    assert json.loads(dataset[0]["metadata"]) == {"age": 3.0}
    np.testing.assert_array_equal(label_matrix(dataset, info), [[1, 0], [np.nan] * 2, [np.nan] * 2])

    # Anyone can load the folder without this package, and the quick way gives the same.
    theirs = datasets.load_dataset(str(tmp_path / "set"))
    assert {split: len(part) for split, part in theirs.items()} == saved.num_rows
    assert theirs["train"].features == dataset.features
    quick = load_prepared(tmp_path / "set", columns=["labels", "image_id"])
    assert quick["image_id"][:] == dataset["image_id"][:]
    assert quick.features["labels"] == dataset.features["labels"]
    np.testing.assert_array_equal(label_matrix(quick, info), label_matrix(dataset, info))


def test_single_label_matrix_is_one_hot_or_unknown(tmp_path):
    info = make_info(SINGLE)
    rows = [make_row(info, None, str(label), label=label) for label in (1, 0, -1)] + [make_row(info, None, "none")]
    write_prepared(tmp_path / "set", {"train": rows}, info)
    matrix = label_matrix(load_prepared(tmp_path / "set"), info)
    np.testing.assert_array_equal(matrix, [[0, 1], [1, 0], [np.nan] * 2, [np.nan] * 2])
    assert matrix.dtype == np.float32


def test_shards_hold_all_rows_in_order(tmp_path):
    info = make_info()
    write_prepared(tmp_path / "set", {"train": make_rows(info, 3000)}, info, shard_size=1, show_progress=False)
    names = sorted(path.name for path in (tmp_path / "set/data").iterdir())
    assert names == [f"train-{index:05d}-of-00003.parquet" for index in range(3)]
    assert load_prepared(tmp_path / "set")["image_id"][:] == [f"im{index}" for index in range(3000)]


def test_summary_counts(tmp_path):
    info = make_info()
    known = [make_row(info, None, "x", "px", [0, 0]), make_row(info, None, "y", "px", [1, None])]
    write_prepared(tmp_path / "set", {"train": [*known, *make_rows(info, 4)]}, info)
    train = summarize_prepared(tmp_path / "set")["train"]
    assert (train.images, train.pictures, train.patients, train.labelled, train.no_finding) == (6, 4, 3, 2, 1)
    assert train.positives == {"Mass": 1, "Edema": 0}
    assert "Mass" in format_summary(info, {"train": train})


def test_a_failure_leaves_nothing_and_keeps_what_was_there(tmp_path):
    info = make_info()
    write_prepared(tmp_path / "set", {"train": make_rows(info, 2)}, info)

    def broken():
        yield from make_rows(info, 1)
        raise RuntimeError("the disk is gone")

    for overwrite, folder in ((True, "set"), (False, "new")):
        with pytest.raises(RuntimeError, match="disk"):
            write_prepared(tmp_path / folder, {"train": broken()}, info, overwrite=overwrite)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    assert len(load_prepared(tmp_path / "set")) == 2

    write_prepared(tmp_path / "set", {"train": make_rows(info, 5)}, info, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    assert len(load_prepared(tmp_path / "set")) == 5


def test_writer_refuses(tmp_path):
    info = make_info()
    write_prepared(tmp_path / "set", {"train": make_rows(info, 2)}, info)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter.txt").write_text("dear")

    def write(folder, overwrite=False, **splits):
        return write_prepared(tmp_path / folder, splits, info, overwrite=overwrite)

    with pytest.raises(ValueError, match="already holds a prepared dataset"):
        write("set", train=make_rows(info, 2))
    with pytest.raises(ValueError, match="holds other files"):
        write("mine", overwrite=True, train=make_rows(info, 2))
    with pytest.raises(ValueError, match="'im0' is there twice"):
        write("new", train=[*make_rows(info, 1), *make_rows(info, 1)])
    with pytest.raises(ValueError, match="'p0' is in 'train' and 'test'"):
        write("new", train=make_rows(info, 1), test=make_rows(info, 1, 1))
    with pytest.raises(ValueError, match="must be among"):
        write("new", training=make_rows(info, 1))
    report = ConversionReport(skipped=[{"file": "a.png", "reason": "it is torn"}])
    with pytest.raises(ValueError, match=r"No image of toy could be converted.*it is torn"):
        write_prepared(tmp_path / "new", {"train": []}, info, report=report)
    assert not (tmp_path / "new").exists()


def test_loading_refuses(tmp_path):
    with pytest.raises(ValueError, match="must be a prepared dataset"):
        load_prepared(tmp_path)
    info = make_info()
    write_prepared(tmp_path / "set", {"train": make_rows(info, 2)}, info)
    with pytest.raises(ValueError, match=r"`split` must be one of \['train'\]"):
        load_prepared(tmp_path / "set", "test")
    with pytest.raises(ValueError, match="must have the column 'label'"):
        label_matrix(load_prepared(tmp_path / "set", columns=["labels"]), make_info(SINGLE))
    (tmp_path / "set/dataset_info.json").write_text("{]")
    with pytest.raises(ValueError, match="Cannot read"):
        load_info(tmp_path / "set")


def test_damaged_datasets_are_named(tmp_path):
    info = make_info()
    folder = tmp_path / "set"
    shard = folder / "data/train-00000-of-00002.parquet"

    def refuse(message):
        for columns in (None, ["image_id"]):
            with pytest.raises(ValueError, match=message):
                load_prepared(folder, columns=columns)

    def write():
        write_prepared(folder, {"train": make_rows(info, 2000)}, info, shard_size=1, overwrite=True)

    write()
    shard.unlink()
    refuse("holds 1 of the 2 shards of 'train'")
    write()
    shard.write_bytes(shard.read_bytes()[:-20])
    refuse(r"train-00000-of-00002\.parquet is damaged")
    write()
    shutil.copy(folder / "data/train-00001-of-00002.parquet", shard)
    saved = load_info(folder)
    dataclasses.replace(saved, num_rows={"train": 1999}).save(folder)
    refuse(r"holds 2,000 rows of 'train', but dataset_info\.json names 1,999")
    with pytest.raises(ValueError, match="lacks the columns"):
        dataclasses.replace(saved, num_rows={}).save(folder)
        load_prepared(folder, columns=["label"])
    (folder / "dataset_info.json").write_text(json.dumps({**dataclasses.asdict(saved), "converter_version": "9"}))
    refuse(r"dataset_info\.json: it is of version '9', and this package reads version '1'")


def test_a_split_without_rows_is_refused(tmp_path):
    info = make_info()
    write_prepared(tmp_path / "set", {"train": make_rows(info, 2)}, info)
    schema = datasets.Features(load_prepared(tmp_path / "set").features).arrow_schema
    pq.write_table(schema.empty_table(), tmp_path / "set/data/test-00000-of-00001.parquet")
    with pytest.raises(ValueError, match="The split 'test' of 'toy' has no row"):
        load_prepared(tmp_path / "set", "test")


def test_one_run_per_output_folder_and_a_killed_one_is_cleared(tmp_path):
    info = make_info()
    place = tmp_path / ".set.writing"

    def rows():
        yield from make_rows(info, 1)
        with pytest.raises(ValueError, match="is in use by another run"):
            write_prepared(tmp_path / "set", {"train": make_rows(info, 1)}, info)

    write_prepared(tmp_path / "set", {"train": rows()}, info)
    assert not place.exists()
    # Killed between putting the old dataset aside and giving its name to the new one.
    (place / "written/data").mkdir(parents=True)
    (tmp_path / "set").rename(place / "previous")
    with pytest.raises(ValueError, match="already holds a prepared dataset"):
        write_prepared(tmp_path / "set", {"train": make_rows(info, 2)}, info)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    assert len(load_prepared(tmp_path / "set")) == 1


def test_a_linked_output_folder_stays_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "set").symlink_to(tmp_path / "disk")
    for num in (1, 2):
        write_prepared(tmp_path / "set", {"train": make_rows(make_info(), num)}, make_info(), overwrite=True)
        assert (tmp_path / "set").is_symlink()
        assert len(load_prepared(tmp_path / "disk")) == num


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_id": ""}, "`image_id` must not be empty"),
        ({"labels": [1]}, "must have 2 entries"),
        ({"labels": [0.5, 0]}, "must be 1, 0 or NaN"),
        ({"label": 1}, "belongs to single-label"),
        ({"boxes": [{"label": 2, "x": 0, "y": 0, "width": 1, "height": 1}]}, "class index below 2"),
        ({"boxes": [{"label": 0, "x": 0.6, "y": 0, "width": 0.5, "height": 1}]}, "inside the image"),
        ({"boxes": [{"label": 0, "x": 0, "y": 0, "width": 0, "height": 1}]}, "inside the image"),
    ],
)
def test_rows_outside_the_contract_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_row(make_info(), None, **{"image_id": "a", **arguments})


@pytest.mark.parametrize("label", [2, -2])
def test_single_label_must_be_a_class(label):
    with pytest.raises(ValueError, match="class index from 0 to 1"):
        make_row(make_info(SINGLE), None, "a", label=label)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"problem_type": "regression"}, "`problem_type`"),
        ({"channels": 4}, "`channels`"),
        ({"label_names": []}, "`label_names`"),
        ({"label_names": ["a", "a"]}, "`label_names`"),
        ({"image_size": 0}, "`image_size`"),
        ({"image_size": "16"}, "`image_size` must be a whole number at least 1, but got '16'"),
        ({"notes": "one"}, "`notes` must be a list of texts"),
        ({"notes": [3]}, "`notes` must be a list of texts"),
        ({"num_rows": [3]}, "`num_rows` must hold names and values"),
        ({"num_rows": {"train": "3"}}, r"`num_rows\['train'\]` must be a whole number"),
    ],
)
def test_info_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_info(**arguments)


@pytest.mark.parametrize("text", ["[]", "3", "[" * 100_000, '{"name": 3}', "\udcff", '{"converter_version": [1]}'])
def test_an_info_that_is_damaged_is_named(tmp_path, text):
    (tmp_path / "dataset_info.json").write_text(text, errors="surrogateescape")
    with pytest.raises(ValueError, match=f"Cannot read {tmp_path}/dataset_info.json: "):
        load_info(tmp_path)


NAN = math.nan


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("labels", [[1, 0], [1]], "must have 2 entries, but those of row 2 are not"),
        ("labels", [None, [1, 0], [1, 0, 1]], "must have 2 entries, but those of row 3 are not"),
        ("labels", [[1, 0], [NAN, 7.5]], r"must be 1, 0 or NaN \(unknown\), but those of row 2 are not"),
        ("labels", [[math.inf, 0]], "must be 1, 0 or NaN"),
        ("label", [0, 1, 2], "must be a class index from 0 to 1 or -1 .*, but those of row 3 are not"),
        ("label", [None, -2], "class index from 0 to 1 or -1 .*, but those of row 2 are not"),
    ],
)
def test_labels_outside_the_contract_are_refused_by_row(column, values, message):
    with pytest.raises(ValueError, match=message):
        label_matrix(datasets.Dataset.from_dict({column: values}), make_info(MULTI if column == "labels" else SINGLE))


def test_labels_that_are_missing_are_unknown():
    multi = datasets.Dataset.from_dict({"labels": [[1.0, None], None, [NAN, 0.0]]})
    np.testing.assert_array_equal(label_matrix(multi, make_info()), [[1, NAN], [NAN, NAN], [NAN, 0]])
    single = datasets.Dataset.from_dict({"label": [1, None, -1, 0]})
    expected = [[0, 1], [NAN, NAN], [NAN, NAN], [1, 0]]
    np.testing.assert_array_equal(label_matrix(single, make_info(SINGLE)), expected)
    np.testing.assert_array_equal(label_matrix(multi.select([2, 0]), make_info()), [[NAN, 0], [1, NAN]])


@pytest.mark.parametrize("text", ["[]", "3", "{", "[" * 100_000, '"Jane Doe"', 3])
def test_metadata_that_are_none_are_refused_without_what_they_say(text):
    with pytest.raises(ValueError, match="must be a JSON object") as refused:
        read_metadata(text)
    assert "Jane" not in str(refused.value)


def test_metadata_may_be_empty():
    assert read_metadata(None) == read_metadata("") == {}
    assert read_metadata(metadata_text({"age": 3, "sex": None, "dose": math.nan})) == {"age": 3}
