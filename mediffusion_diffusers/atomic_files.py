"""Files that are whole or not there: written aside in the same folder, then renamed into place."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any


def write_bytes(path: str | os.PathLike[str], content: bytes, mode: int = 0o644) -> None:
    """Write a file. A failure leaves what was there before.

    Args:
        path: the file; its folder must exist.
        content: the whole content.
        mode: permissions of the file.
    """
    path = Path(path)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(temporary, mode)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def write_text(path: str | os.PathLike[str], text: str, mode: int = 0o644) -> None:
    """Write a text file as UTF-8, line ends unchanged; see `write_bytes`."""
    write_bytes(path, text.encode("utf-8"), mode)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write a value as indented JSON; see `write_text`."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
