"""The design of a study: which cases, in which orders, under which names; and the key that undoes the blinding."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..atomic_files import read_json, write_text
from .pairs import DIRECTIONS, Case, ImagePair, methods_of


# Fig. 9 of the paper: a graded answer in five steps, of which it prints both ends.
QUESTION = "is visible in the modified image"
GRADES = (
    "To a much lesser extent",
    "To a lesser extent",
    "To the same extent",
    "To a greater extent",
    "To a much greater extent",
)
QUESTION_END = "than in the original image"
NUM_ORDERS = 24  # orders in a questionnaire, of which each reader gets one
_KEY_FORMAT = 1


@dataclass(frozen=True, eq=False)
class StudyItem:
    """A pair under the name that readers know it by.

    Args:
        name: says nothing about the pair.
        pair: the pair.
    """

    name: str
    pair: ImagePair


@dataclass(frozen=True, eq=False)
class ReaderStudy:
    """A questionnaire before it is drawn.

    Args:
        name: of the study, made from its content: answers to another one are told apart by it.
        methods: all of them, in the order in which they were given.
        items: in an order that says nothing about methods.
        orders: orders of the items for readers, each a permutation of `range(len(items))`.
        seed: of all draws.
        notes: what was left out, and why.
    """

    name: str
    methods: Sequence[str]
    items: Sequence[StudyItem]
    orders: Sequence[Sequence[int]]
    seed: int
    notes: Sequence[str] = field(default_factory=tuple)

    def key(self) -> StudyKey:
        """Which item is what."""
        cells = {item.name: (item.pair.case, item.pair.method) for item in self.items}
        return StudyKey(self.name, list(self.methods), cells, self.seed)


@dataclass(frozen=True)
class StudyKey:
    """Which item is what: to be kept from the readers until all have answered.

    Args:
        study: name of the study.
        methods: all of them.
        items: by the item's name, its case and method.
        seed: of the study.
    """

    study: str
    methods: Sequence[str]
    items: dict[str, tuple[Case, str]]
    seed: int

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it for its owner alone."""
        items = {
            name: {"case": case.name, "label": case.label, "direction": case.direction, "method": method}
            for name, (case, method) in self.items.items()
        }
        content = {
            "format": _KEY_FORMAT,
            "study": self.study,
            "seed": self.seed,
            "methods": list(self.methods),
            "question": f"... {QUESTION} ... {QUESTION_END}",
            "grades": {str(grade): text for grade, text in enumerate(GRADES, start=1)},
            "items": items,
        }
        write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n", mode=0o600)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> StudyKey:
        """Read it.

        Raises:
            ValueError: if the file is none.
        """
        try:
            content: Any = read_json(path)
            items = {
                name: (Case(one["case"], one["label"], one["direction"]), one["method"])
                for name, one in content["items"].items()
            }
            is_key = content["format"] == _KEY_FORMAT and all(
                case.direction in DIRECTIONS for case, _ in items.values()
            )
            key = cls(content["study"], content["methods"], items, content["seed"])
        except (OSError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"`key_file` must be the key of a reader study, but {os.fspath(path)!r} is none."
            ) from error
        if not is_key:
            raise ValueError(f"`key_file` {os.fspath(path)!r} was written by another version of this software.")
        return key


def design_study(pairs: Sequence[ImagePair], num_cases: int, seed: int | None = None) -> ReaderStudy:
    """Balance, blind and order pairs.

    A case takes part if every method has made something of it; of both directions as many cases take part, in turns
    over the findings.

    Args:
        pairs: of all methods.
        num_cases: cases of each direction at most (the paper has 10).
        seed: of all draws; by default one that nobody knows, which the key keeps.

    Raises:
        ValueError: for no case that all methods share.
    """
    seed = secrets.randbits(32) if seed is None else seed
    generator = np.random.default_rng(seed)
    methods = methods_of(pairs)
    counts = Counter(pair.case for pair in pairs)
    complete = [case for case, count in counts.items() if count == len(methods)]
    if not complete:
        raise ValueError(f"No case has an image of every method ({', '.join(methods)}): there is nothing to compare.")
    chosen = choose_cases(complete, num_cases, generator)
    by_cell = {(pair.case, pair.method): pair for pair in pairs}
    cells = [by_cell[case, method] for case in chosen for method in methods]
    orders = [reading_order(len(chosen), len(methods), generator) for _ in range(NUM_ORDERS)]

    # Where an item stands in the page says nothing either.
    place = generator.permutation(len(cells))
    names = _names(len(cells), generator)
    items = [StudyItem(name, cells[cell]) for name, cell in zip(names, place.tolist(), strict=True)]
    item_of = np.argsort(place)
    left_out = len(counts) - len(complete)
    notes = [f"{left_out} cases are left out, because not every method has an image of them."] if left_out else []
    return ReaderStudy(_study_name(items), methods, items, [item_of[order].tolist() for order in orders], seed, notes)


def choose_cases(candidates: Sequence[Case], num_cases: int, generator: np.random.Generator) -> list[Case]:
    """As many cases of each direction, drawn in turns over the findings; an image comes twice only if it must.

    Args:
        candidates: to draw from.
        num_cases: of each direction at most.
        generator: of the draw.
    """
    by_direction = {
        direction: [case for case in candidates if case.direction == direction] for direction in DIRECTIONS
    }
    num_cases = min([num_cases, *(len(cases) for cases in by_direction.values() if cases)])
    chosen: list[Case] = []
    seen: Counter[str] = Counter()
    for cases in filter(None, by_direction.values()):
        waiting: dict[str, list[Case]] = {}
        for position in generator.permutation(len(cases)):
            waiting.setdefault(cases[position].label, []).append(cases[position])
        drawn: Counter[str] = Counter()
        for _ in range(num_cases):
            label = min((label for label, left in waiting.items() if left), key=drawn.__getitem__)
            case = min(waiting[label], key=lambda one: seen[one.name])
            waiting[label].remove(case)
            drawn[label] += 1
            seen[case.name] += 1
            chosen.append(case)
    return chosen


def reading_order(num_cases: int, num_methods: int, generator: np.random.Generator) -> np.ndarray:
    """An order of all cells `case * num_methods + method`: randomised blocks.

    Each block shows every case once, and every method equally often up to one; a case comes again after at least half
    a block, so that nobody compares two methods side by side.

    Args:
        num_cases: cases.
        num_methods: methods.
        generator: of the draw.

    Returns:
        A permutation of `range(num_cases * num_methods)`.
    """
    cases, methods = generator.permutation(num_cases), generator.permutation(num_methods)
    halves = np.array_split(cases, 2)
    first = np.empty(num_cases, dtype=np.int64)  # where each case begins in the cycle of methods: a Latin square
    first[generator.permutation(num_cases)] = np.arange(num_cases) % num_methods
    order = []
    for block in range(num_methods):
        for half in halves:
            for case in generator.permutation(half).tolist():
                order.append(case * num_methods + methods[(first[case] + block) % num_methods])
    return np.array(order, dtype=np.int64)


def _names(num: int, generator: np.random.Generator) -> list[str]:
    """Different names that say nothing."""
    names: dict[str, None] = {}
    while len(names) < num:
        names[generator.bytes(4).hex()] = None
    return list(names)


def _study_name(items: Sequence[StudyItem]) -> str:
    """A digest of everything that readers see."""
    digest = hashlib.sha256()
    for item in items:
        digest.update(f"{item.name}\x1f{item.pair.case.label}\x1f".encode())
        digest.update(item.pair.original.tobytes() + item.pair.modified.tobytes())
    return digest.hexdigest()[:12]
