"""What a command has found out: told on the standard output, and never lost.

Results of hours that cannot be written where they should be are kept elsewhere, and that is said.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar


Written = TypeVar("Written")


def say_result(result: Any) -> None:
    """Print a result as JSON, which is all that a command with `--json` prints to the standard output.

    Args:
        result: dicts, lists, texts and numbers; NaN, which JSON does not know, becomes null.
    """
    print(json_text(result))


def json_text(result: Any) -> str:
    """A result as JSON; see `say_result`."""
    from ..evaluation.classification import nan_to_none

    return json.dumps(nan_to_none(result), indent=2)


def note(sentence: str) -> None:
    """Tell the user something beside the result, on the standard error."""
    print(sentence, file=sys.stderr)


def write_results(write: Callable[[Path], Written], folder: Path, figures: Mapping[str, Any] | None = None) -> Written:
    """Write results into a folder; if that fails, into a temporary one; if that fails too, figures to the terminal.

    Args:
        write: writes them into the folder that it is given.
        folder: where they belong.
        figures: the figures among them, for JSON.

    Raises:
        OSError: if they could not be written into `folder`, saying why and where they are now.
        Exception: whatever else `write` raises, after a note that says where they are now.
    """
    try:
        return write(folder)
    except OSError as error:
        raise OSError(
            f"The results could not be written into {str(folder)!r}: {str(error).rstrip('.')}. {_keep(write, figures)}"
        ) from error
    except Exception:
        note(f"The results could not all be written into {str(folder)!r}. {_keep(write, figures)}")
        raise


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
