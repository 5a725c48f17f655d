"""The one place where whatever a single bad file provokes becomes a reason: the rest of the work goes on."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager


# Where an object lies in memory differs from run to run, and a reason should not.
_ADDRESS = re.compile(r" ?<[\w.]+ object at 0x[0-9a-f]+>")


@contextmanager
def reading(action: str) -> Iterator[None]:
    """Turn every error of reading one item into a `ValueError`: "Cannot <action>: <reason>".

    Decoders raise what their damaged input leads them to (OSError, SyntaxError, struct.error, RecursionError,
    MemoryError and others), so no list of types is complete.

    Args:
        action: what is tried, with the item's name: "decode chest.png".

    Raises:
        ValueError: in place of any error.
    """
    try:
        yield
    except Exception as error:
        raise ValueError(f"Cannot {action}: {reason(error)}") from error


def reason(error: Exception) -> str:
    """An error on one line, in words that are the same in every run."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)  # without its path
    text = " ".join(_ADDRESS.sub("", text).split())
    if isinstance(error, MemoryError):
        return f"it does not fit into memory ({text or 'MemoryError'})"
    return text or type(error).__name__
