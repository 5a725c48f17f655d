import os
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.explanation import bad_pictures

from mediffusion_diffusers.data.input_rows import InputColumns, InputRow, RowReader, read_picture, read_rows
from mediffusion_diffusers.data.input_shards import (
    InputShard,
    UnreadableShardError,
    find_dataset,
    inspect_shards,
)
from mediffusion_diffusers.data.phantom import PHANTOM_LABELS
from mediffusion_diffusers.data.pictures import open_picture
from mediffusion_diffusers.image_processor import MediffusionImageProcessor, denormalize


def test_a_folder_a_file_and_a_pattern(phantoms):
    dataset = find_dataset(phantoms)
    assert [shard.name for shard in dataset.shards] == [
        *(f"data/train-0000{index}-of-00004.parquet" for index in range(4)),
        "data/validation-00000-of-00001.parquet",
    ]
    assert "Cardiomegaly" in dataset.label_names and dataset.name == "data"
    assert find_dataset(phantoms, "validation").shards == dataset.shards[4:]
    assert [shard.name for shard in find_dataset(dataset.shards[1].path).shards] == ["train-00001-of-00004.parquet"]
    pattern = find_dataset(f"{phantoms}/data/train-*1-of*.parquet")
    assert [shard.path for shard in pattern.shards] == [dataset.shards[1].path]


@pytest.mark.parametrize("folder", ["study [2021]", "a*b", "what?"])
def test_brackets_and_stars_of_a_folder_are_letters(phantoms, tmp_path, folder):
    shutil.copytree(phantoms, tmp_path / folder / "data")
    for place in ("", "/data", "/**/*.parquet", "/data/data/*.parquet"):
        found = find_dataset(f"{tmp_path / folder}{place}")
        assert [Path(shard.path).name for shard in found.shards] == [
            Path(shard.path).name for shard in find_dataset(phantoms).shards
        ]


def test_what_is_no_dataset(phantoms, tmp_path):
    with pytest.raises(ValueError, match="must be a folder, a parquet file, a pattern or `organisation/name`"):
        find_dataset(tmp_path / "nowhere" / "deep")
    with pytest.raises(ValueError, match=r"must hold parquet files.*holds none.*mediffusion prepare"):
        find_dataset(tmp_path)
    with pytest.raises(ValueError, match=r"of the split 'test'.*holds others"):
        find_dataset(phantoms, "test")


def test_the_identity_is_that_of_the_content(phantoms, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(phantoms, copy)
    os.utime(copy / "data" / "train-00000-of-00004.parquet", (0, 0))
    table = pq.read_table(copy / "data" / "train-00001-of-00004.parquet")
    pq.write_table(table.take([1, 0, *range(2, len(table))]), copy / "data" / "train-00001-of-00004.parquet")
    before, after = (inspect_shards(find_dataset(folder, "train").shards) for folder in (phantoms, copy))
    assert [shard.num_rows for shard in before] == [8, 8, 8, 6]
    same = [one.identity == other.identity for one, other in zip(before, after, strict=True)]
    assert same == [True, False, True, True]


def test_a_broken_file_is_noted_and_the_others_are_read(phantoms, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(phantoms, copy)
    path = copy / "data" / "train-00001-of-00004.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    shards = inspect_shards(find_dataset(copy, "train").shards)
    assert [shard.problem is None for shard in shards] == [True, False, True, True]
    assert "Cannot read shard data/train-00001-of-00004.parquet" in shards[1].problem
    with pytest.raises(UnreadableShardError, match="train-00001"):
        list(
            read_rows(
                shards[0].__class__(**{**vars(shards[0]), "name": "train-00001", "path": str(path)}), InputColumns()
            )
        )


@pytest.mark.parametrize("first", [0, 1, 3, 5, 7])
def test_rows_from_any_place_on(phantoms, first):
    (shard, *_) = inspect_shards(find_dataset(phantoms, "train").shards)
    columns = InputColumns(label_names=tuple(PHANTOM_LABELS))
    rows = list(read_rows(shard, columns))
    assert [row.number for row in rows] == list(range(8)) and len({row.image_id for row in rows}) == 8
    assert list(read_rows(shard, columns, first)) == rows[first:]
    assert set(rows[0].present_labels(5)) <= {0.0, 1.0}
    reader = RowReader(columns)
    for start, stop in ((first, 8), (0, first), (first, 8), (first, first)):
        assert list(reader.rows(shard, start, stop)) == rows[start:stop]


def test_a_stretch_goes_on_where_the_last_one_ended(phantoms, monkeypatch):
    shard, other, *_ = inspect_shards(find_dataset(phantoms, "train").shards)
    opened, open_shard = [], InputShard.open
    monkeypatch.setattr(InputShard, "open", lambda self: opened.append(self.name) or open_shard(self))
    reader = RowReader()
    for start, stop in ((0, 3), (3, 5), (5, 8)):
        assert [row.number for row in reader.rows(shard, start, stop)] == list(range(start, stop))
    assert opened == [shard.name]
    next(reader.rows(other, 0, 3))
    list(reader.rows(other, 3, 8))
    assert opened == [shard.name, other.name, other.name]


def test_columns_that_are_not_there(phantoms):
    (shard, *_) = inspect_shards(find_dataset(phantoms, "train").shards)
    with pytest.raises(ValueError, match=r"`image_column` 'picture' is not in data/train-00000.*'image'"):
        list(read_rows(shard, InputColumns("picture")))
    assert next(read_rows(shard, InputColumns(image_id="name"))).image_id is None


def test_a_picture_is_what_the_pipeline_would_read(phantoms):
    (shard, *_) = inspect_shards(find_dataset(phantoms, "train").shards)
    row = next(read_rows(shard, InputColumns()))
    processor = MediffusionImageProcessor(1)
    for size in ((16, 16), (12, 20)):
        expected = denormalize(processor.preprocess(open_picture(row.picture), *size))[0]
        assert (read_picture(row, 1, *size) - expected).abs().max() < 1e-6


@pytest.mark.parametrize("picture, reason", bad_pictures(), ids=["truncated", "text", "frames", "NaN", "null"])
def test_the_reason_of_a_bad_picture_is_the_same_every_time(picture, reason):
    row = InputRow(0, None, picture and picture["bytes"])
    reasons = set()
    for _ in range(2):
        with pytest.raises(ValueError, match=reason) as caught:
            read_picture(row, 1, 16, 16)
        reasons.add(str(caught.value))
    assert len(reasons) == 1 and "0x" not in reasons.pop()


def test_a_row_that_cannot_be_read_has_its_reason(tmp_path):
    ids = pa.array([b"a", b"\xff\xfe", b"c"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"image": pa.array([b"1", b"2", b"3"]), "image_id": ids}), tmp_path / "rows.parquet")
    (shard,) = inspect_shards(find_dataset(tmp_path).shards)
    rows = list(read_rows(shard, InputColumns()))
    assert [(row.number, row.image_id, row.picture) for row in rows] == [
        (0, "a", b"1"),
        (1, None, None),
        (2, "c", b"3"),
    ]
    with pytest.raises(ValueError, match="Cannot read the row: 'utf-8' codec can't decode"):
        read_picture(rows[1], 1, 8, 8)
