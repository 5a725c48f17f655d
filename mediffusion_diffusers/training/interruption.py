"""How a run ends before its last step: by a signal, which saves a checkpoint, or because the disk is full."""

from __future__ import annotations

import errno
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from safetensors import SafetensorError

from .checkpoints import find_checkpoint


# A launcher passes on the signal that its whole process group got already: repetitions at once are one request.
_REPETITION_SECONDS = 5.0
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class TrainingStopped(SystemExit):
    """Ends the process after a signal, once a checkpoint is saved; the exit code is the shell's, 128 + signal.

    Args:
        signal_number: SIGTERM (exit code 143) or SIGINT, which Ctrl-C sends (130).
    """

    def __init__(self, signal_number: int):
        super().__init__(128 + signal_number)
        self.signal_number = signal_number


class StopRequest:
    """Remembers that SIGTERM or Ctrl-C asked the run to stop at the next step boundary.

    A second signal, unless it follows at once, has its ordinary effect.
    """

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._received = 0.0

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Listen inside the block; in another thread than the main one, where signals cannot be caught, do nothing."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._before = {number: signal.signal(number, self._receive) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in self._before.items():
                signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.signal_number is None:
            self.signal_number, self._received = number, time.monotonic()
        elif time.monotonic() - self._received > _REPETITION_SECONDS:
            signal.signal(number, self._before[signal.Signals(number)])
            signal.raise_signal(number)


@contextmanager
def explained_full_disk(output_dir: str | Path) -> Iterator[None]:
    """Say what is left and what to do when the disk fills up inside the block.

    Args:
        output_dir: folder of the run.

    Raises:
        OSError: in place of an error that a full disk (or an exhausted quota) caused.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        if not is_disk_full(error):
            raise
        newest, _ = find_checkpoint(Path(output_dir), "latest")
        kept = "there is no checkpoint yet" if newest is None else f"the last good checkpoint is {newest}"
        raise OSError(
            errno.ENOSPC,
            f"The disk of `output_dir` is full ({error}); {kept}. Make room, for example with a lower "
            "`checkpoints_total_limit`, and start the same command again with `--resume_from_checkpoint latest`.",
        ) from error


def is_disk_full(error: BaseException) -> bool:
    """Whether an error says that there is no room left; safetensors tells it in words only."""
    if isinstance(error, OSError):
        return error.errno in _DISK_FULL
    return any(f"(os error {number})" in str(error) for number in _DISK_FULL)
