"""Files of several processes in one folder: written under a lock, renamed when whole, cleared away when abandoned.

A process locks what it writes (`flock`) and the operating system drops the lock when the process ends, however it
ends. So a file that can be locked is nobody's. Locks may not reach from one machine to another; there a file counts
as abandoned only after a day without a write.
"""

from __future__ import annotations

import hashlib
import os
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


try:
    import fcntl
except ImportError:  # Windows has no flock: nothing is ever cleared away there
    fcntl = None  # type: ignore[assignment]

ABANDONED_SECONDS = 24 * 3600.0
_MAKE_FOLDER_TRIES = 100
_HOST = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def make_folder(folder: Path) -> None:
    """Create a folder and those above it, though other processes may remove these while they are empty."""
    for _ in range(_MAKE_FOLDER_TRIES):
        with suppress(FileNotFoundError, FileExistsError):  # removed between two of the steps that `mkdir` takes
            return folder.mkdir(parents=True, exist_ok=True)
    folder.mkdir(parents=True, exist_ok=True)


def remove_empty_folders(folder: Path, stop_at: Path) -> None:
    """Remove `folder` and the folders above it up to `stop_at`, itself included, as far as they are empty."""
    while True:
        try:
            folder.rmdir()
        except FileNotFoundError:
            pass
        except OSError:
            return
        if folder == stop_at:
            return
        folder = folder.parent


@contextmanager
def locked_file(folder: Path, name: str) -> Iterator[tuple[BinaryIO, Path]]:
    """A new file under a name of its own, locked inside the block.

    Args:
        folder: created if it is not there.
        name: beginning of the name.

    Yields:
        The open file, and its path.
    """
    while True:
        make_folder(folder)
        try:
            handle, path = tempfile.mkstemp(dir=folder, prefix=f"{name}-{_HOST}-")
        except FileNotFoundError:  # another process found the folder empty and removed it
            continue
        with os.fdopen(handle, "w+b") as file:
            with suppress(OSError):  # a file system without locks: nothing is ever cleared away there
                if fcntl is not None:
                    fcntl.flock(file, fcntl.LOCK_EX)
            if not os.path.exists(path):  # cleared away between its creation and the lock
                continue
            yield file, Path(path)
            return


@contextmanager
def staged_file(folder: Path, target: Path) -> Iterator[BinaryIO]:
    """A file to write that takes the name `target` at the end of the block, whole and on disk, or is gone.

    Args:
        folder: where it lies meanwhile, in the file system of `target`.
        target: what it becomes; its folder is created.
    """
    with locked_file(folder, "file") as (file, path):
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            path.chmod(0o644)
            make_folder(target.parent)
            os.replace(path, target)
        except BaseException:
            path.unlink(missing_ok=True)
            raise


def files_below(folder: Path, skip: str | None = None) -> list[Path]:
    """The files below a folder, sorted. Others may remove folders meanwhile; `Path.rglob` would raise then.

    Args:
        folder: it need not be there.
        skip: name of a folder in it that is not looked into.
    """
    found = []
    for root, folders, names in os.walk(folder):
        if root == str(folder) and skip in folders:
            folders.remove(skip)
        found += [Path(root, name) for name in names]
    return sorted(found)


def remove_abandoned(folder: Path) -> list[Path]:
    """Delete the files of `folder` whose writers are gone, and say which."""
    removed = []
    for path in files_below(folder) if fcntl is not None else []:
        try:
            with path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                is_ours = f"-{_HOST}-" in path.name
                if is_ours or time.time() - os.fstat(file.fileno()).st_mtime > ABANDONED_SECONDS:
                    path.unlink()
                    removed.append(path)
        except OSError:  # locked by its writer, or gone already
            continue
    return removed
