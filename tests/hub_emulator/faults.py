"""Faults that a Hub shows now and then, to be asked for by a test."""

import re
from dataclasses import dataclass


@dataclass
class Fault:
    """Answer the next `remaining` matching requests with an error instead of serving them.

    Attributes:
        remaining: how many more requests fail.
        status: HTTP status of the answer; `None` closes the connection without an answer.
        method: regular expression of the whole HTTP method.
        path: regular expression searched in the path of the request.
    """

    remaining: int
    status: int | None = 503
    method: str = ".*"
    path: str = ""

    def strikes(self, method: str, path: str) -> bool:
        """Whether this request fails; a request that does is counted."""
        if self.remaining < 1 or not re.fullmatch(self.method, method) or not re.search(self.path, path):
            return False
        self.remaining -= 1
        return True
