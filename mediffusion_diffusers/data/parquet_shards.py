"""Parquet files as one dataset of `datasets`, whatever letters their paths have, with errors that name the file."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq


_BATCH = 256


def count_rows(files: Sequence[Path]) -> int:
    """Rows of all files, from their footers.

    Raises:
        ValueError: for a file that is damaged.
    """
    return sum(open_shard(path).metadata.num_rows for path in files)


def open_shard(path: Path) -> pq.ParquetFile:
    """Open a parquet file.

    Raises:
        ValueError: if it is damaged or none.
    """
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(str(path), memory_map=True)
    except Exception as error:  # pyarrow raises many types on damaged files
        raise _damaged(path, error) from error


def load_shards(files: Sequence[Path], split: str, features: datasets.Features) -> datasets.Dataset:
    """All rows, memory-mapped from an Arrow file in the cache of `datasets`, which is written once.

    Args:
        files: the shards, in order.
        split: name of the split.
        features: the columns to load; the shards may have more.

    Raises:
        ValueError: for a file that is damaged or lacks a column.
    """
    import datasets
    from datasets.arrow_writer import ArrowWriter

    cache = Path(datasets.config.HF_DATASETS_CACHE) / "mediffusion"
    path = cache / f"{_fingerprint(files, features)}-{split}.arrow"
    if not path.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=".writing-") as aside:
            written = Path(aside, path.name)
            with ArrowWriter(features=features, path=str(written)) as writer:
                for table in _tables(files, list(features)):
                    writer.write_table(table)
                writer.finalize()
            os.replace(written, path)
    return datasets.Dataset.from_file(str(path), split=datasets.Split(split))


def read_shards(
    files: Sequence[Path], split: str, features: Mapping[str, Any], columns: Sequence[str]
) -> datasets.Dataset:
    """Some columns of all rows, in memory.

    Args:
        files: the shards, in order.
        split: name of the split.
        features: of the columns.
        columns: their names.

    Raises:
        ValueError: for a file that is damaged or lacks a column.
    """
    import datasets
    import pyarrow as pa

    table = pa.concat_tables(_tables(files, columns)).replace_schema_metadata(None)
    return datasets.Dataset(
        datasets.table.InMemoryTable(table),
        info=datasets.DatasetInfo(features=datasets.Features({name: features[name] for name in columns})),
        split=datasets.Split(split),
    )


def _tables(files: Sequence[Path], columns: Sequence[str]) -> Iterator[pa.Table]:
    import pyarrow as pa

    for path in files:
        shard = open_shard(path)
        missing = [name for name in columns if name not in shard.schema_arrow.names]
        if missing:
            raise ValueError(f"{path} lacks the columns {missing}; it has {shard.schema_arrow.names}.")
        try:
            for batch in shard.iter_batches(batch_size=_BATCH, columns=list(columns)):
                yield pa.Table.from_batches([batch]).select(list(columns))
        except Exception as error:
            raise _damaged(path, error) from error
        if shard.metadata.num_rows == 0:
            yield shard.schema_arrow.empty_table().select(list(columns))


def _damaged(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path} is damaged or no parquet file: {error}. Copy it again, or convert the dataset again.")


def _fingerprint(files: Sequence[Path], features: datasets.Features) -> str:
    """Changes with the files and the columns."""
    state = [(os.fspath(path.resolve()), path.stat().st_mtime_ns, path.stat().st_size) for path in files]
    return hashlib.sha256(repr((state, features)).encode("utf-8", "surrogateescape")).hexdigest()[:32]
