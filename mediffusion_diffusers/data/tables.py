"""Reading the CSV files of a source, with errors that name file, row and column."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path


def read_rows(path: Path) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """Open a CSV file with a header.

    Returns:
        The column names, and the rows with the line they stand in, empty lines left out.

    Raises:
        ValueError: if the file does not exist or is empty.
    """
    if not path.is_file():
        raise ValueError(f"The file {path} is needed, but does not exist.")
    rows = _lines(path)
    first = next(rows, None)
    if first is None:
        raise ValueError(f"The file {path} is empty.")
    return [name.strip() for name in first[1]], rows


def find_column(columns: Sequence[str], names: Sequence[str], path: Path) -> int:
    """Index of the first of `names` that the header has, upper or lower case.

    Raises:
        ValueError: if it has none of them.
    """
    lowered = [column.lower() for column in columns]
    for name in names:
        if name.lower() in lowered:
            return lowered.index(name.lower())
    raise ValueError(f"{path} must have a column {' or '.join(map(repr, names))}, but it has {list(columns)}.")


def read_list(path: Path) -> list[str]:
    """Lines of a text file, without blanks.

    Raises:
        ValueError: if the file does not exist.
    """
    if not path.is_file():
        raise ValueError(f"The file {path} is needed, but does not exist.")
    return path.read_text(encoding="utf-8-sig").split()


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file)
        for row in reader:
            if any(cell.strip() for cell in row):
                yield reader.line_num, [cell.strip() for cell in row]
