"""The files below a folder, every one of them accounted for: listed, skipped with its reason, or ignored by a rule."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath


PICTURE_SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".tif", ".tiff", ".bmp", ".dib", ".webp", ".gif"),
    *(".jp2", ".pgm", ".ppm", ".pbm", ".pnm"),
)
# Files that may hold a picture, but are not read here.
_UNREAD_SUFFIXES = {
    *("", ".avif", ".dcm", ".dicom", ".dng", ".gz", ".heic", ".heif", ".ima", ".jxl", ".mha", ".mhd", ".nii", ".npy"),
    *(".npz", ".nrrd", ".raw", ".svg", ".tga"),
}
# What systems and archives leave behind.
_LEFT_BEHIND = {
    *("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx", "$recycle.bin", "lost+found", "@eadir"),
    *("system volume information", "__pycache__"),
}


@dataclass
class Listing:
    """What lies below a folder. The names are paths below it, with `/`.

    Args:
        root: the folder.
        files: the files that can be opened, by name, in the order of their names.
        skipped: `(name, reason)` of files and folders that cannot be opened or were seen already.
        ignored: names by the rule that leaves them out; a folder's name ends with `/` and stands for all in it.
        empty_folders: folders below which there is no file.
    """

    root: Path
    files: dict[str, Path] = field(default_factory=dict)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    ignored: dict[str, list[str]] = field(default_factory=dict)
    empty_folders: list[str] = field(default_factory=list)

    @property
    def found(self) -> int:
        """How many files (and folders that stand for what is in them) were found."""
        return len(self.files) + len(self.skipped) + sum(map(len, self.ignored.values()))

    def set_aside(self, used: Collection[str]) -> None:
        """Move the files that are not used out of `files`: skipped, if they may hold a picture, or ignored.

        Args:
            used: names of the files that stay.
        """
        gone = {name for name, _ in self.skipped}
        for name in [name for name in self.files if name not in used]:
            del self.files[name]
            suffix = PurePosixPath(name).suffix.lower()
            if name in gone:
                continue
            if suffix in PICTURE_SUFFIXES:
                self.skipped.append((name, "not part of the dataset"))
            elif suffix in _UNREAD_SUFFIXES:
                self.skipped.append((name, f"files with the suffix {suffix!r} are not read here"))
            else:
                self.ignored.setdefault(f"no picture: the suffix is {suffix}", []).append(name)

    def pictures(self) -> dict[str, Path]:
        """The files with the suffix of a picture, upper or lower case."""
        return {
            name: path for name, path in self.files.items() if PurePosixPath(name).suffix.lower() in PICTURE_SUFFIXES
        }


def list_files(root: str | os.PathLike[str]) -> Listing:
    """List a folder with its sub-folders.

    Links are followed; a folder that is reached a second time, such as by a link to a folder above it, is skipped.
    Names that begin with a dot, and what systems leave behind (`Thumbs.db`, `__MACOSX`, ...), are ignored. Bytes of a
    name that are not UTF-8 are shown as `\\xe9`.

    Args:
        root: the folder.

    Raises:
        ValueError: if it is no folder, or cannot be read.
    """
    root = Path(root)
    if not root.is_dir():
        raise ValueError(f"`source_dir` must be a folder, but {str(root)!r} is none.")
    listing = Listing(root)
    try:
        os.scandir(root).close()
    except OSError as error:
        raise ValueError(f"`source_dir` {str(root)!r} cannot be read: {error.strerror or error}.") from error
    _list_folder(root, "", {_place(os.stat(root)): "."}, listing)
    return listing


def _list_folder(folder: Path, prefix: str, seen: dict[tuple[int, int], str], listing: Listing) -> None:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: os.fsencode(entry.name))
    except OSError as error:
        listing.skipped.append((prefix, f"the folder cannot be read: {error.strerror or error}"))
        return
    before = listing.found
    for entry in entries:
        name = prefix + os.fsencode(entry.name).decode("utf-8", "backslashreplace")
        path = folder / entry.name
        rule = _ignored_by(entry.name)
        try:
            status = os.stat(path)
        except OSError as error:
            reason = "the link leads nowhere" if entry.is_symlink() else f"cannot be read: {error.strerror or error}"
            status = None
        if rule is not None:
            is_folder = status is not None and stat.S_ISDIR(status.st_mode)
            listing.ignored.setdefault(rule, []).append(name + "/" * is_folder)
        elif status is None:
            listing.skipped.append((name, reason))
        elif stat.S_ISDIR(status.st_mode):
            other = seen.setdefault(_place(status), name)
            if other != name:
                listing.skipped.append((name + "/", f"the same folder as {other!r}, which is read there"))
            else:
                _list_folder(path, name + "/", seen, listing)
        elif not stat.S_ISREG(status.st_mode):
            listing.skipped.append((name, "no regular file"))
        elif status.st_size == 0:
            listing.skipped.append((name, "the file is empty (0 bytes)"))
        else:
            listing.files[name] = path
    if prefix and listing.found == before:
        listing.empty_folders.append(prefix)


def _place(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _ignored_by(name: str) -> str | None:
    if name.startswith("."):
        return "hidden: the name begins with a dot"
    if name.lower() in _LEFT_BEHIND or name.startswith("~$"):
        return "left behind by a system"
    return None
