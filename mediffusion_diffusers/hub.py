"""What went wrong between this machine and the Hub, in one true sentence."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from .privacy import without_tokens


# The library below huggingface_hub, requests or httpx by version: the root of its errors, where no answer came.
_TRANSPORT_ERROR: type[Exception] = [
    kind for kind in HfHubHTTPError.__mro__ if kind.__module__.split(".")[0] not in ("huggingface_hub", "builtins")
][-1]
HUB_ERRORS = (OSError, HfHubHTTPError, _TRANSPORT_ERROR)
_CLOSED_CLIENT = "client has been closed"  # older huggingface_hub, when it tries again after a lost connection


class HubFailure(OSError):
    """The Hub could not be read or written; the message says why and what to do."""


@contextmanager
def hub_access(
    source: str | os.PathLike[str] | None, revision: str | None = None, token: Any = None
) -> Iterator[None]:
    """Say in one sentence why reading a model, dataset or file from the Hub failed.

    diffusers and transformers answer most failures with "outgoing traffic has been disabled" or a list of guesses. If
    theirs does not name the cause, the Hub is asked once more what it thinks of the repository.

    Args:
        source: the folder or repository that is read inside the block; errors about folders pass unchanged.
        revision: branch, tag or commit.
        token: the token that is used.

    Raises:
        HubFailure: in place of an error of the Hub or the network.
    """
    try:
        yield
    except HubFailure:
        raise
    except (*HUB_ERRORS, ValueError, RuntimeError) as error:
        if source is None or Path(source).exists() or (isinstance(error, RuntimeError) and not _is_lost(error)):
            raise
        sentence = hub_failure(error, str(source)) or _ask(str(source), revision, token)
        if sentence is None:
            raise
        raise HubFailure(without_tokens(sentence, token if isinstance(token, str) else None)) from error


def hub_failure(error: BaseException | None, source: str | None = None) -> str | None:
    """Why the Hub failed, or `None` if an error and what caused it are not about the Hub.

    Args:
        error: the error.
        source: what was read, if known.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        known = source or getattr(error, "repo_id", None)
        name = "the repository" if known is None else repr(known)
        if isinstance(error, HubFailure):
            return str(error)
        if isinstance(error, OfflineModeIsEnabled):
            return f"Offline mode is on, and {name} is not on this machine. Unset HF_HUB_OFFLINE, or name a folder."
        if isinstance(error, HFValidationError):
            return f"Neither a folder here nor a name on the Hub, such as 'organisation/name': {name}."
        response = getattr(error, "response", None)
        if isinstance(error, HfHubHTTPError) and response is not None:
            sentence = _answered(error, int(response.status_code), name)
            return sentence[0].upper() + sentence[1:]
        if _is_lost(error) or (isinstance(error, _TRANSPORT_ERROR) and getattr(error, "response", None) is None):
            return _unanswered(error, source)
        # What was raised `from None` says all there is to say.
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return None


def _answered(error: HfHubHTTPError, status: int, name: str) -> str:
    """What an answer of the Hub means."""
    if isinstance(error, GatedRepoError):
        return (
            f"{name} is gated ({status}): ask for access on its page on the Hub, and use a token of the user who got "
            "it (`hf auth login` or HF_TOKEN)."
        )
    if isinstance(error, RevisionNotFoundError):
        return f"{name} has no such revision on the Hub ({status}). Name one of its branches, tags or commits."
    if isinstance(error, EntryNotFoundError):
        return f"{name} lacks a file that is needed ({status}): {_url_path(error)}. Is it a model of another kind?"
    if isinstance(error, RepositoryNotFoundError) and status == 404:
        return f"{name} is neither a folder here nor a repository on the Hub (404). Check the name."
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"{name} is neither a folder here nor a repository on the Hub that may be read without a login "
            f"({status}). Check the name; if it is private, run `hf auth login` or set HF_TOKEN to a token that may "
            "read it."
        )
    if status == 401:
        return (
            "The Hub does not accept the token (401): it is wrong or has expired. Run `hf auth login` or set HF_TOKEN."
        )
    if status == 403:
        return (
            f"The token has no right to this at {name} (403). Use one of a user who may, with the role that it needs."
        )
    if status == 429:
        return "The Hub asks for fewer requests (429). Wait some minutes, and try again with a token."
    if status >= 500:
        return f"The Hub has a fault of its own ({status}). Try again later; what is done so far is kept."
    return f"The Hub refused the request ({status}): {_url_path(error)}."


def _unanswered(error: BaseException, source: str | None) -> str:
    """What it means that there was no answer."""
    the_hub = "The Hub" if source is None else f"{source!r} is no folder here, and the Hub"
    the_hub = f"{the_hub} at {huggingface_hub.constants.ENDPOINT}"
    if "timeout" in type(error).__name__.lower() or "timed out" in str(error).lower():
        return f"{the_hub} did not answer in time. Try again, or set HF_HUB_DOWNLOAD_TIMEOUT higher."
    reason = " ".join(str(error).split()) or type(error).__name__
    return f"{the_hub} cannot be reached ({reason}). Check the network and its proxy, or name a folder."


def _ask(source: str, revision: str | None, token: Any) -> str | None:
    """Ask the Hub about a repository, and give its refusal as a sentence; `None` if it has no objection."""
    try:
        huggingface_hub.HfApi(token=token).model_info(source, revision=revision, timeout=10)
    except (*HUB_ERRORS, ValueError, RuntimeError) as error:
        return hub_failure(error, source)
    return None


def _is_lost(error: BaseException) -> bool:
    """Whether a connection was lost, which huggingface_hub calls a closed client."""
    return isinstance(error, RuntimeError) and _CLOSED_CLIENT in str(error)


def _url_path(error: HfHubHTTPError) -> str:
    """Path of the request without host and query, which may carry a signature."""
    return str(getattr(getattr(error, "response", None), "url", "")).partition("?")[0]
