"""Files and folders that are whole or not there: written aside in the same folder, then renamed into place.

What lies aside is called `.NAME.RANDOM.partial`: a killed process leaves it behind, and nobody takes it for a result.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


SUFFIX = ".partial"


@contextmanager
def new_file(path: str | os.PathLike[str], mode: int = 0o644) -> Iterator[Path]:
    """A place to write a file, which gets its name at the end of the block. A failure leaves what was there before.

    Args:
        path: the file; its folder must exist.
        mode: permissions of the file.

    Yields:
        Where to write it: an empty file beside `path`.

    Raises:
        FileExistsError: for a device or pipe, such as `/dev/stdout`: a file would take its place.

    Example:
        >>> with new_file("weights.safetensors") as aside:  # doctest: +SKIP
        ...     save_file(tensors, aside)
    """
    path = Path(path)
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise FileExistsError(
            f"{os.fspath(path)} is a device or pipe, and would be replaced by a file. Choose the name of a file."
        )
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=SUFFIX)
    os.close(handle)
    try:
        yield Path(temporary)
        os.chmod(temporary, mode)
        os.replace(temporary, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


@contextmanager
def new_folder(path: str | os.PathLike[str], mode: int = 0o755) -> Iterator[Path]:
    """A place to write a folder, which gets its name at the end of the block. A failure leaves what was there before.

    A folder that had the name is put aside until that worked, then deleted.

    Args:
        path: the folder; the one above it must exist.
        mode: permissions of the folder.

    Yields:
        Where to write it: an empty folder beside `path`.
    """
    path = Path(path)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=SUFFIX))
    try:
        yield temporary
        os.chmod(temporary, mode)
        _replace_folder(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def write_bytes(path: str | os.PathLike[str], content: bytes, mode: int = 0o644) -> None:
    """Write a file; see `new_file`.

    Args:
        path: the file; its folder must exist.
        content: the whole content.
        mode: permissions of the file.
    """
    with new_file(path, mode) as temporary:
        temporary.write_bytes(content)


def write_text(path: str | os.PathLike[str], text: str, mode: int = 0o644) -> None:
    """Write a text file as UTF-8, line ends unchanged; see `new_file`."""
    write_bytes(path, text.encode("utf-8"), mode)


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file.

    Raises:
        ValueError: naming the file, if it is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{os.fspath(path)} is not JSON: {error}. Write it anew, or restore it.") from error


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write a value as indented JSON; see `new_file`."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def create_json(path: str | os.PathLike[str], value: Any) -> bool:
    """Write a value as JSON, unless somebody else was first.

    Args:
        path: the file; its folder must exist.
        value: the value.

    Returns:
        Whether it was written; if not, the file that was there is as it was.
    """
    path = Path(path)
    if path.exists():
        return False
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.", suffix=SUFFIX) as folder:
        aside = Path(folder) / path.name
        write_json(aside, value)
        try:
            os.link(aside, path)
        except FileExistsError:
            return False
        except OSError:  # a file system without links, where the last one of two that write at once is the first
            write_json(path, value)
    return True


def remove(path: str | os.PathLike[str]) -> None:
    """Delete a file, a folder with all that is in it, or a link but not what it points to; nothing may be there."""
    path = Path(path)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _replace_folder(temporary: Path, folder: Path) -> None:
    """Give `temporary` the name `folder`."""
    if not os.path.lexists(folder):
        os.replace(temporary, folder)
        return
    previous = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.previous-", suffix=SUFFIX))
    os.replace(folder, previous / "content")
    try:
        os.replace(temporary, folder)
    except BaseException:
        os.replace(previous / "content", folder)
        raise
    finally:
        shutil.rmtree(previous, ignore_errors=True)
