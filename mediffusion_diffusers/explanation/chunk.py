"""A chunk: some rows of an input shard, and the table of what is found out about them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import pyarrow as pa
import torch

from ..data.input_rows import InputRow, RowReader, read_picture
from ..data.input_shards import InputShard
from ..item_boundary import reason


MAX_CHUNK_ROWS = 512
BATCHES_AHEAD = 2  # decoded before the model wants them, and computed before they are encoded
_ENCODING_THREADS = 2
NOT_FINITE = "The model returned NaN or infinite values."

Item = TypeVar("Item")
Rows = list[dict[str, Any]]


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


@dataclass(frozen=True)
class Picture:
    """A row with its decoded picture, shape `(channels, height, width)` in [0, 1]."""

    row: InputRow
    image: torch.Tensor


class Explainer(ABC):
    """Says something about batches of pictures.

    Args:
        pipe: the pipeline that is asked.
        request: what to ask.
        model_hash: written to every row.
    """

    def __init__(self, pipe: Any, request: Any, model_hash: str = ""):
        self.pipe, self.request = pipe, request
        self._constants = {"label_names": list(pipe.label_names), "model_hash": model_hash}

    def is_asked_about(self, row: InputRow, label_names: tuple[str, ...]) -> bool:
        """Whether the row's labels do not rule it out."""
        return True

    def chosen(self, pictures: list[Picture]) -> list[Picture]:
        """The pictures that the model does not rule out."""
        return pictures

    @abstractmethod
    def explain(self, shard: str, pictures: list[Picture]) -> Callable[[], Rows]:
        """Ask the model now; the call that is returned makes output rows of its answers, in any thread."""

    def row(self, shard: str, row: InputRow, error: str | None = None, **values: Any) -> dict[str, Any]:
        """An output row, by default without an answer."""
        place = {"image_id": row.image_id, "shard": shard, "row": row.number}
        return {**place, "error": error, **values, **self._constants}


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
