"""A CSV file with labels for files that carry none."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .schema import MULTI_LABEL, SINGLE_LABEL, UNKNOWN_LABEL
from .tables import find_column, read_rows


ID_COLUMNS = ("file_name", "file", "path", "image", "image_id", "id", "patient_id")
LABEL_COLUMN = "label"
METADATA_COLUMNS = ("patient_id", "age", "sex", "view")


@dataclass(frozen=True)
class LabelTable:
    """Labels by file or identifier.

    Args:
        problem_type: as in transformers.
        label_names: the classes.
        rows: arguments for `make_row` by identifier: `labels` or `label`, and `metadata`.
    """

    problem_type: str
    label_names: list[str]
    rows: dict[str, dict[str, Any]]


def read_label_table(path: str | os.PathLike[str], label_columns: Sequence[str] | None = None) -> LabelTable:
    """Read a label file.

    The identifier stands in the first of the columns `file_name`, `file`, `path`, `image`, `image_id`, `id`,
    `patient_id` that there is. With a column `label` the dataset is single-label: each row names its class, empty is
    unknown. Otherwise it is multi-label: every other column is a class with 1, 0 or empty (unknown), except `age`,
    `sex`, `view` and `patient_id`, which become metadata.

    Args:
        path: the CSV file.
        label_columns: the class columns, if not every other column is one.

    Raises:
        ValueError: naming file, line and column of what cannot be read.
    """
    path = Path(path)
    columns, lines = read_rows(path)
    rows = list(lines)
    identifier = find_column(columns, ID_COLUMNS, path)
    lowered = [column.lower() for column in columns]
    single = label_columns is None and LABEL_COLUMN in lowered
    if single:
        chosen = [lowered.index(LABEL_COLUMN)]
    elif label_columns is not None:
        chosen = [find_column(columns, [name], path) for name in label_columns]
    else:
        skipped = (*METADATA_COLUMNS, "", columns[identifier].lower())
        chosen = [index for index, name in enumerate(lowered) if name not in skipped]
    if not chosen:
        raise ValueError(f"{path} must have a column 'label' or one column per class, but it has {columns}.")
    extra = {
        name: lowered.index(name)
        for name in METADATA_COLUMNS[1:]
        if name in lowered and lowered.index(name) not in chosen
    }
    width = max(identifier, *chosen) + 1

    names = [columns[index] for index in chosen]
    if single:
        names = sorted({row[chosen[0]] for _, row in rows if len(row) >= width} - {""})
        if not names:
            raise ValueError(f"{path}: the column 'label' is empty in every row, so there is no class to learn.")
    table: dict[str, dict[str, Any]] = {}
    for line, row in rows:
        if len(row) < width:
            raise ValueError(f"{path.name}, line {line}: {len(columns)} columns are expected, but got {row}.")
        if row[identifier] in table:
            raise ValueError(f"{path.name}, line {line}: {row[identifier]!r} is there twice.")
        values: dict[str, Any] = {
            "metadata": {name: row[index] for name, index in extra.items() if index < len(row) and row[index]}
        }
        if "age" in values["metadata"]:
            values["metadata"]["age"] = parse_number(values["metadata"]["age"], f"{path.name}, line {line}, age")
        if single:
            name = row[chosen[0]]
            values["label"] = names.index(name) if name else UNKNOWN_LABEL
        else:
            values["labels"] = [
                parse_label(row[index], f"{path.name}, line {line}, column {columns[index]!r}") for index in chosen
            ]
        table[row[identifier]] = values
    return LabelTable(SINGLE_LABEL if single else MULTI_LABEL, names, table)


def parse_label(value: Any, where: str) -> float:
    """1 or 0, or NaN for an empty, missing or NaN value.

    Raises:
        ValueError: for anything else, beginning with `where`.
    """
    if value is None or (isinstance(value, str) and value.strip().lower() in ("", "nan", "none")):
        return math.nan
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = 2.0
    if number not in (0.0, 1.0) and not math.isnan(number):
        raise ValueError(f"{where}: a label must be 1 (present), 0 (absent) or empty (unknown), but got {value!r}.")
    return number


def parse_number(text: str, where: str) -> float:
    """A number from a CSV cell.

    Raises:
        ValueError: beginning with `where`.
    """
    try:
        return float(text)
    except ValueError as error:
        raise ValueError(f"{where}: a number is expected, but got {text!r}.") from error
