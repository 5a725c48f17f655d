"""Tags of a DICOM dataset, read with patience: what cannot be read counts as absent and never raises."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np


if TYPE_CHECKING:
    from pydicom import Dataset


def tag_value(dataset: Dataset, keyword: str) -> Any:
    """The value of a tag as pydicom reads it; None where it is absent, empty or unreadable."""
    try:
        value = dataset.get(keyword)
    except Exception:  # pydicom converts values when they are asked for, and raises what the bytes lead it to
        return None
    return None if value is None or value == "" else value


def tag_numbers(dataset: Dataset, keyword: str) -> list[float]:
    """All values of a tag as numbers; NaN where one cannot be read, so that pairs stay pairs.

    Bytes are taken as unsigned 16-bit words, which is how a writer that does not know the representation stores them.
    """
    value = tag_value(dataset, keyword)
    if value is None:
        return []
    if isinstance(value, bytes):
        return [float(word) for word in np.frombuffer(value[: len(value) // 2 * 2], dtype=_words(dataset))]
    if isinstance(value, str):
        value = value.split("\\")
    return [_number(entry) for entry in (value if hasattr(value, "__iter__") else [value])]


def tag_number(dataset: Dataset, keyword: str) -> float | None:
    """The first value of a tag as a number: NaN if it cannot be read, None if there is none."""
    return next(iter(tag_numbers(dataset, keyword)), None)


def tag_text(dataset: Dataset, keyword: str) -> str:
    """The first value of a tag as text without surrounding space, or an empty text."""
    value = tag_value(dataset, keyword)
    if value is None or isinstance(value, bytes):
        return ""
    if not isinstance(value, str) and hasattr(value, "__iter__"):
        value = next(iter(value), "")
    return str(value).strip()


def tag_items(dataset: Dataset, keyword: str) -> list[Dataset]:
    """The items of a sequence; empty where there is none."""
    value = tag_value(dataset, keyword)
    return [item for item in value if hasattr(item, "get")] if hasattr(value, "__iter__") else []


def is_little_endian(dataset: Dataset) -> bool:
    """The byte order of words: little unless the file says big."""
    try:
        return bool(dataset.file_meta.TransferSyntaxUID.is_little_endian)
    except (AttributeError, ValueError):  # an item of a sequence, no file meta information, a private syntax
        return True


def _words(dataset: Dataset) -> str:
    return "<u2" if is_little_endian(dataset) else ">u2"


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan
