"""Options declared once: type, default, help and range stand in a dataclass, and everything else is derived from it.

A field's range is part of its type, so that `dataclasses` sees an ordinary field:

    @dataclass(frozen=True)
    class Schedule:
        learning_rate: Annotated[float, Range(above=0)] = option(1e-4, "Largest learning rate.")
        start: Literal["inversion", "noise"] = option("inversion", "How to get to the noise level.")

    check_options(Schedule(learning_rate=float("nan")))  # ValueError: `learning_rate` must be a number above 0, ...
"""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from typing import Any, Literal, Union


@dataclass(frozen=True)
class Range:
    """Where a number may lie. Infinite numbers and NaN lie nowhere.

    Args:
        above: the number must be larger.
        at_least: the number must be as large or larger.
        below: the number must be smaller.
        at_most: the number must be as small or smaller.
    """

    above: float | None = None
    at_least: float | None = None
    below: float | None = None
    at_most: float | None = None

    def holds(self, value: float) -> bool:
        """Whether a number lies inside; written so that NaN does not."""
        try:
            is_finite = math.isfinite(value)
        except OverflowError:  # a whole number beyond all floats
            return False
        return (
            is_finite
            and (self.above is None or value > self.above)
            and (self.at_least is None or value >= self.at_least)
            and (self.below is None or value < self.below)
            and (self.at_most is None or value <= self.at_most)
        )

    def __str__(self) -> str:
        low = self.above if self.above is not None else self.at_least
        high = self.below if self.below is not None else self.at_most
        if low is None and high is None:
            return "finite"
        if high is None:
            return f"{'above' if self.above is not None else 'at least'} {low:g}"
        if low is None:
            return f"{'below' if self.below is not None else 'at most'} {high:g}"
        return f"in {'(' if self.above is not None else '['}{low:g}, {high:g}{')' if self.below is not None else ']'}"


def option(default: Any, help: str, **metadata: Any) -> Any:
    """A dataclass field with its help text.

    Args:
        default: its default; a list or dict is copied for each instance.
        help: one or two sentences, for `--help`, docstrings and cards.
        metadata: more for the command line (see `option_parser`): `positional`, `aliases`, `metavar`, or `const`, the
            value of an option that is named without one.
    """
    metadata = {"help": help, **metadata}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def required(help: str, **metadata: Any) -> Any:
    """A dataclass field that must be given, with its help text; as `option`."""
    return field(metadata={"help": help, **metadata})


def check_number(name: str, value: Any, allowed: Range | None = None, whole: bool = False) -> None:
    """Refuse what is not a number, not a whole one, not finite, or outside its range.

    Args:
        name: of the argument, for the message.
        value: what came.
        allowed: where it may lie; `None` lets any finite number pass.
        whole: only whole numbers.

    Raises:
        ValueError: naming the argument, what it must be and what came.
    """
    allowed = Range() if allowed is None else allowed
    is_number = isinstance(value, Integral if whole else Real) and not isinstance(value, bool)
    if not is_number or not allowed.holds(value):
        kind = "a whole number" if whole else "a number"
        raise ValueError(f"`{name}` must be {kind} {allowed}, but got {value!r}.".replace("a number finite", "finite"))


def check_options(options: Any) -> None:
    """Check every field of a dataclass whose type states a range or choices; lists and dicts item by item.

    Args:
        options: an instance.

    Raises:
        ValueError: for the first field that does not hold what its type says.
    """
    hints = typing.get_type_hints(type(options), include_extras=True)
    for entry in fields(options):
        _check(entry.name, getattr(options, entry.name), hints[entry.name])


def range_of(options_class: type, name: str) -> Range | None:
    """The range in a field's type, if it states one."""
    return range_in(typing.get_type_hints(options_class, include_extras=True)[name])


def range_in(hint: Any) -> Range | None:
    """The range in a type, or in one of a union's, if it states one."""
    stated = [extra for part in (hint, *_members(hint)) for extra in getattr(part, "__metadata__", ())]
    return next((extra for extra in stated if isinstance(extra, Range)), None)


def plain_types(hint: Any) -> tuple[Any, ...]:
    """The types of a union, `None` among them, or of another type that alone; all without `Annotated`."""
    return tuple(map(_bare, _members(hint)))


def _members(hint: Any) -> tuple[Any, ...]:
    plain = _bare(hint)
    return typing.get_args(plain) if typing.get_origin(plain) in (Union, types.UnionType) else (plain,)


def _bare(hint: Any) -> Any:
    return typing.get_args(hint)[0] if hasattr(hint, "__metadata__") else hint


def _check(name: str, value: Any, hint: Any) -> None:
    allowed = range_in(hint)
    members = plain_types(hint)
    if value is None and type(None) in members:
        return
    choices = [choice for member in members for choice in _choices(member)]
    if Any in members and not isinstance(value, str):
        return
    if bool in members and not isinstance(value, bool):
        raise ValueError(f"`{name}` must be True or False, but got {value!r}.")
    if choices and not (value in choices if isinstance(value, str) else False):
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, choices))}, but got {value!r}.")
    if allowed is None:
        return
    whole = int in members or any(int in typing.get_args(member) for member in members)
    whole = whole and not (float in members or any(float in typing.get_args(member) for member in members))
    for item in _items(value, members):
        check_number(name, item, allowed, whole)


def _choices(member: Any) -> list[Any]:
    return list(typing.get_args(member)) if typing.get_origin(member) is Literal else []


def _items(value: Any, members: Sequence[Any]) -> list[Any]:
    """The numbers in a list or dict where the type has one, else the value itself."""
    containers = [typing.get_origin(member) or member for member in members]
    if isinstance(value, Mapping) and any(_is_subclass(kind, Mapping) for kind in containers):
        return list(value.values())
    if isinstance(value, (list, tuple)) and any(_is_subclass(kind, Sequence) for kind in containers):
        return list(value)
    return [value]


def _is_subclass(kind: Any, parent: type) -> bool:
    return isinstance(kind, type) and kind is not str and issubclass(kind, parent)
