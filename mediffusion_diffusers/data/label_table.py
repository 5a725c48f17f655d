"""A table with labels for files that carry none."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .cells import is_missing, number
from .labels import read_column, read_columns
from .tables import find_column, read_rows


ID_COLUMNS = ("file_name", "file", "path", "image", "image_id", "id", "patient_id")
LABEL_COLUMNS = ("label", "labels")
METADATA_COLUMNS = ("patient_id", "age", "sex", "view")


@dataclass(frozen=True)
class LabelTable:
    """Labels by file or identifier.

    Args:
        problem_type: as in transformers.
        label_names: the classes.
        rows: arguments for `make_row` by identifier: `labels` or `label`, and `metadata`.
        notes: what the reader of the data should know about the labels.
    """

    problem_type: str
    label_names: list[str]
    rows: dict[str, dict[str, Any]]
    notes: list[str] = field(default_factory=list)


def read_label_table(path: str | os.PathLike[str], label_columns: Sequence[str] | None = None) -> LabelTable:
    """Read a label file: a table with commas, semicolons or tabs.

    The identifier stands in the first of the columns `file_name`, `file`, `path`, `image`, `image_id`, `id`,
    `patient_id` that there is. A column `label` or `labels` is read as `labels` says. Without it the dataset is
    multi-label: every other column is a class with 1, 0 or empty (unknown), except `age`, `sex`, `view` and
    `patient_id`, which become metadata.

    Args:
        path: the file.
        label_columns: the class columns, if not every other column is one.

    Raises:
        ValueError: naming file, line and column of what cannot be read.
    """
    path = Path(path)
    columns, lines = read_rows(path, exact=True)
    rows = list(lines)
    identifier = find_column(columns, ID_COLUMNS, path)
    chosen, single = _label_columns(columns, identifier, label_columns, path)
    extra = {
        name: find_column(columns, [name], path)
        for name in METADATA_COLUMNS[1:]
        if name in _lowered(columns) and find_column(columns, [name], path) not in chosen
    }
    places = [f"{path.name}, line {line}" for line, _ in rows]
    cells = [[row[index] for index in chosen] for _, row in rows]
    if single:
        labels = read_column(columns[chosen[0]], [row[0] for row in cells], places)
    else:
        labels = read_columns([columns[index] for index in chosen], cells, places)
    table: dict[str, dict[str, Any]] = {}
    # Messages say where and not what: the table of a hospital is full of what its patients are called.
    for place, (_, row), target in zip(places, rows, labels.targets, strict=True):
        name = row[identifier]
        if is_missing(name):
            raise ValueError(f"{place}: the column {columns[identifier]!r} must not be empty.")
        if name in table:
            raise ValueError(f"{place}: its {columns[identifier]!r} is there twice.")
        metadata: dict[str, Any] = {key: row[index] for key, index in extra.items() if not is_missing(row[index])}
        if "age" in metadata:
            metadata["age"] = number(metadata["age"], f"{place}, age")
        table[name] = {**target, "metadata": metadata}
    return LabelTable(labels.problem_type, labels.label_names, table, labels.notes)


def _label_columns(
    columns: Sequence[str], identifier: int, named: Sequence[str] | None, path: Path
) -> tuple[list[int], bool]:
    """Where the labels stand, and whether it is one column that holds all."""
    lowered = _lowered(columns)
    if named is not None:
        chosen = [find_column(columns, [name], path) for name in named]
        if len(set(chosen)) < len(chosen):
            raise ValueError(f"`label_columns` must name every column once, but got {list(named)}.")
        return chosen, False
    for name in LABEL_COLUMNS:
        if name in lowered:
            return [find_column(columns, [name], path)], True
    skipped = (*METADATA_COLUMNS, "", columns[identifier].lower())
    chosen = [index for index, name in enumerate(lowered) if name not in skipped]
    if not chosen:
        raise ValueError(f"{path} must have a column 'label' or one column per class, but it has {list(columns)}.")
    return chosen, False


def _lowered(columns: Sequence[str]) -> list[str]:
    return [column.lower() for column in columns]
