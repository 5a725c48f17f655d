"""The work on one input shard: explain it part by part, then join the parts."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from ..stop_request import StopRequest
from .explainer import RowExplainer
from .input_rows import InputColumns, InputRow, read_rows
from .input_shards import InputShard, UnreadableShardError
from .manifest import Manifest
from .plan import ExplanationJob, Plan
from .progress import SharedProgress
from .shards import ShardFolder, ShardRecord


class ShardWorker:
    """Explains shards, part by part.

    Args:
        pipe: the pipeline.
        job: what to do.
        plan: of this launch.
        folder: the output.
        manifest: of the run.
        progress: where to note what is done.
        stop: asked before every batch.
    """

    def __init__(
        self,
        pipe: Any,
        job: ExplanationJob,
        plan: Plan,
        folder: ShardFolder,
        manifest: Manifest,
        progress: SharedProgress,
        stop: StopRequest,
    ):
        self.job, self.identity, self.folder, self.manifest = job, plan.identity, folder, manifest
        self.progress, self.stop = progress, stop
        self.explainer = RowExplainer(
            pipe, job.request, plan.identity["model_hash"], job.batch_size, plan.dataset.label_names
        )

    def work(self, shard: InputShard) -> None:
        """Explain a shard, or what is left of it, and add it to the manifest.

        An input that breaks off is noted; its finished parts stay for the next launch.
        """
        whole = ShardRecord(self.identity, shard.identity)
        starts = range(0, shard.num_rows, self.job.part_rows)
        parts = [(start, min(start + self.job.part_rows, shard.num_rows)) for start in starts]
        window = _RowWindow(shard, self.job.columns)
        try:
            for start, stop in parts:
                if self._is_finished(whole):  # by another launch of the same task
                    break
                part = self.folder.read_part(shard, start, stop)
                if part is not None and part.belongs_to(whole):
                    self.progress.note(num_rows=stop - start)
                else:
                    self._explain_part(shard, window.between(start, stop), start, stop)
            else:
                self.folder.join_parts(shard, parts, whole)
        except UnreadableShardError as error:
            self.progress.own.problems.append(str(error))
            return
        except FileNotFoundError:
            if not self._is_finished(whole):
                raise
        self.folder.remove_parts(shard)
        self.progress.note(num_shards=1)
        self.manifest.write()

    def _is_finished(self, whole: ShardRecord) -> bool:
        finished = self.manifest.record(whole.input["name"])
        return finished is not None and finished.belongs_to(whole)

    def _explain_part(self, shard: InputShard, rows: list[InputRow], start: int, stop: int) -> None:
        noted = {"num_rows": 0, "num_explained": 0, "num_failed": 0}

        def note(num_rows: int, num_failed: int, num_passed_over: int = 0) -> None:
            counts = {"num_rows": num_rows, "num_failed": num_failed}
            counts["num_explained"] = num_rows - num_failed - num_passed_over
            new = {name: value - noted[name] for name, value in counts.items()}
            noted.update(counts)
            self.progress.note(**new, num_passed_over=num_passed_over)

        def after_batch(batch: list[dict[str, Any]]) -> None:
            num_failed = sum(row["error"] is not None for row in batch)
            note(noted["num_rows"] + len(batch), noted["num_failed"] + num_failed)

        done = self.explainer.explain(shard.name, rows, self.stop.check, after_batch)
        note(stop - start, done.num_failed, done.num_passed_over)
        record = ShardRecord(
            self.identity,
            shard.identity,
            num_rows=stop - start,
            num_explained=len(done.rows) - done.num_failed,
            num_failed=done.num_failed,
            num_passed_over=done.num_passed_over,
        )
        self.folder.write_part(shard, start, stop, done.rows, record)
        self.stop.check()


class _RowWindow:
    """The rows of a shard in consecutive windows, opened at the first one that is wanted."""

    def __init__(self, shard: InputShard, columns: InputColumns):
        self._shard, self._columns = shard, columns
        self._rows: Iterator[InputRow] | None = None
        self._next = 0

    def between(self, start: int, stop: int) -> list[InputRow]:
        """The rows `start ... stop - 1`; `start` must not lie before an earlier `stop`."""
        if self._rows is None:
            self._rows, self._next = read_rows(self._shard, self._columns, start), start
        rows = list(itertools.islice(self._rows, stop - self._next))
        self._next = stop
        return rows[start - stop :]
