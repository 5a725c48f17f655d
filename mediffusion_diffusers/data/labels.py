"""What the labels of a table are: one class per image or several; as names, numbers, indices or vectors.

The rule for one column of labels, in this order. A missing cell (`cells.is_missing`) is unknown.

1. Texts that all read as lists ("[0, 1]", "['Mass', 'Edema']") are lists.
2. Texts of which one holds "|" or ";" are lists of names, separated by it; "No Finding" alone is the empty list. A
   comma stands in names too ("normal, benign"), so it separates only when asked for (`separator`); where a part of
   such a text is also a cell or a part of its own, the rule cannot tell.
3. A column of lists is multi-label; an empty list means no finding.
   - Lists of texts are names; those of whole numbers in text are numbers.
   - Lists of floats or of true and false are vectors.
   - Lists of whole numbers are indices, unless one repeats a number: then all are vectors. If none repeats one, and
     all have the same length of at most two and hold 0 and 1 only, the rule cannot tell.
   - A vector has one mark (1, 0, or -1, null and NaN for unknown) per class.
4. Any other column is single-label: every name or number is a class; -1 among numbers is unknown.

Names are stripped, and space within them (a line end, too) is one blank. Names that differ only in case, in space or
as numbers do ("1" and "1.0") are one class in numbers and refused in texts.
"""

from __future__ import annotations

import ast
import json
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..choices import LabelKind
from .cells import UNKNOWN_MARK, form_of, identifier, is_missing, is_number, is_whole, mark, reads_as_missing
from .schema import MULTI_LABEL, SINGLE_LABEL, UNKNOWN_LABEL
from .splits import NO_FINDING


_SEPARATORS = ("|", ";")
_LIST = re.compile(r"\s*\[.*\]\s*", re.DOTALL)
_CANNOT_TELL = "Say what they are: `labels_as` names, indices or vectors."


@dataclass(frozen=True)
class Labels:
    """Labels that were understood.

    Args:
        problem_type: as in transformers.
        label_names: the K classes.
        targets: for each row the argument of `make_row`: `labels` (K marks or None) or `label` (index or -1).
        notes: what the reader of the data should know, in sentences.
    """

    problem_type: str
    label_names: list[str]
    targets: list[dict[str, Any]]
    notes: list[str] = field(default_factory=list)


def read_columns(columns: Sequence[str], rows: Sequence[Sequence[Any]], places: Sequence[str]) -> Labels:
    """Read one column per class.

    Args:
        columns: names of the K classes.
        rows: K cells per image, see `cells.mark`.
        places: where each row stands, for messages.

    Raises:
        ValueError: for a cell that is no mark, or class names that are too alike.
    """
    names = class_names(columns)
    targets = [
        {"labels": [mark(cell, f"{place}, column {name!r}") for cell, name in zip(row, columns, strict=True)]}
        for row, place in zip(rows, places, strict=True)
    ]
    uncertain = sum(
        not is_missing(cell) and is_number(cell) and float(cell) == UNKNOWN_MARK for row in rows for cell in row
    )
    notes = [f"{uncertain:,} labels are -1 and count as unknown."] if uncertain else []
    texts = Counter(str(cell).strip() for row in rows for cell in row if reads_as_missing(cell))
    notes += [f"{count:,} labels are the text {text!r} and count as unknown." for text, count in texts.items()]
    return Labels(MULTI_LABEL, names, targets, notes)


def read_column(
    column: str,
    values: Sequence[Any],
    places: Sequence[str],
    *,
    known_names: Sequence[str] | None = None,
    labels_as: LabelKind = "auto",
    separator: str | None = None,
) -> Labels:
    """Read one column of labels by the rule above.

    Args:
        column: its name.
        values: one cell per image: text, number or list.
        places: where each cell stands, for messages.
        known_names: names of the classes, if indices or vectors refer to such (a `datasets.ClassLabel`).
        labels_as: what lists hold, where the rule should not decide.
        separator: what separates names in texts; `""` for nothing, None for the rule.

    Raises:
        ValueError: if there is no label at all, a cell is none, the rule cannot tell, or names are too alike.
    """
    values = [_clean(value) for value in values]
    known = [value for value in values if not is_missing(value)]
    if not known:
        raise ValueError(f"The column {column!r} is empty in every row, so there is no class to learn.")
    if all(isinstance(value, str) and _LIST.fullmatch(value) for value in known) and separator is None:
        values = [
            value if is_missing(value) else _parsed(value, place) for value, place in zip(values, places, strict=True)
        ]
    elif any(isinstance(value, str) for value in known):
        separator = _separator(column, known) if separator is None else separator
        if separator:
            values = [_parts(value, separator) for value in values]
    if any(isinstance(value, list) for value in values):
        for value, place in zip(values, places, strict=True):
            if not isinstance(value, list) and not is_missing(value):
                raise ValueError(f"{place}: the column {column!r} holds lists elsewhere, but got {form_of(value)}.")
        return _lists(column, values, places, known_names, labels_as)
    return _classes(column, values, places, known_names)


def class_names(names: Iterable[str]) -> list[str]:
    """Names of classes, cleaned: stripped, space within them one blank.

    Raises:
        ValueError: for an empty name, a control character, or names that differ in case and space only.
    """
    cleaned = [" ".join(str(name).split()) for name in names]
    alike: dict[str, str] = {}
    for name in cleaned:
        if not name or any(unicodedata.category(letter) == "Cc" for letter in name):
            raise ValueError(f"The name of a class must be text without control characters, but got {name!r}.")
        other = alike.setdefault(_likeness(name), name)
        if other != name or cleaned.count(name) > 1:
            raise ValueError(
                f"The classes must have different names, but {other!r} and {name!r} are the same but for case, space "
                "or the way to write a number. Give them one name, or two that differ."
            )
    return cleaned


def _likeness(name: str) -> str:
    plain = " ".join(unicodedata.normalize("NFKC", name).casefold().split())
    try:
        return str(float(plain)) if math.isfinite(float(plain)) else plain
    except ValueError:
        return plain


def _clean(value: Any) -> Any:
    """A cell as Python's own types; arrays as lists."""
    value = value.tolist() if hasattr(value, "tolist") else value
    return list(value) if isinstance(value, tuple) else value


def _parsed(text: str, place: str) -> list[Any]:
    """A list from its text, as JSON, Python or numpy write it."""
    for parse in (json.loads, ast.literal_eval):
        try:
            value = parse(text.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        if isinstance(value, list):
            return value
    words = text.strip().strip("[]").split()
    if words and all(is_number(word.rstrip(".")) for word in words):
        return [word.rstrip(".") for word in words]
    raise ValueError(f"{place}: a list is expected, such as [0, 1] or ['Mass', 'Edema'], but got {form_of(text)}.")


def _separator(column: str, known: Sequence[Any]) -> str:
    texts = {value for value in known if isinstance(value, str)}
    present = [separator for separator in _SEPARATORS if any(separator in text for text in texts)]
    if len(present) > 1:
        raise ValueError(
            f"The column {column!r} separates names by '|' and by ';'. Name one of them: `label_separator`."
        )
    if present:
        return present[0]
    # A comma: is a part of "a, b" also a cell, or a part of another?
    parts = {text: {part.strip() for part in text.split(",")} for text in texts}
    counts = Counter(part for each in parts.values() for part in each)
    for text, each in parts.items():
        if "," in text and any(counts[part] > 1 for part in each if part):
            raise ValueError(
                f"The column {column!r} holds texts with commas, and their parts occur elsewhere too: "
                "the comma may separate names or belong to one. Say which: `label_separator` ',' or ''."
            )
    return ""


def _parts(value: Any, separator: str) -> Any:
    if not isinstance(value, str) or is_missing(value):
        return value
    names = [" ".join(part.split()) for part in value.split(separator)]
    names = [name for name in names if name]
    return [] if [name.lower() for name in names] == [NO_FINDING.lower()] else names


def _lists(
    column: str,
    values: Sequence[Any],
    places: Sequence[str],
    known_names: Sequence[str] | None,
    labels_as: LabelKind,
) -> Labels:
    entries = [entry for value in values if isinstance(value, list) for entry in value if not is_missing(entry)]
    if not entries and known_names is None:
        raise ValueError(f"The column {column!r} holds only empty lists, so there is no class to learn.")
    odd = [entry for entry in entries if isinstance(entry, list) or _is_odd(entry)]
    if odd:
        raise ValueError(
            f"The column {column!r} must hold lists of names or numbers, but one holds {form_of(odd[0])}."
        )
    numbers = all(is_number(entry) or isinstance(entry, bool) for entry in entries)
    if not numbers or labels_as == "names":
        return _named_lists(values, known_names)
    values = [[_as_number(entry) for entry in value] if isinstance(value, list) else None for value in values]
    if labels_as == "vectors" or (labels_as == "auto" and _are_vectors(column, values, places)):
        return _vectors(values, places, known_names)
    return _indices(column, values, places, known_names)


def _named_lists(values: Sequence[Any], known_names: Sequence[str] | None) -> Labels:
    lists = [
        None
        if not isinstance(value, list)
        else {" ".join(_text(entry).split()) for entry in value if not is_missing(entry)}
        for value in values
    ]
    names = class_names(known_names or sorted({name for each in lists if each is not None for name in each}))
    return _present(names, lists)


def _present(names: list[str], lists: Sequence[set[str] | None]) -> Labels:
    targets = [{"labels": None if each is None else [float(name in each) for name in names]} for each in lists]
    notes = _missing_texts(name for each in lists if each is not None for name in each)
    return Labels(MULTI_LABEL, names, targets, notes)


def _are_vectors(column: str, values: Sequence[list[Any] | None], places: Sequence[str]) -> bool:
    """Whether lists of numbers are vectors of marks rather than indices."""
    lists = [value for value in values if value]
    entries = [entry for value in lists for entry in value]
    if any(isinstance(entry, (bool, float)) or entry is None for entry in entries):
        return True
    if any(len(set(value)) < len(value) for value in lists):
        return True
    lengths = {len(value) for value in lists}
    if len(lengths) == 1 and set(entries) <= {0, 1}:
        place = next(place for place, value in zip(places, values, strict=True) if value)
        raise ValueError(
            f"The column {column!r} holds lists ({place} the first), which may be vectors of 0 and 1 or "
            f"indices of classes. {_CANNOT_TELL}"
        )
    return False


def _vectors(values: Sequence[list[Any] | None], places: Sequence[str], known_names: Sequence[str] | None) -> Labels:
    length = len(known_names) if known_names is not None else max(len(value) for value in values if value)
    names = class_names(known_names if known_names is not None else map(str, range(length)))
    targets: list[dict[str, Any]] = []
    for value, place in zip(values, places, strict=True):
        if value and len(value) != length:
            raise ValueError(f"{place}: a vector of {length} labels is expected, but got {len(value)}: {value}.")
        if value is None:
            targets.append({"labels": None})
        else:
            targets.append({"labels": [mark(entry, place) for entry in value] or [0.0] * length})
    return Labels(MULTI_LABEL, names, targets, ["The labels are vectors: one mark per class."])


def _indices(
    column: str, values: Sequence[list[Any] | None], places: Sequence[str], known_names: Sequence[str] | None
) -> Labels:
    for value, place in zip(values, places, strict=True):
        if any(not is_whole(entry) or entry < 0 for entry in value or ()):
            raise ValueError(f"{place}: whole numbers from 0 are expected in the column {column!r}, but got others.")
    if known_names is None:
        numbers = sorted({int(entry) for value in values for entry in value or ()})
        lists = [None if value is None else {str(int(entry)) for entry in value} for value in values]
        return _present([str(number) for number in numbers], lists)
    names = class_names(known_names)
    return _present(
        names,
        [
            None if value is None else {names[_index(entry, len(names), place)] for entry in value}
            for value, place in zip(values, places, strict=True)
        ],
    )


def _classes(column: str, values: Sequence[Any], places: Sequence[str], known_names: Sequence[str] | None) -> Labels:
    """One class per image."""
    known = [value for value in values if not is_missing(value)]
    numeric = all(is_number(value) for value in known)
    odd = next((place for value, place in zip(values, places, strict=True) if _is_odd(value)), None)
    if odd is not None:
        raise ValueError(f"{odd}: the column {column!r} must hold names, numbers or lists of them.")
    if numeric:
        values = [value if is_missing(value) else _as_number(value) for value in values]
        values = [None if value == UNKNOWN_MARK else value for value in values]
        known = [value for value in values if not is_missing(value)]
        if not known:
            raise ValueError(f"The column {column!r} is unknown in every row, so there is no class to learn.")
    if known_names is not None and numeric:
        names = class_names(known_names)
        targets = [
            {"label": UNKNOWN_LABEL if is_missing(value) else _index(value, len(names), place)}
            for value, place in zip(values, places, strict=True)
        ]
        return Labels(SINGLE_LABEL, names, targets)
    texts = [None if is_missing(value) else " ".join(_text(value).split()) for value in values]
    order = sorted(set(known)) if numeric else sorted({text for text in texts if text is not None})
    names = class_names(dict.fromkeys(_text(value) for value in order) if numeric else order)
    index_of = {name: index for index, name in enumerate(names)}
    targets = [{"label": UNKNOWN_LABEL if text is None else index_of[text]} for text in texts]
    return Labels(SINGLE_LABEL, names, targets, _missing_texts(text for text in texts if text is not None))


def _is_odd(value: Any) -> bool:
    return isinstance(value, (dict, bytes)) or (isinstance(value, float) and math.isinf(value))


def _index(value: Any, count: int, place: str) -> int:
    if not is_whole(value) or not 0 <= value < count:
        raise ValueError(f"{place}: the index of a class must be from 0 to {count - 1}, but got {form_of(value)}.")
    return int(value)


def _as_number(value: Any) -> Any:
    """A number from its text; "1.0" stays a float, as it is what a vector is written in."""
    if not isinstance(value, str):
        return value
    return int(value) if is_whole(value) and "." not in value else float(value)


def _text(value: Any) -> str:
    """A class as text. A column with missing values holds 1.0 where the file says 1."""
    if isinstance(value, float):
        return identifier(value, "label") or "" if value.is_integer() else str(value)
    return str(value)


def _missing_texts(names: Iterable[str]) -> list[str]:
    counts = Counter(name for name in names if reads_as_missing(name))
    return [
        f"The text {name!r} is a class ({count:,} images). Leave the cell empty where the label is unknown."
        for name, count in counts.items()
    ]
