"""Steps side by side, two at a time, each as soon as what it waits for is done."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from .plan import Step
from .worker import PRELOAD, environments, work


_NUM_SIDE_BY_SIDE = 2
_LOOK_SECONDS, _TELL_SECONDS = 0.2, 15.0
_END_SECONDS = 10.0  # in which a process may put its things in order
_TAIL = 400  # bytes of a log in which its last line lies


@dataclass
class _Running:
    """A step in work, by one process or several."""

    step: Step
    log: Path
    started: float
    processes: list[Any] = field(default_factory=list)
    reports: list[Connection] = field(default_factory=list)

    @property
    def exit_code(self) -> int | None:
        """0 once all processes have ended well, that of the first that has not, None while they are at work."""
        codes = [process.exitcode for process in self.processes]
        return next((code for code in codes if code), None if None in codes else 0)


class Schedule:
    """Runs the steps of a demo; what was done before is not done again.

    Args:
        steps: the more urgent of two that could run first.
        log_folder: gets a log for each step.
        work: what each process does, see `worker.work`.
        preload: modules that are loaded once for all processes.
    """

    def __init__(
        self,
        steps: Sequence[Step],
        log_folder: Path,
        work: Callable[..., None] = work,
        preload: Sequence[str] = PRELOAD,
    ):
        self.steps = steps
        self.work = work
        self.preload = preload
        self.log_folder = log_folder
        self.seconds: dict[str, float] = {}
        self.cpu_seconds = 0.0
        self.wall_seconds = 0.0
        self.num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self._running: list[_Running] = []
        self._done: set[str] = set()
        self._told = 0.0

    @property
    def busy_share(self) -> float:
        """Share of all cores' time that the steps used, in [0, 1]."""
        return self.cpu_seconds / (self.wall_seconds * self.num_cores) if self.wall_seconds else 0.0

    def run(self) -> None:
        """Run all steps to their end.

        Raises:
            SystemExit: if one fails, naming its log.
        """
        self.log_folder.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that wait leave the core to others
        context = multiprocessing.get_context("forkserver" if sys.platform != "win32" else "spawn")
        context.set_forkserver_preload(list(self.preload))
        started = time.perf_counter()
        try:
            while len(self._done) < len(self.steps):
                self._start_what_can(context)
                self._finish_what_has_ended()
                self._tell()
                time.sleep(_LOOK_SECONDS)
        finally:
            for running in self._running:
                _end(running)
            self.wall_seconds = time.perf_counter() - started

    def _start_what_can(self, context: Any) -> None:
        at_work = {running.step.name for running in self._running}
        for step in self.steps:
            if len(self._running) == _NUM_SIDE_BY_SIDE:
                return
            if step.name in self._done | at_work or not self._done.issuperset(step.after):
                continue
            if step.output.exists():
                self._say(f"{step.title}: done before, {step.output}")
                self._done.add(step.name)
                continue
            self._say(f"{step.title} ...")
            running = _Running(step, self.log_folder / f"{step.name}.log", time.perf_counter())
            self._running.append(running)
            for environment in environments(min(step.num_processes, self.num_cores)):
                receiver, sender = context.Pipe(duplex=False)
                arguments = (step.words, running.log, self._num_threads, environment, sender)
                process = context.Process(target=self.work, args=arguments)
                process.start()
                sender.close()
                running.processes.append(process)
                running.reports.append(receiver)

    @property
    def _num_threads(self) -> int:
        """Of each process: the cores that are one step's share, since two processes at a time waste the least."""
        given = os.environ.get("OMP_NUM_THREADS", "")
        return int(given) if given.isdigit() else max(1, self.num_cores // _NUM_SIDE_BY_SIDE)

    def _finish_what_has_ended(self) -> None:
        for running in [each for each in self._running if each.exit_code is not None]:
            self._running.remove(running)
            step, code = running.step, running.exit_code
            _end(running)
            for report in running.reports:
                with suppress(EOFError):  # a process that was killed reports nothing
                    self.cpu_seconds += report.recv()
            if code:
                raise SystemExit(
                    f"The demo stopped: `mediffusion {' '.join(step.words)}` failed ({code}): "
                    f"{_last_line(running.log)} All it said is in {running.log}; the same command goes on from here."
                )
            self.seconds[step.title] = time.perf_counter() - running.started
            self._done.add(step.name)
            self._say(f"{step.title}: {self.seconds[step.title]:.0f} s, {step.output}")

    def _tell(self) -> None:
        """How far the steps are: a line that is written over at a terminal, a line now and then elsewhere."""
        if not sys.stderr.isatty() and time.perf_counter() - self._told < _TELL_SECONDS:
            return
        self._told = time.perf_counter()
        text = "   ".join(f"{each.step.name}: {_last_line(each.log)[-60:]}" for each in self._running)
        if text:
            end = "\r" if sys.stderr.isatty() else "\n"
            print(f"{text:<120}", end=end, file=sys.stderr, flush=True)

    def _say(self, sentence: str) -> None:
        clear = f"{'':<120}\r" if sys.stderr.isatty() else ""
        print(f"{clear}[{len(self._done)}/{len(self.steps)}] {sentence}", file=sys.stderr, flush=True)


def _end(running: _Running) -> None:
    """End those processes of a step that are still at work."""
    for process in running.processes:
        process.terminate()
        process.join(_END_SECONDS)
        process.kill()


def _last_line(log: Path) -> str:
    """The last words of a log, of which progress bars write over their line."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _TAIL))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""
    lines = [line.strip() for line in text.replace("\r", "\n").splitlines()]
    return next((line for line in reversed(lines) if line), "")
