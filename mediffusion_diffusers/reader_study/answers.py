"""Readers' answers: the CSV files that the questionnaire saves, checked and joined with the key."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from ..atomic_files import write_text
from ..data.tables import find_column, read_rows
from .design import GRADES, StudyKey
from .pairs import DIRECTIONS


ANSWER_COLUMNS = ("study", "reader", "place", "item", "grade", "seconds")  # as questionnaire.js writes them


@dataclass(frozen=True)
class Answer:
    """What one reader said of one pair.

    Args:
        reader: the reader's code.
        place: in the reader's order, from 1.
        item: name of the pair.
        case: of the pair, and so are the others.
        label: the finding.
        direction: `"remove"` or `"add"`.
        method: who made it.
        grade: 1 (much less visible) to 5 (much more visible), see `GRADES`.
        seconds: that the reader looked at it.
    """

    reader: str
    place: int
    item: str
    case: str
    label: str
    direction: str
    method: str
    grade: int
    seconds: float


@dataclass(frozen=True)
class CollectedAnswers:
    """Answers of all readers.

    Args:
        answers: by reader and place.
        notes: what is missing or came twice.
    """

    answers: list[Answer]
    notes: list[str]


def collect_answers(files: Sequence[str | os.PathLike[str]], key: StudyKey) -> CollectedAnswers:
    """Read readers' files and say which method each answer is about.

    A file that was saved before all was answered and the finished one may both be there.

    Args:
        files: CSV files of the questionnaire.
        key: of the study.

    Raises:
        ValueError: naming file and line, for an answer to another study or an unknown item, a grade out of range, or
            two different grades of one reader for one item.
    """
    found: dict[tuple[str, str], tuple[Answer, str]] = {}
    repeated = 0
    for file in map(Path, files):
        for where, answer in _read_answers(file, key):
            earlier = found.setdefault((answer.reader, answer.item), (answer, where))
            if earlier[1] == where:
                continue
            if earlier[0].grade != answer.grade:
                raise ValueError(
                    f"Reader {answer.reader!r} grades the item {answer.item} {earlier[0].grade} in {earlier[1]}, and "
                    f"{answer.grade} in {where}. Two people may have taken one code, or one answered twice: keep one."
                )
            repeated += 1
    if not found:
        raise ValueError("`answers` holds no answer. Name the CSV files that the readers sent.")
    answers = sorted((answer for answer, _ in found.values()), key=lambda one: (one.reader, one.place, one.item))
    notes = [f"{repeated} answers came several times, each time the same."] if repeated else []
    for reader in sorted({answer.reader for answer in answers}):
        num_given = sum(answer.reader == reader for answer in answers)
        if num_given < len(key.items):
            notes.append(f"Reader {reader} has answered {num_given} of {len(key.items)} questions.")
    return CollectedAnswers(answers, notes)


def _read_answers(path: Path, key: StudyKey) -> list[tuple[str, Answer]]:
    """The answers of a file, each with where it stands."""
    columns, rows = read_rows(path, exact=True)
    places = [find_column(columns, [name], path) for name in ANSWER_COLUMNS]
    answers = []
    for line, row in rows:
        where = f"{path}, line {line}"
        study, reader, place, item, grade, seconds = (row[position].strip() for position in places)
        if study != key.study:
            raise ValueError(f"{where}: the answer belongs to the study {study!r}, but the key to {key.study!r}.")
        if item not in key.items:
            raise ValueError(f"{where}: the key knows no item {item!r}. The file was changed, or is another study's.")
        if not reader:
            raise ValueError(f"{where}: the reader's code is missing.")
        case, method = key.items[item]
        answers.append(
            (
                where,
                Answer(
                    *(reader, _whole(place, "place", len(key.items), where), item, case.name, case.label),
                    *(case.direction, method, _whole(grade, "grade", len(GRADES), where)),
                    _seconds(seconds, where),
                ),
            )
        )
    return answers


def write_answers(answers: Sequence[Answer], path: str | os.PathLike[str]) -> None:
    """Write joined answers as CSV; they name methods, so readers must not see them before they have answered."""
    names = [entry.name for entry in fields(Answer)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([getattr(answer, name) for name in names] for answer in answers)
    write_text(path, text.getvalue())


def read_joined_answers(path: str | os.PathLike[str]) -> list[Answer]:
    """Read what `write_answers` wrote.

    Raises:
        ValueError: naming the line, for what cannot be used.
    """
    path = Path(path)
    columns, rows = read_rows(path, exact=True)
    places = {entry.name: find_column(columns, [entry.name], path) for entry in fields(Answer)}
    answers = []
    for line, row in rows:
        where, cell = f"{path}, line {line}", {name: row[place] for name, place in places.items()}
        if cell["direction"] not in DIRECTIONS:
            raise ValueError(f"{where}: `direction` must be one of {DIRECTIONS}, but got {cell['direction']!r}.")
        answers.append(
            Answer(
                *(cell["reader"], _whole(cell["place"], "place", 10**6, where), cell["item"], cell["case"]),
                *(cell["label"], cell["direction"], cell["method"]),
                *(_whole(cell["grade"], "grade", len(GRADES), where), _seconds(cell["seconds"], where)),
            )
        )
    if not answers:
        raise ValueError(f"{path} holds no answer.")
    return answers


def _whole(text: str, name: str, at_most: int, where: str) -> int:
    if not (text.isdecimal() and 1 <= int(text) <= at_most):
        raise ValueError(f"{where}: `{name}` must be a whole number in [1, {at_most}], but got {text!r}.")
    return int(text)


def _seconds(text: str, where: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise ValueError(f"{where}: `seconds` must be a number of at least 0, but got {text!r}.")
    return seconds
