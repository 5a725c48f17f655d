"""What must not leave this machine with a card or a checkpoint: local paths and access tokens."""

import os
import re
from typing import Any


_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{30,}")


def is_local_path(value: Any) -> bool:
    """Whether a value names a file or folder here; `organisation/name` on the Hub does not, unless it is one here."""
    if not isinstance(value, str) or not re.search(r"[/\\~]", value):
        return False
    return re.fullmatch(r"[\w.-]+/[\w.-]+", value) is None or os.path.exists(value)


def holds_token(text: str, token: str | None = None) -> bool:
    """Whether a text holds an access token of the Hub, or the given one."""
    return _TOKEN.search(text) is not None or (token is not None and token in text)


def without_tokens(text: str, token: str | None = None) -> str:
    """The text with `***` in place of access tokens of the Hub and of the given one."""
    return _TOKEN.sub("***", text if not token else text.replace(token, "***"))
