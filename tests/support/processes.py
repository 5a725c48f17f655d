"""Start scripts as processes of their own, and kill all that such a start has brought about.

The workers of a launcher lead sessions of their own: a signal to the launcher, or to its process group, does not reach
them, and SIGKILL gives it no chance to pass anything on. So they are looked up in `/proc` while it still lives.
"""

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path


# Between the Python interpreter and the script: two processes that talk over gloo, on a port that is free.
TWO_PROCESSES = (
    *("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"),
    *("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"),
)


def start(line: list[str], log: Path) -> subprocess.Popen:
    """Start a command line on the CPU, one thread per process; what it prints is appended to `log`."""
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    with log.open("a") as file:
        return subprocess.Popen(line, env=environment, stdout=file, stderr=file)


def children(pid: int) -> list[int]:
    """The processes that a process started and that are not reaped, oldest first; none if it is gone."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def kill_tree(process: subprocess.Popen) -> None:
    """Kill a process and its descendants by SIGKILL, and wait until all are dead; does nothing if it has ended."""
    if process.poll() is not None:
        return
    victims = [process.pid, *_descendants(process.pid)]
    for victim in victims:
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
    process.wait()
    while any(_is_running(victim) for victim in victims):
        time.sleep(0.002)


def running_with(argument: str | Path) -> list[int]:
    """Running processes with this argument on their command line, whoever started them and whatever became of that."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it may end while we look
            if str(argument).encode() in (folder / "cmdline").read_bytes().split(b"\0"):
                found.append(int(folder.name))
    return found


def _descendants(pid: int) -> list[int]:
    return [each for child in children(pid) for each in (child, *_descendants(child))]


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_to_kill(process, rng, span, is_writing):
    """Wait for a random moment within `span` seconds; in half of the cases for the next one when a file is written."""
    moment = time.monotonic() + rng.uniform(0, span)
    wait_for_writing = rng.random() < 0.5
    while process.poll() is None:
        now = time.monotonic()
        if now >= moment and (not wait_for_writing or is_writing() or now > moment + span):
            return
        time.sleep(0.0005)
