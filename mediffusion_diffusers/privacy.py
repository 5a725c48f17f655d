"""What must not leave this machine: local paths and access tokens at all, and for the public what is private."""

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
    return _TOKEN.search(text) is not None or (bool(token) and str(token) in text)


def without_tokens(text: str, token: str | None = None) -> str:
    """The text with `***` in place of access tokens of the Hub and of the given one."""
    return _TOKEN.sub("***", text if not token else text.replace(token, "***"))


def require_private(api: Any, repo_id: str, repo_type: str = "model") -> None:
    """Refuse a repository that is public, before anything is uploaded that shall be private.

    Args:
        api: a `huggingface_hub.HfApi` with the user's token.
        repo_id: the repository, which must exist.
        repo_type: `"model"`, `"space"` or `"dataset"`.

    Raises:
        ValueError: if it is public.
    """
    if not api.repo_info(repo_id, repo_type=repo_type).private:
        raise ValueError(
            f"A private repository was asked for, but {repo_id} exists and is public. Nothing was uploaded. Make it "
            "private in its settings on the Hub, or name another repository."
        )
