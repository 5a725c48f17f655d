"""SIGTERM and Ctrl-C as a request to stop at the next good moment, for long runs of any kind.

A signal that a program was started to ignore stays ignored. A shell does that with SIGINT for what a script starts in
the background: Ctrl-C at the terminal ends the script and is not meant for such a program, which SIGTERM ends.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# A launcher passes on the signal that its whole process group got already: repetitions at once are one request.
_REPETITION_SECONDS = 5.0


class StoppedBySignal(SystemExit):
    """Ends the process after a signal, once its work is safe; the exit code is the shell's, 128 + signal.

    Args:
        signal_number: SIGTERM (exit code 143) or SIGINT, which Ctrl-C sends (130).
    """

    def __init__(self, signal_number: int):
        super().__init__(128 + signal_number)
        self.signal_number = signal_number


class StopRequest:
    """Remembers that SIGTERM or Ctrl-C asked the run to stop.

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
        heard = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        self._before = {number: signal.signal(number, self._receive) for number in heard}
        try:
            yield
        finally:
            for number, handler in self._before.items():
                signal.signal(number, handler)

    def check(self) -> None:
        """End the process here if it was asked to stop.

        Raises:
            StoppedBySignal: with the exit code that the signal stands for.
        """
        if self.signal_number is not None:
            raise StoppedBySignal(self.signal_number)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.signal_number is None:
            self.signal_number, self._received = number, time.monotonic()
        elif time.monotonic() - self._received > _REPETITION_SECONDS:
            signal.signal(number, self._before[signal.Signals(number)])
            signal.raise_signal(number)
