"""What one cell of a table says: nothing, an identifier, a number or a mark. One notion of each, for all sources."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any


# Texts by which programs write "no value". Where numbers are expected they are no value; as the name of a class or
# of a patient they are a name like any other (a stage "None", the diagnosis "NA").
MISSING_TEXTS = frozenset({"na", "n/a", "nan", "none", "null", "<na>"})
# Labels: "uncertain" in CheXpert, unknown in single-label datasets.
UNKNOWN_MARK = -1
_MARKS = {"true": 1.0, "yes": 1.0, "false": 0.0, "no": 0.0}
_WHOLE = re.compile(r"-?(0|[1-9]\d*)(\.0+)?")
_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?")
# Up to here a float holds whole numbers exactly.
_EXACT = 2**53
_SMALL = 1000  # below, a number is no identifier
_LARGEST = 10**300  # beyond, no float is near a whole number
_LONGEST = 300  # digits and signs of a number as text; what is longer is a text


def is_missing(value: Any) -> bool:
    """Whether a cell holds no value: null, NaN or blank text."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, float) and math.isnan(value))


def reads_as_missing(value: Any) -> bool:
    """Whether a cell holds one of the `MISSING_TEXTS`, which stay names but deserve to be reported."""
    return isinstance(value, str) and value.strip().lower() in MISSING_TEXTS


def form_of(value: Any) -> str:
    """What a cell is, for a message, without what it says: that may be about a person, and messages end up in logs.

    Args:
        value: anything from a table.
    """
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, (int, float)):
        return "a large number" if _SMALL <= abs(value) < math.inf else f"{value:g}"
    if isinstance(value, str):
        return f"a text of {len(value)} characters"
    return f"a list of {len(value)}" if isinstance(value, (list, tuple)) else f"a {type(value).__name__}"


def identifier(value: Any, where: str) -> str | None:
    """A patient or image as text, exactly as written but for surrounding space: "007" and "7" are two.

    Args:
        value: text, or a whole number; a column of whole numbers with gaps arrives as floats.
        where: begins the message.

    Returns:
        The text, or None if the cell is missing.

    Raises:
        ValueError: for anything else, such as a fraction or a list.
    """
    if is_missing(value):
        return None
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT:
        return str(int(value))
    raise ValueError(
        f"{where}: an identifier must be text or a whole number, but got {form_of(value)}. Store it as text."
    )


def mark(value: Any, where: str) -> float:
    """One class of one image: 1 present, 0 absent, NaN unknown.

    Args:
        value: 1, 0, true, false, yes or no; unknown if it is missing, -1, or one of the `MISSING_TEXTS`.
        where: begins the message.

    Raises:
        ValueError: for anything else.
    """
    if is_missing(value) or reads_as_missing(value):
        return math.nan
    try:
        number = _MARKS.get(value.strip().lower()) if isinstance(value, str) else None
        number = float(value) if number is None else number
    except (TypeError, ValueError, OverflowError):
        number = math.inf
    if number == UNKNOWN_MARK:
        return math.nan
    if number not in (0.0, 1.0):
        raise ValueError(
            f"{where}: a label must be 1 (present), 0 (absent), or empty or -1 (unknown), but got {form_of(value)}."
        )
    return number


def number(text: str, where: str) -> float | None:
    """A finite number from text, or None where it is missing.

    Raises:
        ValueError: for other text, beginning with `where`.
    """
    if is_missing(text) or reads_as_missing(text):
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{where}: a number is expected, but got {form_of(text)}.")
    return value


def is_whole(value: Any) -> bool:
    """Whether a cell is a whole number, also as text without leading zeros ("7", "7.0", but not "007")."""
    if isinstance(value, str):
        return len(value) <= _LONGEST and _WHOLE.fullmatch(value.strip()) is not None
    return (isinstance(value, int) and not isinstance(value, bool)) or (
        isinstance(value, float) and value.is_integer()
    )


def is_number(value: Any) -> bool:
    """Whether a cell is a finite number, also as text without leading zeros."""
    if isinstance(value, str):
        is_short = len(value) <= _LONGEST
        return is_short and _NUMBER.fullmatch(value.strip()) is not None and math.isfinite(float(value))
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= _LARGEST


def typed_column(values: Sequence[str]) -> list[str | int | float | None]:
    """A column of texts as whole numbers or numbers, if every cell that is not missing is one; else as texts."""
    known = [value for value in values if not is_missing(value)]
    convert: Any = str
    if known and all(is_whole(value) and "." not in value for value in known):
        convert = int
    elif known and all(is_number(value) for value in known):
        convert = float
    return [None if is_missing(value) else convert(value) for value in values]
