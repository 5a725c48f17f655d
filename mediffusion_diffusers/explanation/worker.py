"""Makes chunks, one after the other: what every engine has one of per process."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ..data.input_rows import RowReader
from ..data.input_shards import UnreadableShardError
from .chunk import Chunk, explain_chunk
from .plan import ExplanationJob, Plan


_FIRST_CALL_SECONDS = 10.0  # a first call that takes less is repeated: it may have been the warm-up that took long


class ChunkIsFinished(Exception):
    """Another worker has finished the chunk in work."""


class ChunkWorker:
    """Makes chunks of a plan.

    Args:
        pipe: the pipeline, where it shall compute.
        plan: the plan.
    """

    def __init__(self, pipe: Any, plan: Plan):
        self.store = plan.open_store()
        self._explainer = plan.job.request.explainer(pipe, plan.identity["model_hash"])
        self._reader, self._batch_size = RowReader(plan.job.columns), plan.job.batch_size

    def finish(self, chunk: Chunk, before_batch: Callable[[int], None] | None = None) -> str | None:
        """Make a chunk and write it, unless another worker is faster.

        Args:
            chunk: the chunk.
            before_batch: called before every batch with the number of rows that are done; what it raises ends the
                work.

        Returns:
            Why the input cannot be read, or `None`.
        """

        def look_up(rows_in_work: int) -> None:
            if before_batch is not None:
                before_batch(rows_in_work)
            if self.store.has(chunk):
                raise ChunkIsFinished

        try:
            table = explain_chunk(self._explainer, chunk, self.store.schema, self._reader, self._batch_size, look_up)
            self.store.write(chunk, table)
        except UnreadableShardError as error:
            return str(error)
        except ChunkIsFinished:
            pass
        return None


def measure_seconds(pipe: Any, job: ExplanationJob, chunk: Chunk) -> float:
    """Seconds per row of a small chunk with this pipeline, where it is now."""
    explainer, schema = job.request.explainer(pipe), job.request.schema()
    seconds = float("inf")
    for _ in range(2):
        began = time.perf_counter()
        explain_chunk(explainer, chunk, schema, RowReader(job.columns), job.batch_size)
        seconds = min(seconds, time.perf_counter() - began)
        if seconds > _FIRST_CALL_SECONDS:
            break
    return seconds / chunk.num_rows
