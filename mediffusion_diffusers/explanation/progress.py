"""One progress bar for all processes of a launch: each notes its counts in a file, the first one adds them up."""

from __future__ import annotations

import json
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from ..staging import locked_file
from ..stop_request import StopRequest


WAITING_SECONDS = 0.2


@dataclass
class Counts:
    """What one process has done in this launch.

    Args:
        num_rows: input rows.
        num_explained: rows explained.
        num_failed: rows with an error.
        num_passed_over: rows that are not asked about.
        num_shards: shards finished.
        seconds: since it began to work.
        problems: input shards that could not be read, with the reason.
        is_done: whether it has nothing left to do.
    """

    num_rows: int = 0
    num_explained: int = 0
    num_failed: int = 0
    num_passed_over: int = 0
    num_shards: int = 0
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)
    is_done: bool = False


class SharedProgress:
    """The counts of this process, and in the first one a bar over those of all.

    Args:
        folder: where the small files are.
        launch: a name that the processes of one launch share, and no other launch.
        process_index: this process.
        num_processes: of the launch.
        total: input rows of the launch, those finished before included.
        num_rows_before: rows that were finished before.
        show: whether to show the bar.
    """

    def __init__(
        self,
        folder: Path,
        launch: str,
        process_index: int,
        num_processes: int,
        total: int,
        num_rows_before: int,
        show: bool = True,
    ):
        self.folder, self.launch, self.num_processes = folder, launch, num_processes
        self.own = Counts()
        self._began = time.monotonic()
        self._index = process_index
        self._seen: dict[int, Counts] = {}
        self._num_rows_before = num_rows_before
        self._stack = ExitStack()
        self._file, self._path = self._stack.enter_context(locked_file(folder, f"{launch}-{process_index}"))
        hidden = not show or process_index != 0
        self._bar = tqdm(total=total, initial=num_rows_before, desc="Explaining", unit=" images", disable=hidden)

    def note(self, **additions: int) -> None:
        """Add to this process's counts, note them for the others, and show those of all."""
        for name, value in additions.items():
            setattr(self.own, name, getattr(self.own, name) + value)
        self.own.seconds = round(time.monotonic() - self._began, 3)
        self._file.seek(0)
        self._file.write(json.dumps(asdict(self.own)).encode() + b"\n")
        self._file.truncate()
        self._file.flush()
        self.show()

    def show(self) -> None:
        """Let the bar say what all processes have done."""
        if not self._bar.disable:
            rows = sum(counts.num_rows for counts in self.all_counts())
            self._bar.update(self._num_rows_before + rows - self._bar.n)

    def all_counts(self) -> list[Counts]:
        """The counts of all processes, as far as they have noted any; a process whose file is gone is done."""
        others = {path.name.split("-")[1]: path for path in self.folder.glob(f"{self.launch}-*")}
        for index in range(self.num_processes):
            if index == self._index:
                self._seen[index] = self.own
            elif path := others.get(str(index)):
                self._seen[index] = _read(path) or self._seen.get(index, Counts())
            elif index in self._seen:
                self._seen[index].is_done = True
        return [counts for _, counts in sorted(self._seen.items())]

    def finish(self, stop: StopRequest) -> list[Counts]:
        """Note that this process has nothing left to do, and wait for the others; the first one shows their progress.

        Returns:
            The counts of all processes, in the first one; its own in the others.

        Raises:
            StoppedBySignal: if a signal comes meanwhile.
        """
        self.own.is_done = True
        self.note()
        while not self._all_done() if self._index == 0 else self._path.exists():
            stop.check()
            time.sleep(WAITING_SECONDS)
            self.show()
        return self.all_counts() if self._index == 0 else [self.own]

    def _all_done(self) -> bool:
        counts = self.all_counts()
        return len(counts) == self.num_processes and all(each.is_done for each in counts)

    def close(self) -> None:
        """End the bar and remove this process's file; the first one removes those of all, which lets them end."""
        self._bar.close()
        for path in [self._path] if self._index else self.folder.glob(f"{self.launch}-*"):
            path.unlink(missing_ok=True)
        self._stack.close()


def _read(path: Path) -> Counts | None:
    """Another process's counts; `None` while they are being written."""
    try:
        values: dict[str, Any] = json.loads(path.read_text())
        return Counts(**values)
    except (OSError, ValueError, TypeError):
        return None
