"""The emulator as a test sees it: start, stop, hand out an environment, look inside, break things."""

import os
import subprocess
import sys
import tempfile
import threading
from contextlib import AbstractContextManager
from http.server import ThreadingHTTPServer
from pathlib import Path
from types import TracebackType

from .endpoints import make_handler
from .faults import Fault
from .repository import Repository
from .state import HubState, RecordedRequest
from .this_process import client_settings


class HubEmulator:
    """A Hub on a free port of 127.0.0.1, for the length of a `with` block.

    `huggingface_hub` reads its settings at import, so the Hub's clients are subprocesses that start with
    [`~HubEmulator.environment`], which also gives each of them an empty cache of its own: a fresh machine. Where that
    is all that makes a test's process unfit, [`~HubEmulator.this_process`] makes it fit.

    Args:
        namespaces: users and organisations under which the write token may create repositories; the first one
            is the user that the tokens belong to.
    """

    def __init__(self, namespaces: tuple[str, ...] = ("org",)):
        self.state = HubState(namespaces=namespaces)
        self.endpoint = ""
        self._server: ThreadingHTTPServer | None = None
        self._scratch: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> "HubEmulator":
        self._scratch = tempfile.TemporaryDirectory(prefix="hub-emulator-")
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), make_handler(self.state))
        self._server.daemon_threads = True
        port = self._server.server_address[1]
        self.endpoint = f"http://127.0.0.1:{port}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None and self._scratch is not None
        self._server.shutdown()
        self._server.server_close()
        self._scratch.cleanup()

    # ---- clients

    @property
    def token(self) -> str:
        """A token that may write to the repositories of `namespaces`."""
        return self.state.write_token

    @property
    def read_token(self) -> str:
        """A token that may read private repositories and write nothing."""
        return self.state.read_token

    def environment(self, token: str | None = None, hf_home: str | os.PathLike | None = None) -> dict[str, str]:
        """Return the whole environment of a client process that talks to this Hub and to nothing else.

        Args:
            token: what the user is logged in with; `None` is not logged in.
            hf_home: the client's `HF_HOME` (cache and stored token); a new empty folder by default.
        """
        assert self._scratch is not None, "The emulator is started by `with HubEmulator() as hub:`."
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
        environment |= {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(hf_home or tempfile.mkdtemp(dir=self._scratch.name)),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "DO_NOT_TRACK": "1",
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
        }
        if token is not None:
            environment["HF_TOKEN"] = token
        return environment

    def run_python(
        self,
        code: str,
        *arguments: str | os.PathLike,
        token: str | None = None,
        cwd: str | os.PathLike | None = None,
        hf_home: str | os.PathLike | None = None,
        check: bool = True,
        timeout: float = 120,
        environment: dict[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run Python code as a client of this Hub, in a fresh process.

        Args:
            code: the program; it finds `arguments` in `sys.argv[1:]`.
            token, hf_home: see [`~HubEmulator.environment`].
            cwd: working folder; an empty scratch folder by default.
            check: whether an exit status other than 0 fails the calling test, with the client's output.
            timeout: in seconds.
            environment: variables besides.
        """
        assert self._scratch is not None, "The emulator is started by `with HubEmulator() as hub:`."
        completed = subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)],
            env=self.environment(token, hf_home) | (environment or {}),
            cwd=Path(cwd or self._scratch.name),
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        if check and completed.returncode:
            raise AssertionError(f"The client exited with {completed.returncode}:\n{completed.stderr[-4000:]}")
        return completed

    def this_process(
        self, token: str | None = None, environment: dict[str, str] | None = None
    ) -> AbstractContextManager[None]:
        """Make the calling process a client of this Hub for the length of a `with` block, with an empty cache.

        Args:
            token: see [`~HubEmulator.environment`].
            environment: variables besides.
        """
        return client_settings(self.environment(token) | (environment or {}))

    # ---- inspection

    @property
    def requests(self) -> list[RecordedRequest]:
        """The requests so far, in order."""
        with self.state.lock:
            return list(self.state.requests)

    def repository(self, repo_id: str, repo_type: str = "model") -> Repository:
        """Return a repository; raises `KeyError` when nothing created it."""
        with self.state.lock:
            return self.state.repositories[repo_type, repo_id]

    def read(self, repo_id: str, path: str, revision: str = "main", repo_type: str = "model") -> bytes:
        """Return the content of a file; raises `KeyError` when the revision or the file does not exist."""
        commit = self.repository(repo_id, repo_type).resolve(revision)
        if commit is None:
            raise KeyError(revision)
        file = commit.files[path]
        return self.state.lfs_objects[file.lfs_oid] if file.content is None and file.lfs_oid else file.content or b""

    # ---- faults

    def fail_next(self, count: int, status: int | None = 503, method: str = ".*", path: str = "") -> Fault:
        """Let the next `count` requests fail whose method and path match the regular expressions.

        A `status` of `None` closes the connection without an answer. The returned fault tells by its `remaining`
        how many failures are still to come.
        """
        fault = Fault(count, status, method, path)
        with self.state.lock:
            self.state.faults.append(fault)
        return fault

    def fail_next_uploads(self, count: int, status: int | None = 503) -> Fault:
        """Let the next `count` uploads of LFS content fail."""
        return self.fail_next(count, status, method="PUT", path="^/_lfs/")
