"""Datasets of the Hub, of parquet files, or any other of `datasets`, as a prepared dataset."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from ..listing import Listing, list_files
from ..parquet_shards import load_shards, open_shard
from ..schema import SPLIT_OF_NAME, SPLITS, DatasetInfo
from ..writer import ConversionReport, check_output_folder
from .table_rows import ColumnNames, TableRow, TableSource, convert_table, find_name, label_columns, require_name


if TYPE_CHECKING:
    import datasets


# "train.parquet" or "train-00000-of-00002.parquet"; below the folder "data" or at the top.
_SHARD = re.compile(r"(?P<split>[a-z]+)([-_.]\d+([-_]of[-_]\d+)?)?\.parquet", re.IGNORECASE)


def convert_hub_dataset(
    dataset_name: str,
    output_dir: str | os.PathLike[str],
    *,
    config: str | None = None,
    revision: str | None = None,
    **kwargs: Any,
) -> DatasetInfo:
    """Convert a dataset of the Hub, a folder of parquet files or images, or any other that `datasets` loads.

    The split of a parquet file is its folder at the top, or its name before the number (as in
    "test-00000-of-00001.parquet"), if either is the whole name of a split; without any such, all files are training.

    Args:
        dataset_name: e.g. `"org/name"`, or a folder.
        output_dir: prepared dataset to write.
        config: configuration of the dataset, if it has several.
        revision: branch, tag or commit.
        kwargs: see `convert_table`.

    Raises:
        ValueError: if it cannot be read, or for anything that `convert_dataset` refuses.
    """
    import datasets

    check_output_folder(output_dir, kwargs.get("overwrite", False))
    kwargs.setdefault("name", Path(dataset_name).resolve().name)
    if Path(dataset_name).is_dir() and config is None:
        listing = list_files(dataset_name)
        if any(_is_shard(name) for name in listing.files):
            kwargs.setdefault("source", "parquet files")
            return _convert_parquet(listing, output_dir, **kwargs)
        if listing.pictures():
            from .image_folder import convert_image_folder

            return convert_image_folder(dataset_name, output_dir, **kwargs)
    try:
        loaded = datasets.load_dataset(dataset_name, config, revision=revision)
    except (ImportError, OSError, ValueError):
        raise
    except Exception as error:  # `datasets` wraps what is wrong with a file into errors of its own
        raise ValueError(f"`dataset_name` {dataset_name!r} cannot be read: {error.__cause__ or error}.") from error
    kwargs.setdefault("source", f"https://huggingface.co/datasets/{dataset_name}")
    return convert_dataset(loaded, output_dir, **kwargs)


def convert_dataset(
    dataset: datasets.DatasetDict,
    output_dir: str | os.PathLike[str],
    *,
    columns: ColumnNames | None = None,
    root: Path | None = None,
    report: ConversionReport | None = None,
    **kwargs: Any,
) -> DatasetInfo:
    """Convert a `datasets.DatasetDict` with pictures.

    Columns that are neither labels, identifiers, texts nor numbers are not read.

    Args:
        dataset: splits named train, validation (or valid, val, dev) and test, in any case.
        output_dir: prepared dataset to write.
        columns: where to find image, labels and identifiers.
        root: folder that file names are given relative to.
        report: what was left out so far.
        kwargs: see `convert_table`.

    Raises:
        ValueError: for unknown splits or columns, a cell that cannot be read, or what `convert_table` refuses.
    """
    columns = columns or ColumnNames()
    check_output_folder(output_dir, kwargs.get("overwrite", False))
    parts = _parts_by_split(dataset)
    first = next(iter(parts.values())).features
    image = require_name(list(first), columns.image, "image_column")
    cells = _columns_to_read(first, image, columns)
    rows = {}
    for split, part in parts.items():
        pictures = _as_images(part, image)
        records = _records(part, split, cells)
        rows[split] = _table_rows(split, pictures, image, records, root)
    table = TableSource(rows, cells, _class_names(first, cells), report or ConversionReport())
    return convert_table(table, output_dir, columns=columns, **kwargs)


@dataclass(frozen=True)
class _Picture:
    """A picture of a dataset that is read when it is asked for: together they may not fit into memory."""

    part: datasets.Dataset
    index: int
    column: str

    @property
    def content(self) -> str:
        """What tells the picture from others."""
        return f"{self.part._fingerprint} {self.index} {self.column}"

    def __call__(self) -> bytes | str:
        picture = self.part[self.index][self.column] or {}
        content = picture.get("bytes") or picture.get("path")
        if not content:
            raise ValueError(f"Row {self.index} has no image.")
        return content


def _convert_parquet(listing: Listing, output_dir: str | os.PathLike[str], **kwargs: Any) -> DatasetInfo:
    """Convert the parquet files of a folder."""
    import datasets

    shards = [name for name in listing.files if _is_shard(name)]
    by_split: dict[str, list[str]] = {}
    for name in shards:
        by_split.setdefault(_split_of_shard(name) or "", []).append(name)
    if len(by_split) > 1 and "" in by_split:
        raise ValueError(
            f"The split of {by_split[''][0]!r} cannot be told, while other parquet files name theirs. Call it such as "
            "train-00000-of-00001.parquet."
        )
    by_split = {split or "train": names for split, names in by_split.items()}
    loaded = datasets.DatasetDict()
    wanted = kwargs.get("columns") or ColumnNames()
    for split, names in by_split.items():
        files = [listing.files[name] for name in names]
        schema = datasets.Features.from_arrow_schema(open_shard(files[0]).schema_arrow)
        image = require_name(list(schema), wanted.image, "image_column")
        used = [image, *_columns_to_read(schema, image, wanted)]
        loaded[split] = load_shards(files, split, datasets.Features({name: schema[name] for name in used}))
    # Rows are converted here, and not files: the files' account is a note.
    listing.set_aside(shards)
    report = ConversionReport(tables=shards, ignored=listing.ignored)
    for name, reason in listing.skipped:
        report.skip(name, reason)
    return convert_dataset(loaded, output_dir, report=report, **kwargs)


def _is_shard(name: str) -> bool:
    return name.lower().endswith(".parquet") and PurePosixPath(name).name.lower() != "metadata.parquet"


def _split_of_shard(name: str) -> str | None:
    top, _, rest = name.partition("/")
    if rest and top.lower() in SPLIT_OF_NAME:
        return SPLIT_OF_NAME[top.lower()]
    match = _SHARD.fullmatch(PurePosixPath(name).name)
    return SPLIT_OF_NAME.get(match["split"].lower()) if match else None


def _parts_by_split(dataset: datasets.DatasetDict) -> dict[str, datasets.Dataset]:
    """The splits under our names."""
    unknown = [split for split in dataset if split.lower() not in SPLIT_OF_NAME]
    if unknown:
        raise ValueError(f"The splits of the dataset must be among {sorted(SPLIT_OF_NAME)}, but it has {unknown}.")
    parts: dict[str, datasets.Dataset] = {}
    for split, part in dataset.items():
        name = SPLIT_OF_NAME[split.lower()]
        if name in parts:
            raise ValueError(f"The dataset has two {name} splits: {list(dataset)}.")
        parts[name] = part
    return {split: parts[split] for split in SPLITS if split in parts}


def _as_images(part: datasets.Dataset, column: str) -> datasets.Dataset:
    """Only the pictures, not decoded."""
    import datasets

    feature = part.features.get(column)
    is_bytes = isinstance(feature, datasets.Value) and feature.dtype in ("binary", "large_binary")
    is_file = isinstance(feature, dict) and set(feature) == {"bytes", "path"}
    if not isinstance(feature, datasets.Image) and not is_bytes and not is_file:
        raise ValueError(f"The column {column!r} must hold images, but holds {feature}.")
    return part.select_columns([column]).cast_column(column, datasets.Image(decode=False))


def _columns_to_read(features: Mapping[str, Any], image: str, columns: ColumnNames) -> list[str]:
    """Labels, identifiers, texts and numbers; everything else stays unread, whatever is in it."""
    import datasets

    others = [name for name in features if name != image]
    named = {
        *label_columns(others, columns),
        *(find_name(others, name) for name in (columns.patient_id, columns.image_id)),
    }
    plain = (datasets.Value, datasets.ClassLabel)
    return [name for name in others if name in named or isinstance(features[name], plain)]


def _class_names(features: Mapping[str, Any], columns: Sequence[str]) -> dict[str, list[str]]:
    import datasets

    found = {}
    for name in columns:
        feature = features[name]
        if isinstance(feature, list):
            feature = feature[0]
        elif isinstance(feature, (datasets.List, datasets.LargeList)):
            feature = feature.feature
        if isinstance(feature, datasets.ClassLabel):
            found[name] = list(feature.names)
    return found


def _records(part: datasets.Dataset, split: str, columns: Sequence[str]) -> list[dict[str, Any]]:
    """The cells of all rows.

    Raises:
        ValueError: naming the row and column that cannot be read.
    """
    table = part.select_columns(list(columns))
    try:
        return table.to_list()
    except Exception:
        for index in range(len(table)):
            for column in columns:
                try:
                    table.select([index]).select_columns([column]).to_list()
                except Exception as error:
                    raise ValueError(f"{split}, row {index}, column {column!r} cannot be read: {error}.") from error
        raise


def _table_rows(
    split: str, pictures: datasets.Dataset, image: str, records: Sequence[dict[str, Any]], root: Path | None
) -> list[TableRow]:
    rows = []
    for index, (cells, path) in enumerate(zip(records, _file_paths(pictures, image), strict=True)):
        # File names repeat between folders and shards, so without a root they do not identify an image.
        file = name = f"{split}-{index:06d}"
        if path and root is not None and Path(path).is_relative_to(root):
            file = name = Path(path).relative_to(root).as_posix()
        elif path:
            file = f"{name} ({Path(path).name})"
        rows.append(TableRow(name, _Picture(pictures, index, image), cells, file, file))
    return rows


def _file_paths(pictures: datasets.Dataset, column: str) -> list[str | None]:
    """The path in every row's image, read without the bytes."""
    paths: list[str | None] = []
    for table in pictures.with_format("arrow").iter(batch_size=1000):
        paths += table[column].combine_chunks().field("path").to_pylist()
    return paths
