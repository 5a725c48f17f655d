"""What readers see: an original and a changed image, of one case by one method; read from a table or from folders."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from PIL import Image

from ..choices import Direction
from ..data.listing import list_files
from ..data.pictures import open_image
from ..data.tables import find_column, read_rows
from ..image_processor import numpy_to_pil, pil_to_float_array


DIRECTIONS: tuple[str, ...] = get_args(Direction)
TABLE_COLUMNS = ("case", "label", "direction", "method", "original", "modified")
ORIGINAL_FOLDER = "original"
_GREY_MODES = ("1", "L", "I", "F")


@dataclass(frozen=True, order=True)
class Case:
    """One question to the methods: an image, and the finding that they remove from it or add to it.

    Args:
        name: of the image; it stays in the key and is never shown to readers.
        label: the finding.
        direction: `"remove"` or `"add"`.
    """

    name: str
    label: str
    direction: str


@dataclass(frozen=True, eq=False)
class ImagePair:
    """What one method made of one case.

    Args:
        case: the case.
        method: who made it.
        original: the image, grey or RGB of 8 bits.
        modified: the changed image, of the original's size and mode.

    Raises:
        ValueError: if sizes or modes differ, or the direction is unknown.
    """

    case: Case
    method: str
    original: Image.Image
    modified: Image.Image

    def __post_init__(self) -> None:
        if self.case.direction not in DIRECTIONS:
            raise ValueError(
                f"`direction` must be one of {', '.join(map(repr, DIRECTIONS))}, but got {self.case.direction!r} for "
                f"the case {self.case.name!r}."
            )
        first, second = (f"{one.size[0]} x {one.size[1]} {one.mode}" for one in (self.original, self.modified))
        if first != second:
            raise ValueError(
                f"Original and modified image must have one size and mode, but those of {self.case.name!r} by "
                f"{self.method!r} have {first} and {second}. Save what the model saw as the original."
            )


def read_table(path: str | os.PathLike[str]) -> list[ImagePair]:
    """Pairs from a table with the columns `case`, `label`, `direction`, `method`, `original`, `modified`.

    Args:
        path: a CSV file; the last two columns name image files, relative to its folder.

    Raises:
        ValueError: naming the line, for what cannot be used.
    """
    path = Path(path)
    columns, rows = read_rows(path, exact=True)
    places = [find_column(columns, [name], path) for name in TABLE_COLUMNS]
    pairs = []
    for line, row in rows:
        name, label, direction, method, original, modified = (row[place].strip() for place in places)
        try:
            if not all((name, label, method, original, modified)):
                raise ValueError("a cell is empty")
            pictures = (open_reader_image(path.parent / file) for file in (original, modified))
            pairs.append(ImagePair(Case(name, label, direction), method, *pictures))
        except (ValueError, OSError) as error:
            raise ValueError(f"{path}, line {line}: {error}") from error
    return _checked(pairs, path)


def read_folders(root: str | os.PathLike[str]) -> list[ImagePair]:
    """Pairs from folders: `original/CASE.png` and `METHOD/remove|add/LABEL/CASE.png`.

    Args:
        root: the folder above them.

    Raises:
        ValueError: for a missing or second original, a picture in no folder of a finding, or what cannot be read.
    """
    root = Path(root)
    originals: dict[str, Path] = {}
    for path in _pictures(root / ORIGINAL_FOLDER):
        other = originals.setdefault(path.stem, path)
        if other != path:
            raise ValueError(f"{other} and {path} are two originals of one case, {path.stem!r}. Keep one.")
    if not originals:
        raise ValueError(f"`images_dir` must hold pictures in {ORIGINAL_FOLDER}/, but {os.fspath(root)!r} has none.")
    pairs = []
    for folder in sorted(path for path in root.iterdir() if path.is_dir() and path.name != ORIGINAL_FOLDER):
        for direction in DIRECTIONS:
            for path in _pictures(folder / direction):
                if path.parent.parent != folder / direction:
                    raise ValueError(f"{path} must lie in a folder named by its finding: {folder / direction}/LABEL/.")
                if path.stem not in originals:
                    raise ValueError(f"{path} has no original: put it into {root / ORIGINAL_FOLDER}.")
                case = Case(path.stem, path.parent.name, direction)
                images = (open_reader_image(file) for file in (originals[path.stem], path))
                pairs.append(ImagePair(case, folder.name, *images))
    return _checked(pairs, root)


def open_reader_image(path: Path) -> Image.Image:
    """A picture of any kind as grey or RGB of 8 bits, without anything else that its file says."""
    return plain_picture(open_image(path))


def plain_picture(image: Image.Image) -> Image.Image:
    """An image as grey or RGB of 8 bits: its pixels alone."""
    channels = 1 if image.mode.split(";")[0] in _GREY_MODES else 3
    return numpy_to_pil(pil_to_float_array(image, channels)[None])[0]


def methods_of(pairs: Sequence[ImagePair]) -> list[str]:
    """The methods, in the order in which they come."""
    return list(dict.fromkeys(pair.method for pair in pairs))


def _pictures(folder: Path) -> list[Path]:
    """The pictures below a folder, without what systems leave behind; none if it is not there."""
    if not folder.is_dir():
        return []
    listing = list_files(folder)
    for name, reason in listing.skipped:
        raise ValueError(f"{folder / name} cannot be used: {reason}. Mend it, or move it away.")
    return list(listing.pictures().values())


def _checked(pairs: list[ImagePair], source: Path) -> list[ImagePair]:
    if not pairs:
        raise ValueError(f"{source} holds no pair of an original and a modified image.")
    seen: set[tuple[Case, str]] = set()
    for pair in pairs:
        if (pair.case, pair.method) in seen:
            raise ValueError(f"{source} has the case {pair.case} by the method {pair.method!r} twice. Keep one.")
        seen.add((pair.case, pair.method))
    return pairs
