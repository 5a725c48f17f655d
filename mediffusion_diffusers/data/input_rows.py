"""The rows of an input shard, one after the other, and the pictures in them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from ..image_processor import pil_to_tensor
from ..item_boundary import reading, reason
from .input_shards import InputShard, UnreadableShardError, reading_shard
from .pictures import open_picture
from .schema import UNKNOWN_LABEL


READ_ROWS = 32  # rows read from a file at once


@dataclass(frozen=True)
class InputColumns:
    """Which columns are read.

    Args:
        image: an image column of `datasets` (bytes and path), or one of encoded pictures as bytes.
        image_id: the row's name; a column that is not there leaves it null.
        label_names: of a prepared dataset, whose column `labels` or `label` is then read too; none leaves it out.
    """

    image: str = "image"
    image_id: str = "image_id"
    label_names: tuple[str, ...] = ()

    def in_shard(self, shard: InputShard) -> list[str]:
        """Names of the columns to read from a shard.

        Raises:
            ValueError: if a needed one is missing.
        """
        if self.image not in shard.columns:
            raise ValueError(
                f"`image_column` {self.image!r} is not in {shard.name}, whose columns are {list(shard.columns)}."
            )
        names = [self.image, *([self.image_id] if self.image_id in shard.columns else [])]
        if self.label_names:
            found = [name for name in ("labels", "label") if name in shard.columns]
            if not found:
                raise ValueError(f"`rows='labelled'` needs a column `labels` or `label`, but {shard.name} has none.")
            names.append(found[0])
        return names

    def to_dict(self) -> dict[str, str]:
        """The names that decide what is explained."""
        return {f"{name}_column": value for name, value in asdict(self).items() if isinstance(value, str)}


@dataclass(frozen=True)
class InputRow:
    """One row.

    Args:
        number: its place in the shard, from 0.
        image_id: its name, or `None`.
        picture: the encoded picture, or `None`.
        labels: a number per label, a class index, or `None` for unknown.
        fault: why its values cannot be read, or `None`.
    """

    number: int
    image_id: str | None
    picture: bytes | None
    labels: list[float | None] | int | None = None
    fault: str | None = None

    def present_labels(self, num_labels: int) -> list[float]:
        """1 present, 0 absent or NaN unknown for each label.

        Raises:
            ValueError: if the row or its labels cannot be read.
        """
        if self.fault is not None:
            raise ValueError(self.fault)
        if isinstance(self.labels, list):
            with reading(f"read the labels {self.labels!r} as numbers"):
                return [float("nan") if value is None else float(value) for value in self.labels]
        if self.labels in (None, UNKNOWN_LABEL):
            return [float("nan")] * num_labels
        return [float(index == self.labels) for index in range(num_labels)]


def read_rows(shard: InputShard, columns: InputColumns, first: int = 0) -> Iterator[InputRow]:
    """The rows of a shard from row `first` on; whole row groups before it are not read.

    Raises:
        UnreadableShardError: at the first row that cannot be read.
        ValueError: if columns are missing.
    """
    names = columns.in_shard(shard)
    with shard.open() as file:
        parquet = reading_shard(shard.name, lambda: pq.ParquetFile(file))
        number = 0
        groups: list[int] = []
        for group in range(parquet.num_row_groups):
            num_rows = parquet.metadata.row_group(group).num_rows
            if not groups and number + num_rows <= first:
                number += num_rows
            else:
                groups.append(group)
        batches = parquet.iter_batches(batch_size=READ_ROWS, row_groups=groups, columns=names)
        while (batch := reading_shard(shard.name, lambda: next(batches, None))) is not None:
            for values in _row_values(batch):
                if number >= first:
                    yield _row(number, values, columns)
                number += 1
    if number < shard.num_rows:
        raise UnreadableShardError(
            f"Cannot read shard {shard.name}: {number} of its {shard.num_rows} rows were found."
        )


class RowReader:
    """Reads stretches of rows; one that begins where the last one ended goes on in the same open file.

    Args:
        columns: which columns are read.
    """

    def __init__(self, columns: InputColumns | None = None):
        self.columns = columns or InputColumns()
        self._rows: Iterator[InputRow] = iter(())
        self._place: tuple[str, int] | None = None

    def rows(self, shard: InputShard, start: int, stop: int) -> Iterator[InputRow]:
        """The rows `start ... stop - 1` of a shard.

        Raises:
            UnreadableShardError, ValueError: as `read_rows`.
        """
        if self._place != (shard.path, start):
            self._rows = read_rows(shard, self.columns, start)
        self._place = None
        yield from itertools.islice(self._rows, stop - start)
        self._place = (shard.path, stop)


def read_picture(row: InputRow, channels: int, height: int, width: int) -> torch.Tensor:
    """Decode the row's picture and resize it to the model's size, as the pipeline itself would.

    Args:
        row: the row.
        channels: 1 (grey) or 3 (RGB).
        height: of the model's images.
        width: likewise.

    Returns:
        Shape `(channels, height, width)`, float32 in [0, 1].

    Raises:
        ValueError: saying why the row has no usable picture, in words that are the same every time.
    """
    if row.fault is not None:
        raise ValueError(row.fault)
    if row.picture is None:
        raise ValueError("The row holds no encoded image.")
    return pil_to_tensor(open_picture(row.picture, "the image"), channels, height, width)


def _row_values(batch: pa.RecordBatch) -> list[dict[str, Any] | Exception]:
    """The values of each row, or what kept them from being read (such as text that is no UTF-8)."""
    try:
        return batch.to_pylist()
    except Exception as error:
        if batch.num_rows == 1:
            return [error]
    return [values for index in range(batch.num_rows) for values in _row_values(batch.slice(index, 1))]


def _row(number: int, values: dict[str, Any] | Exception, columns: InputColumns) -> InputRow:
    if isinstance(values, Exception):
        return InputRow(number, None, None, fault=f"Cannot read the row: {reason(values)}")
    picture = values[columns.image]
    picture = picture.get("bytes") if isinstance(picture, dict) else picture
    image_id = values.get(columns.image_id)
    return InputRow(
        number,
        None if image_id is None else str(image_id),
        bytes(picture) if isinstance(picture, (bytes, bytearray)) else None,
        values.get("labels", values.get("label")),
    )
