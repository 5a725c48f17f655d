"""An output folder is tried for writing before the work begins, and belongs to one run at a time."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".writing-", suffix=".partial") as file:
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
def claimed_folder(
    folder: str | os.PathLike[str], parameter: str = "output_dir", lock_file: str = LOCK_FILE
) -> Iterator[Path]:
    """Try a folder for writing and hold it, as long as the block runs, against a second run in the same folder.

    The operating system drops the lock when the process ends, however it ends; the empty lock file stays.

    Args:
        folder: see `try_writing`.
        parameter: likewise.
        lock_file: name of the lock; another one for a command whose steps claim the same folder.

    Raises:
        ValueError: as `try_writing`, and if another run holds it.
    """
    folder = try_writing(folder, parameter)
    with open(folder / lock_file, "a") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(
                    f"`{parameter}` {os.fspath(folder)!r} is in use by another run. Wait until it has ended, or name "
                    "another folder."
                ) from None
            except OSError as error:
                if error.errno not in _NO_LOCKS_HERE:
                    raise
        yield folder
