"""Everything the emulated Hub knows."""

import secrets
import threading
from dataclasses import dataclass, field

from .faults import Fault
from .repository import Repository


def _new_token() -> str:
    return f"hf_{secrets.token_hex(17)}"


@dataclass(frozen=True)
class RecordedRequest:
    """One request that reached the Hub; `status` is `None` where the connection was dropped."""

    method: str
    path: str
    num_bytes: int
    status: int | None


@dataclass
class HubState:
    """What the request handlers share; they hold `lock` while they serve a request.

    Attributes:
        namespaces: users and organisations under which the write token may create repositories.
        repositories: by (repo_type, repo_id).
        lfs_objects: content by its SHA-256.
        requests: what reached the Hub, in order.
        faults: asked for and not yet all used up.
    """

    namespaces: tuple[str, ...]
    write_token: str = field(default_factory=_new_token)
    read_token: str = field(default_factory=_new_token)
    repositories: dict[tuple[str, str], Repository] = field(default_factory=dict)
    lfs_objects: dict[str, bytes] = field(default_factory=dict)
    requests: list[RecordedRequest] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    lock: threading.RLock = field(default_factory=threading.RLock)
