"""Start Python programs without Python's start: a process that has its imports already forks for each of them.

Importing torch, diffusers and transformers takes seconds, what a test asks of a program often less than one. What is
started is a process of its own all the same, with an environment, a working folder, signals, output and an exit code,
and ends as the interpreter lets it end. Not for what reads its settings at import, as `huggingface_hub` does.
"""

import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from mediffusion_diffusers.commands.demo.worker import environments


LIBRARIES = (
    *("accelerate.commands.launch", "datasets", "diffusers", "safetensors.torch", "torch", "transformers"),
    *("diffusers.models.autoencoders.autoencoder_kl", "torch.distributed.run"),
)
COMMANDS = (
    *("mediffusion_diffusers.pipelines", "mediffusion_diffusers.training.joint.task"),
    *("mediffusion_diffusers.commands.explain_dataset", "mediffusion_diffusers.explanation.dataset_runner"),
)
_LARGEST_REQUEST = 2**17  # bytes: an environment and a command line


class Started:
    """A started program, with what `subprocess.Popen` has of use here."""

    def __init__(self, server: "ForkServer", pid: int):
        self.pid, self.returncode, self._server = pid, None, server

    def poll(self) -> int | None:
        """The exit code, `None` while it runs."""
        if self.returncode is None:
            self.returncode = self._server.code_of(self.pid)
        return self.returncode

    def wait(self, timeout: float = 300) -> int:
        """Wait for its end; raises `TimeoutError` after so many seconds."""
        ends = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > ends:
                raise TimeoutError(f"Process {self.pid} still runs after {timeout} s.")
            time.sleep(0.005)
        return code

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)


class ForkServer:
    """Starts command lines as forks of a process that has imported the libraries; for the length of a `with` block."""

    def __enter__(self) -> "ForkServer":
        self._codes: dict[int, int] = {}
        self._connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno())],
                env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for the tests
            )
        return self

    def __exit__(self, *error: object) -> None:
        self._connection.close()
        self._process.wait()

    def start(
        self, line: list[str], log: Path, environment: dict[str, str] | None = None, num_processes: int = 1
    ) -> Started:
        """Start a command line, as `support.processes.start` does.

        Args:
            line: the interpreter, then a script, `-m` and a module, or `-c` and a program, then arguments.
            log: what it prints is appended here.
            environment: variables besides those of this process.
            num_processes: if more than one, so many processes below one that waits for them, as a launcher's.
        """
        variables = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", **(environment or {})}
        request = {"words": [*map(str, line[1:])], "environment": variables, "folder": os.getcwd()}
        request["places"] = environments(num_processes)
        with log.open("ab") as file:
            socket.send_fds(self._connection, [json.dumps(request).encode()], [file.fileno()])
        while "started" not in (answer := self._receive()):
            self._codes |= {answer["ended"]: answer["code"]}
        return Started(self, answer["started"])

    def code_of(self, pid: int) -> int | None:
        """The exit code of something started, `None` while it runs."""
        while pid not in self._codes and select.select([self._connection], [], [], 0)[0]:
            answer = self._receive()
            self._codes[answer["ended"]] = answer["code"]
        return self._codes.get(pid)

    def _receive(self) -> dict:
        answer = self._connection.recv(_LARGEST_REQUEST)
        assert answer, f"The server that forks has ended with {self._process.wait()}."
        return json.loads(answer)


def serve(connection: socket.socket) -> list[str] | None:
    """Fork for each request and report each end; a fork returns its command line, the server `None` at the end."""
    running: set[int] = set()
    while True:
        if select.select([connection], [], [], 0.01 if running else None)[0]:
            request, files, *_ = socket.recv_fds(connection, _LARGEST_REQUEST, 1)
            if not request:
                break
            if not (pid := os.fork()):
                connection.close()
                return _become(json.loads(request), *files)
            os.close(*files)
            running.add(pid)
            connection.send(json.dumps({"started": pid}).encode())
        for pid in [*running]:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                running.remove(pid)
                answer = {"ended": pid, "code": os.waitstatus_to_exitcode(status)}
                connection.send(json.dumps(answer).encode())
    for pid in running:
        os.kill(pid, signal.SIGKILL)
    return None


def _become(request: dict, file: int) -> list[str]:
    for descriptor in (1, 2):
        os.dup2(file, descriptor)
    os.close(file)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    if len(request["places"]) > 1:
        _launch(request["places"])
    return request["words"]


def _launch(places: list[dict[str, str]]) -> None:
    """Fork for each place and return there; the process that forks waits for all and ends."""
    pids = []
    for place in places:
        if not (pid := os.fork()):
            os.environ.update(place)
            return
        pids.append(pid)
    statuses = [os.waitpid(pid, 0)[1] for pid in pids]
    os._exit(int(any(statuses)))


def run(words: list[str]) -> None:
    """Run what follows the interpreter in a command line, as the interpreter does."""
    kind, *rest = words
    if kind == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.argv = ["-c", *rest[1:]]
        sys.path.insert(0, "")
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = words
        sys.path.insert(0, str(Path(kind).parent))
        runpy.run_path(kind, run_name="__main__")


if __name__ == "__main__":
    sys.path.pop(0)  # the folder of this file
    for name in (*LIBRARIES, *COMMANDS):
        importlib.import_module(name)
    threads = {thread.read_text().strip() for thread in Path("/proc/self/task").glob("*/comm")}
    # pyarrow's allocator starts its own again after a fork
    assert len(threads - {"jemalloc_bg_thd"}) == 1, f"An import has started a thread that forks would miss: {threads}."
    gc.freeze()
    if (words := serve(socket.socket(fileno=int(sys.argv[1])))) is not None:
        run(words)
