"""Start a command in a process that has its imports already: a fork, for tests that start one many times.

Importing torch and diffusers takes seconds of CPU time, explaining a few small images less. What is tested is the
same: processes of their own, which SIGKILL strikes at any moment.
"""

import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path


class Forked:
    """A forked process, with what `subprocess.Popen` has of use here."""

    def __init__(self, pid: int):
        self.pid, self._code = pid, None

    def poll(self) -> int | None:
        """The exit code, `None` while it runs."""
        if self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._code = os.waitstatus_to_exitcode(status) if pid else None
        return self._code

    def wait(self) -> int:
        """Wait for its end."""
        while (code := self.poll()) is None:
            time.sleep(0.005)
        return code

    def kill(self) -> None:
        """End it by SIGKILL."""
        os.kill(self.pid, signal.SIGKILL)

    def has_company(self) -> bool:
        """Whether any process of its session runs."""
        try:
            os.killpg(self.pid, 0)
        except ProcessLookupError:
            return False
        return True


def fork(run: Callable[[], int | None], log: Path) -> Forked:
    """Run something in a fork that leads a session of its own; what it prints is appended to `log`."""
    log.touch()
    if pid := os.fork():
        return Forked(pid)
    os.setsid()
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os._exit(_code_of(run))


def fork_ranks(run: Callable[[], int | None], num_processes: int, log: Path) -> Forked:
    """As `fork`, but as a launcher of so many processes that find one another as `torchrun` lets them."""

    def launch() -> int:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(num_processes)}
        os.environ.update(place, LOCAL_WORLD_SIZE=str(num_processes))
        pids = []
        for rank in range(num_processes):
            if not (pid := os.fork()):
                os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
                os._exit(_code_of(run))
            pids.append(pid)
        return max(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids)

    return fork(launch, log)


def _code_of(run: Callable[[], int | None]) -> int:
    try:
        code = run() or 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code
