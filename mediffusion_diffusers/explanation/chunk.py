"""A chunk: some rows of an input shard, and the table of what is found out about them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import pyarrow as pa

from ..data.input_rows import RowReader, read_picture
from ..data.input_shards import InputShard
from ..item_boundary import reason
from ..requests.request import Explainer, Picture, Rows


MAX_CHUNK_ROWS = 512
BATCHES_AHEAD = 2  # decoded before the model wants them, and computed before they are encoded
_ENCODING_THREADS = 2

Item = TypeVar("Item")


@dataclass(frozen=True)
class Chunk:
    """The rows `start ... stop - 1` of an input shard."""

    shard: InputShard
    start: int
    stop: int

    @property
    def num_rows(self) -> int:
        """How many they are."""
        return self.stop - self.start

    @property
    def file_name(self) -> str:
        """Of its output file, below the output folder."""
        return f"{self.shard.name.removesuffix('.parquet')}-rows-{self.start:08d}-{self.stop:08d}.parquet"


def cut(shard: InputShard, chunk_rows: int) -> list[Chunk]:
    """A shard in chunks of so many rows, the last one shorter; an empty shard is one empty chunk."""
    starts = range(0, max(shard.num_rows, 1), chunk_rows)
    return [Chunk(shard, start, min(start + chunk_rows, shard.num_rows)) for start in starts]


def explain_chunk(
    explainer: Explainer,
    chunk: Chunk,
    schema: pa.Schema,
    reader: RowReader | None = None,
    batch_size: int = 8,
    before_batch: Callable[[int], None] | None = None,
) -> pa.Table:
    """Explain the rows of a chunk, in the order of the input; rows that are not asked about are left out.

    A thread reads and decodes beside the model, others encode.

    Args:
        explainer: asks the model.
        chunk: which rows.
        schema: of the table.
        reader: of the rows; one that has just read the chunk before goes on from there.
        batch_size: images per call of the model.
        before_batch: called with the number of rows that are done before every batch; what it raises ends the work.

    Raises:
        UnreadableShardError: if the shard cannot be read.
    """
    failed: Rows = []
    reader = RowReader() if reader is None else reader
    decoded = _ahead(_batches(_decoded(explainer, chunk, reader, failed), batch_size))
    asked = (picture for batch in decoded for picture in explainer.chosen(batch))
    rows: Rows = []
    encoding: deque[Future[Rows]] = deque()
    with ThreadPoolExecutor(_ENCODING_THREADS) as encoder:
        for batch in _batches(asked, batch_size):
            if before_batch is not None:
                before_batch(batch[0].row.number - chunk.start)
            encoding.append(encoder.submit(explainer.explain(chunk.shard.name, batch)))
            if len(encoding) > BATCHES_AHEAD:
                rows += encoding.popleft().result()
        for future in encoding:
            rows += future.result()
    return pa.Table.from_pylist(sorted(rows + failed, key=lambda row: row["row"]), schema=schema)


def _decoded(explainer: Explainer, chunk: Chunk, reader: RowReader, failed: Rows) -> Iterator[Picture]:
    """Rows whose labels do not rule them out, decoded; those that cannot be are recorded in `failed`."""
    size = (explainer.pipe.image_processor.config.channels, *explainer.pipe.image_size)
    for row in reader.rows(chunk.shard, chunk.start, chunk.stop):
        try:
            if not explainer.is_asked_about(row, reader.columns.label_names):
                continue
            picture = Picture(row, read_picture(row, *size))
        except Exception as error:  # the boundary of one row: whatever its content provokes is its reason
            failed.append(explainer.row(chunk.shard.name, row, error=reason(error)))
        else:
            yield picture


def _batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    batch: list[Item] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _ahead(items: Iterator[Item]) -> Iterator[Item]:
    """The items, taken by a thread of its own before they are wanted."""
    with ThreadPoolExecutor(1) as reader:
        waiting = deque(reader.submit(next, items, None) for _ in range(BATCHES_AHEAD))
        while (item := waiting.popleft().result()) is not None:
            waiting.append(reader.submit(next, items, None))
            yield item
