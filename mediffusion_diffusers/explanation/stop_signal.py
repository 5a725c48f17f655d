"""SIGTERM and Ctrl-C as a request to stop between two batches."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


# A launcher passes on the signal that its whole process group got already: repetitions at once are one request.
_REPETITION_SECONDS = 5.0


class ExplanationStopped(SystemExit):
    """Ends the process after a signal; the exit code is the shell's, 128 + signal (143 or 130)."""


class StopSignal:
    """Remembers SIGTERM or Ctrl-C; another one, unless it follows at once, ends the process where it is."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._received = 0.0

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Listen inside the block; outside the main thread, where signals cannot be caught, do nothing."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._receive) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def check(self) -> None:
        """End the process here if a signal came.

        Raises:
            ExplanationStopped: with the exit code that the signal stands for.
        """
        if self.number is not None:
            raise ExplanationStopped(128 + self.number)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.number is None:
            self.number, self._received = number, time.monotonic()
        elif time.monotonic() - self._received > _REPETITION_SECONDS:
            raise ExplanationStopped(128 + number)
