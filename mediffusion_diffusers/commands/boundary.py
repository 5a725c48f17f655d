"""The one place where a command turns errors into one line and an exit code.

run_command(main, "mediffusion explain")
"""

from __future__ import annotations

import csv
import json
import os
import sys
import traceback
import zipfile
import zlib
from collections.abc import Callable

from safetensors import SafetensorError

from ..hub import HUB_ERRORS, hub_failure
from ..option_parser import UsageError
from ..privacy import without_tokens
from ..stop_request import StoppedBySignal


TRACEBACK_VARIABLE = "MEDIFFUSION_TRACEBACK"
# What a user can correct: arguments, files, numbers that left their range, memory; `explain` knows of the Hub's.
_EXPECTED = (OSError, ValueError, FloatingPointError, ImportError, MemoryError)
# What libraries raise for a file that is damaged or not of the kind that its name says.
_DAMAGED_FILE = (SafetensorError, zipfile.BadZipFile, zlib.error, csv.Error, EOFError)


def run_command(main: Callable[[], int | None], name: str) -> None:
    """Run a command and end the process: 0 if it did its work, 1 for an error, 2 for a wrong command line.

    An error is said in one line on the standard error.

    Args:
        main: does the work; what it returns is the exit code, `None` is 0.
        name: of the command, before each message.

    Raises:
        SystemExit: always.
    """
    try:
        code = main()
    except (SystemExit, StoppedBySignal):
        raise
    except KeyboardInterrupt:
        print(f"{name}: stopped by Ctrl-C.", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # Whoever read the output has left; Python would complain again when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except Exception as error:
        if os.environ.get(TRACEBACK_VARIABLE):
            traceback.print_exc()
        print(without_tokens(f"{name}: {explain(error)}"), file=sys.stderr)
        sys.exit(2 if isinstance(error, UsageError) else 1)
    sys.exit(code or 0)


def explain(error: BaseException) -> str:
    """An error as one line for the user.

    Args:
        error: what ended the command.
    """
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, (*HUB_ERRORS, RuntimeError)) and not isinstance(error, PermissionError):
        sentence = hub_failure(error)
        if isinstance(error, RuntimeError) and sentence is not None:
            return sentence
        text = sentence or text
    if isinstance(error, MemoryError) or "out of memory" in text.lower() or "allocate memory" in text:
        return f"there is not enough memory ({text}). Take a smaller batch or smaller images."
    if isinstance(error, json.JSONDecodeError):
        return f"a JSON file is damaged: {text}."
    if isinstance(error, _DAMAGED_FILE):
        return f"a file is damaged or not of the kind that its name says: {text}."
    if isinstance(error, (*_EXPECTED, *HUB_ERRORS)):
        return text
    place = traceback.extract_tb(error.__traceback__)[-1:] if error.__traceback__ else []
    where = f" ({os.path.basename(place[0].filename)}, line {place[0].lineno})" if place else ""
    return (
        f"this is a fault of the software and not of your input: {type(error).__name__}: {text}{where}. Please report "
        f"it with what {TRACEBACK_VARIABLE}=1 prints."
    )
