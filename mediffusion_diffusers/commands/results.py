"""Results of hours are never lost: what cannot be written where it should be is kept elsewhere, and that is said."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar


Written = TypeVar("Written")


def write_results(write: Callable[[Path], Written], folder: Path, figures: Mapping[str, Any] | None = None) -> Written:
    """Write results into a folder; if that fails, into a temporary one; if that fails too, figures to the terminal.

    Args:
        write: writes them into the folder that it is given.
        folder: where they belong.
        figures: the figures among them, for JSON.

    Raises:
        OSError: if they could not be written into `folder`, saying why and where they are now.
    """
    try:
        return write(folder)
    except Exception as error:
        raise OSError(
            f"The results could not be written into {str(folder)!r}: {str(error).rstrip('.')}. {_keep(write, figures)}"
        ) from error


def _keep(write: Callable[[Path], Any], figures: Mapping[str, Any] | None) -> str:
    """Keep results elsewhere; returns a sentence that says where."""
    try:
        elsewhere = Path(tempfile.mkdtemp(prefix="mediffusion-results-"))
        write(elsewhere)
    except Exception:
        if figures is None:
            return "They could not be kept in a temporary folder either."
        print(json.dumps(figures, indent=2))
        return "Their figures are printed above."
    return f"They are kept in {str(elsewhere)!r}."
