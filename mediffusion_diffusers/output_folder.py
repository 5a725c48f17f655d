"""An output folder is tried for writing before the work begins, and belongs to one run at a time."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO


try:
    import fcntl
except ImportError:  # Windows has no flock: there the folder is tried for writing, and not locked
    fcntl = None  # type: ignore[assignment]

LOCK_FILE = ".lock"
# What some network file systems answer where they know no locks.
_NO_LOCKS_HERE = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)


def try_writing(folder: str | os.PathLike[str], parameter: str = "output_dir") -> Path:
    """Make a folder and write a file of a few KB into it, so that hours of work do not end at a folder that is none.

    Args:
        folder: the folder; it is made, with its parents.
        parameter: what names it, for the message.

    Returns:
        The folder.

    Raises:
        ValueError: if it is a file, or cannot be made or written to, with the reason.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:  # without a name: a kill leaves nothing
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        reason = error.strerror or str(error)
        if isinstance(error, (FileExistsError, NotADirectoryError)):
            reason = f"{error.filename} is a file"
        raise ValueError(
            f"`{parameter}` must be a folder that can be written to, but {os.fspath(folder)!r} is not: {reason}. Name "
            "another folder, or make room or give permission there."
        ) from error
    return folder


@contextmanager
def writable_folder(folder: str | os.PathLike[str], parameter: str = "output_dir") -> Iterator[Path]:
    """Try a folder for writing; if the block fails and left nothing there, a folder that was made for it goes again.

    So an argument that turns out to be wrong leaves no empty folder behind.

    Args:
        folder: see `try_writing`.
        parameter: likewise.

    Raises:
        ValueError: as `try_writing`.
    """
    made = missing_folders(folder)
    try:
        yield try_writing(folder, parameter)
    except BaseException:
        remove_empty(made)
        raise


def missing_folders(folder: str | os.PathLike[str]) -> list[Path]:
    """A folder and those above it, as far as they have to be made, the lowest first."""
    folder = Path(folder)
    return [place for place in (folder, *folder.parents) if not place.exists()]


def remove_empty(folders: Sequence[Path]) -> None:
    """Remove folders that hold nothing.

    Args:
        folders: the lowest first; what holds anything stays, with all above it.
    """
    with suppress(OSError):
        for folder in folders:
            with suppress(FileNotFoundError):
                folder.rmdir()


@contextmanager
def claimed_folder(
    folder: str | os.PathLike[str], parameter: str = "output_dir", lock_file: str = LOCK_FILE
) -> Iterator[Path]:
    """A `writable_folder` that is held, as long as the block runs, against a second run in the same folder.

    The operating system drops the lock when the process ends, however it ends; the empty lock file stays where
    anything else does.

    Args:
        folder: see `try_writing`.
        parameter: likewise.
        lock_file: name of the lock; another one for a command whose steps claim the same folder.

    Raises:
        ValueError: as `try_writing`, and if another run holds it.
    """
    with writable_folder(folder, parameter) as place:
        lock = place / lock_file
        with open(lock, "a") as file:
            _hold(file, f"`{parameter}` {os.fspath(folder)!r}")
            try:
                yield place
            except BaseException:
                with suppress(OSError):
                    if list(place.iterdir()) == [lock]:
                        lock.unlink()
                raise


def _hold(file: TextIO, name: str) -> None:
    """Lock an open file until it is closed.

    Raises:
        ValueError: if another process holds it.
    """
    if fcntl is None:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(
            f"{name} is in use by another run. Wait until it has ended, or name another folder."
        ) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS_HERE:
            raise
