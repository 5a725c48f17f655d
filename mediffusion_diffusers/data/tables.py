"""Tables and lists of a source as text, with errors that name the file, its encoding, the line and the column."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..item_boundary import reading
from .cells import form_of


_DELIMITERS = (",", ";", "\t")
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, with or without its mark.

    Raises:
        ValueError: if the file does not exist, cannot be read or is written in another encoding.
    """
    if not path.is_file():
        raise ValueError(f"The file {path} is needed, but does not exist.")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"The file {path} cannot be read: {error.strerror or error}.") from error
    if content.startswith(_UTF_16) or b"\0" in content[:4096]:
        raise ValueError(f"The file {path} must be UTF-8, but is UTF-16 or no text. Save it again as UTF-8.")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"The file {path} must be UTF-8, but byte 0x{content[error.start]:02x} in line {line} is none: it may be "
            "Windows-1252 (cp1252) or Latin-1. Save it again as UTF-8."
        ) from error


def read_rows(path: Path, exact: bool = False) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """Read a table with a header: cells separated by comma, semicolon or tab, whichever the header has most of.

    Args:
        path: the file.
        exact: refuse rows with more or fewer cells than the header, but for empty ones at their end.

    Returns:
        The column names, and the rows with the line they end in, empty lines left out. Cells are stripped.

    Raises:
        ValueError: if the file cannot be read or is empty; for the rows also later, when they are read.
    """
    text = read_text(path)
    header = next((line for line in text.splitlines() if line.strip()), None)
    if header is None:
        raise ValueError(f"The file {path} is empty.")
    unquoted = "".join(header.split('"')[::2])
    rows = _lines(path, text, max(_DELIMITERS, key=unquoted.count))
    _, columns = next(rows)
    return columns, _exact(path, columns, rows) if exact else rows


def read_records(path: Path) -> tuple[list[str], list[tuple[int, dict[str, Any]]]]:
    """Read a table whose every column counts: a delimited file, or JSON lines.

    Args:
        path: the file; `.jsonl` is one JSON object per line, `.parquet` a parquet file, anything else as in
            `read_rows`.

    Returns:
        The column names, and the rows by column with the line they stand in.

    Raises:
        ValueError: for what cannot be read, a column that is there twice, or a ragged row.
    """
    if path.suffix.lower() == ".jsonl":
        records = list(_objects(path))
        return list(dict.fromkeys(key for _, record in records for key in record)), records
    if path.suffix.lower() == ".parquet":
        return _parquet(path)
    columns, rows = read_rows(path, exact=True)
    lowered = [column.lower() for column in columns if column]
    twice = sorted({column for column in lowered if lowered.count(column) > 1})
    if twice:
        raise ValueError(f"{path} must name every column once, but its header has {twice} several times.")
    named = [(index, column) for index, column in enumerate(columns) if column]
    return [column for _, column in named], [
        (line, {column: row[index] if index < len(row) else "" for index, column in named}) for line, row in rows
    ]


def find_column(columns: Sequence[str], names: Sequence[str], path: Path) -> int:
    """Index of the first of `names` that the header has, upper or lower case.

    Raises:
        ValueError: if it has none of them, or one twice.
    """
    lowered = [column.lower() for column in columns]
    for name in names:
        if lowered.count(name.lower()) > 1:
            raise ValueError(f"{path} must name every column once, but its header has {name!r} several times.")
        if name.lower() in lowered:
            return lowered.index(name.lower())
    raise ValueError(f"{path} must have a column {' or '.join(map(repr, names))}, but it has {list(columns)}.")


def read_list(path: Path) -> list[str]:
    """Words of a text file.

    Raises:
        ValueError: as `read_text`.
    """
    return read_text(path).split()


def _lines(path: Path, text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                yield reader.line_num, [cell.strip() for cell in row]
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: cannot be read as a table: {error}.") from error


def _exact(
    path: Path, columns: Sequence[str], rows: Iterator[tuple[int, list[str]]]
) -> Iterator[tuple[int, list[str]]]:
    for line, row in rows:
        if len(row) < len(columns) or any(row[len(columns) :]):
            raise ValueError(
                f"{path.name}, line {line}: {len(columns)} columns are expected, but got {len(row)}. A cell with the "
                "separator in it must stand in quotes."
            )
        yield line, row


def _parquet(path: Path) -> tuple[list[str], list[tuple[int, dict[str, Any]]]]:
    """The rows of a parquet file, counted from 1."""
    import pyarrow.parquet as pq

    with reading(f"read the table {path}"):
        table = pq.read_table(path)
        return table.column_names, list(enumerate(table.to_pylist(), start=1))


def _objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, text in enumerate(read_text(path).split("\n"), start=1):
        if not text.strip():
            continue
        try:
            record = json.loads(text)
            json.dumps(record, ensure_ascii=False).encode()  # "\\ud800" is JSON, but half a letter
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path.name}, line {line}: no JSON ({error}).") from error
        if not isinstance(record, dict):
            raise ValueError(f"{path.name}, line {line}: a JSON object is expected, but got {form_of(record)}.")
        yield line, record
