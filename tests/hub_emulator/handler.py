"""One HTTP request to the Hub: read, counted, perhaps failed on purpose, answered. The endpoints are next door."""

import json
import uuid
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, urlsplit

from .state import HubState, RecordedRequest


class HubError(Exception):
    """An answer other than success, as the Hub words it: status, the client's error code and a message."""

    def __init__(self, status: int, message: str, code: str = "", headers: dict[str, str] | None = None):
        super().__init__(message)
        self.status = status
        self.headers = {"X-Error-Code": code, "X-Error-Message": message, **(headers or {})}


class HubRequestHandler(BaseHTTPRequestHandler):
    """Reads requests and writes answers; `dispatch` finds the endpoint.

    Attributes:
        state: what all requests share.
        query: parsed query string of the request.
        body: its content, of a chunked one as well.
    """

    protocol_version = "HTTP/1.1"
    state: HubState
    query: dict[str, list[str]]
    body: bytes

    def dispatch(self, path: str) -> None:
        """Answer the request for `path`; raises [`HubError`] to refuse it."""
        raise NotImplementedError

    def handle_request(self) -> None:
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        self.body = self._read_body()
        self._status: int | None = None
        with self.state.lock:
            fault = next((fault for fault in self.state.faults if fault.strikes(self.command, url.path)), None)
            if fault is not None and fault.status is None:
                self.close_connection = True
            elif fault is not None and fault.status is not None:
                self.reply({"error": "A fault the test asked for."}, status=fault.status)
            else:
                try:
                    self.dispatch(url.path)
                except HubError as error:
                    self.reply({"error": str(error)}, status=error.status, headers=error.headers)
            self.state.requests.append(RecordedRequest(self.command, url.path, len(self.body), self._status))

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_request

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while num_bytes := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(num_bytes))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    @property
    def payload(self) -> dict[str, Any]:
        """The JSON object in the body; empty without a body."""
        return json.loads(self.body or b"{}")

    @property
    def bearer(self) -> str:
        """The token that came with the request; empty without one."""
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ")

    @property
    def may_read(self) -> bool:
        return self.bearer in (self.state.read_token, self.state.write_token)

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.connection.getsockname()[1]}"

    @property
    def storage_url(self) -> str:
        """Where LFS content lies: under another host name, so that clients stop at the redirect and leave the token
        behind, as they do with the real Hub."""
        return f"http://localhost:{self.connection.getsockname()[1]}"

    def reply(
        self,
        body: object = b"",
        status: int = 200,
        content_type: str = "application/json",
        headers: dict[str, str] | None = None,
    ) -> None:
        """Send bytes as they are, anything else as JSON."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self._status = status
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("X-Request-Id", str(uuid.uuid4()))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Keep the test output quiet; requests are recorded instead."""
