"""How far a launch is, and what it did: read off the finished chunks, whoever makes them."""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from tqdm.auto import tqdm

from ..stop_request import StoppedBySignal
from ..trackers import Reporter
from .chunk import Chunk
from .plan import Plan
from .store import sum_of


LOOKING_SHARE = 0.01  # of the time is spent on looking what workers have finished
REPORT_SECONDS = 10.0  # between two reports to a tracker


@dataclass(frozen=True)
class Summary:
    """What a launch did, over all its workers, and whoever else worked on its chunks meanwhile.

    Args:
        manifest: as written at the end; other tasks' shards included.
        counts: of the chunks that were finished meanwhile: rows, and what became of them.
        num_waiting_chunks: of this launch, not finished.
        seconds: it took.
        num_workers: how many worked.
        damaged: output files that were damaged and were made again.
        problems: input shards that could not be read, with the reason.
    """

    manifest: dict[str, Any]
    counts: dict[str, Any]
    num_waiting_chunks: int
    seconds: float
    num_workers: int
    damaged: tuple[str, ...]
    problems: tuple[str, ...]

    @property
    def images_per_second(self) -> float:
        """Explained images per second, of all workers together."""
        return self.counts["num_explained"] / self.seconds if self.counts["num_explained"] else 0.0

    @property
    def is_useful(self) -> bool:
        """Whether every shard could be read and, if all of them are finished, any image is explained."""
        return not self.problems and (not self.manifest["complete"] or self.manifest["num_explained"] > 0)

    def to_dict(self) -> dict[str, Any]:
        """For a scheduler: this launch, and the whole dataset under `manifest`, without its list of shards."""
        return {
            "succeeded": self.is_useful,
            "complete": self.manifest["complete"],
            **self.counts,
            "num_waiting_chunks": self.num_waiting_chunks,
            "seconds": round(self.seconds, 3),
            "images_per_second": round(self.images_per_second, 4),
            "num_workers": self.num_workers,
            "damaged": list(self.damaged),
            "problems": list(self.problems),
            "manifest": {name: value for name, value in self.manifest.items() if name != "shards"},
        }


class Launch:
    """One launch, from its plan to its summary: a bar and a tracker that count the rows of all workers.

    As a context manager it ends them, and says what a signal has left.

    Args:
        plan: what is to be done.
        num_workers: how many work.
        is_main: whether this process speaks for all of them.
    """

    def __init__(self, plan: Plan, num_workers: int, is_main: bool = True):
        self.plan, self.store, self.waiting = plan, plan.open_store(), list(plan.todo)
        self._num_workers, self._is_main, self._began = num_workers, is_main, time.monotonic()
        self._done = sum_of([])
        self._before = plan.num_rows - sum(chunk.num_rows for chunk in plan.todo)
        show = plan.job.show_progress and is_main
        self._bar = tqdm(total=plan.num_rows, initial=self._before, desc="Images", unit=" images", disable=not show)
        self._next_look = self._next_report = 0.0
        self._reporter = Reporter(plan.job.report_to if is_main else None, plan.job.output_dir, plan.identity)

    def show(self, rows_in_work: int = 0) -> None:
        """Move the bar.

        Args:
            rows_in_work: done of a chunk that is not finished.
        """
        now = time.monotonic()
        if now >= self._next_look:
            self.look()
            self._next_look = now + max((time.monotonic() - now) / LOOKING_SHARE, 0.5)
        if now >= self._next_report:
            self._report()
            self._next_report = now + REPORT_SECONDS
        self._move(rows_in_work)

    def look(self) -> list[Chunk]:
        """Look into the store, and return the chunks that are not finished."""
        records = [(chunk, self.store.record(chunk)) for chunk in self.waiting]
        self.waiting = [chunk for chunk, record in records if record is None]
        now = sum_of(record for _, record in records if record is not None)
        for name in ("num_rows", "num_explained", "num_failed", "num_passed_over"):
            self._done[name] += now[name]
        return self.waiting

    def summary(self, problems: Sequence[str]) -> Summary:
        """Write the manifest, and say what was done.

        Args:
            problems: input shards that workers could not read, with the reason.
        """
        records = [self.store.record(chunk) for chunk in self.plan.todo]
        finished = [record for record in records if record is not None]
        self.store.clear_away()
        return Summary(
            self.store.write_manifest(self.plan.inputs, self.plan.description),
            sum_of(finished),
            num_waiting_chunks=len(records) - len(finished),
            seconds=time.monotonic() - self._began,
            num_workers=self._num_workers,
            damaged=self.plan.damaged,
            problems=tuple(dict.fromkeys((*self.plan.problems, *problems))),
        )

    def __enter__(self) -> Launch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._move(0)
        self._bar.close()
        if kind is None:
            self.look()
            self._report()
        self._reporter.close()
        if isinstance(error, StoppedBySignal) and self._is_main:
            manifest = self.store.write_manifest(self.plan.inputs, self.plan.description)
            print(
                f"Stopped by {signal.Signals(error.signal_number).name}: {manifest['num_finished_shards']:,} of "
                f"{manifest['num_shards']:,} shards are finished. The same command goes on from there.",
                flush=True,
            )

    def _move(self, rows_in_work: int) -> None:
        if not self._bar.disable:
            self._bar.set_postfix(waiting_chunks=len(self.waiting), failed=self._done["num_failed"], refresh=False)
            self._bar.update(max(self._before + self._done["num_rows"] + rows_in_work - self._bar.n, 0))

    def _report(self) -> None:
        """Tell the tracker what is done by all workers, and when they will be done; its step is the input row."""
        rows_per_second = self._done["num_rows"] / (time.monotonic() - self._began)
        rows_left = sum(chunk.num_rows for chunk in self.waiting)
        values = {name: value for name, value in self._done.items() if name != "failures"}
        values |= {"num_waiting_chunks": len(self.waiting), "rows_per_second": rows_per_second}
        if rows_per_second:
            values["seconds_left"] = rows_left / rows_per_second
        figures = {f"explanation/{name}": value for name, value in values.items()}
        self._reporter.report(figures, step=self._before + self._done["num_rows"])
