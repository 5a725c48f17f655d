"""Values of results files as text: numbers of three digits, cells and tables in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
_SMALLEST_WITH_SEPARATORS, _SMALLEST_WITHOUT_FRACTION = 10_000, 1000


def number(value: float) -> str:
    """Three significant digits; whole numbers whole."""
    if isinstance(value, int) or value == int(value):
        return f"{int(value):,}" if abs(value) >= _SMALLEST_WITH_SEPARATORS else str(int(value))
    return f"{value:.3g}" if abs(value) < _SMALLEST_WITHOUT_FRACTION else f"{value:,.0f}"


def cell(value: Any) -> str | None:
    """A value that fits in a cell of a table, as text; `None` if it is more than that."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return number(value)
    if isinstance(value, str):
        return value.replace("|", "\\|").replace("<", "&lt;")
    if isinstance(value, Mapping) and value.keys() == {"mean", "sd"}:
        return f"{cell(value['mean'])} ± {cell(value['sd'])}"
    if isinstance(value, Mapping) and value.keys() == {"estimate", "interval_95"}:
        return f"{cell(value['estimate'])} {cell(value['interval_95'])}"
    if isinstance(value, list) and len(value) == 2 and all(isinstance(each, float) for each in value):
        return f"({number(value[0])} to {number(value[1])})"
    if isinstance(value, list) and all(isinstance(each, int | float | str) for each in value):
        return ", ".join(str(cell(each)) for each in value)
    return None


def words(key: str) -> str:
    """A key as words."""
    return str(cell(key.replace("_", " ")))


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def at(results: Mapping[str, Any], path: str) -> Any:
    """What lies at a dotted path, `None` if nothing does."""
    value: Any = results
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value
