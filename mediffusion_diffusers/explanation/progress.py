"""How far a launch is, and what it did: read off the finished chunks, whoever makes them."""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tqdm.auto import tqdm

from ..stop_request import StoppedBySignal
from .chunk import Chunk
from .plan import Plan
from .store import ChunkStore, sum_of


LOOKING_SHARE = 0.01  # of the time is spent on looking what workers have finished


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
    def num_explained(self) -> int:
        """Images explained in this launch."""
        return self.counts["num_explained"]

    @property
    def num_failed(self) -> int:
        """Rows recorded with an error in this launch."""
        return self.counts["num_failed"]

    @property
    def images_per_second(self) -> float:
        """Explained images per second, of all workers together."""
        return self.num_explained / self.seconds if self.num_explained else 0.0

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

    def sentence(self) -> str:
        """One line for the terminal."""
        whole = self.manifest
        shards = f"{whole['num_finished_shards']:,} of {whole['num_shards']:,} shards are finished"
        if whole["complete"] and whole["num_explained"] == 0:
            return (
                f"No image is explained: {whole['num_failed']:,} rows could not be (column `error` says why), "
                f"{whole['num_passed_over']:,} were not asked about; {shards}."
            )
        if self.counts["num_rows"] == 0 and not self.problems:
            return f"Nothing was left to do: {shards}."
        workers = f"{self.num_workers} worker{'s' if self.num_workers > 1 else ''}"
        return (
            f"Explained {self.num_explained:,} images ({self.num_failed:,} could not be, "
            f"{self.counts['num_passed_over']:,} were not asked about), {self.images_per_second:.3g} images/s by "
            f"{workers}; {shards}."
        )


class StoreProgress:
    """A bar over the rows of a launch, whoever finishes them: what is left is estimated over all workers.

    Args:
        plan: of the launch.
        store: where finished chunks appear.
        show: whether to show the bar.
    """

    def __init__(self, plan: Plan, store: ChunkStore, show: bool):
        self.waiting, self._store = list(plan.todo), store
        before = plan.num_rows - sum(chunk.num_rows for chunk in plan.todo)
        self._bar = tqdm(total=plan.num_rows, initial=before, desc="Images", unit=" images", disable=not show)
        self._rows, self._failed, self._next_look = before, 0, 0.0

    def show(self, rows_in_work: int = 0) -> None:
        """Move the bar.

        Args:
            rows_in_work: done of a chunk that is not finished.
        """
        now = time.monotonic()
        if now >= self._next_look:
            self.look()
            self._next_look = now + max((time.monotonic() - now) / LOOKING_SHARE, 0.5)
        self._move(rows_in_work)

    def look(self) -> list[Chunk]:
        """Look into the store, and return the chunks that are not finished."""
        records = [(chunk, self._store.record(chunk)) for chunk in self.waiting]
        self.waiting = [chunk for chunk, record in records if record is None]
        done = sum_of(record for _, record in records if record is not None)
        self._rows, self._failed = self._rows + done["num_rows"], self._failed + done["num_failed"]
        return self.waiting

    def close(self) -> None:
        """End the bar."""
        self._move(0)
        self._bar.close()

    def _move(self, rows_in_work: int) -> None:
        if not self._bar.disable:
            self._bar.set_postfix(waiting_chunks=len(self.waiting), failed=self._failed, refresh=False)
            self._bar.update(max(self._rows + rows_in_work - self._bar.n, 0))


def summarise(plan: Plan, store: ChunkStore, problems: Sequence[str], num_workers: int, began: float) -> Summary:
    """Write the manifest and say what was done since `began`, by `time.monotonic`."""
    records = [store.record(chunk) for chunk in plan.todo]
    finished = [record for record in records if record is not None]
    store.clear_away()
    return Summary(
        store.write_manifest(plan.inputs, plan.description),
        sum_of(finished),
        num_waiting_chunks=len(records) - len(finished),
        seconds=time.monotonic() - began,
        num_workers=num_workers,
        damaged=plan.damaged,
        problems=tuple(dict.fromkeys((*plan.problems, *problems))),
    )


def say_stopped(stopped: StoppedBySignal, manifest: dict[str, Any]) -> None:
    """Tell what a signal has left."""
    name = signal.Signals(stopped.signal_number).name
    print(
        f"Stopped by {name}: {manifest['num_finished_shards']:,} of {manifest['num_shards']:,} shards are finished. "
        "The same command goes on from there.",
        flush=True,
    )
