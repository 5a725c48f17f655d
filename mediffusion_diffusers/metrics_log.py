"""`metrics.jsonl`: one JSON object per line, appended as training goes on."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

from .atomic_files import write_text


class MetricsLog:
    """Append records to a JSONL file.

    Args:
        path: the file.
        resumed_step: records after this step are dropped first, because a resumed run writes them again; 0 starts
            an empty file.
    """

    def __init__(self, path: Path, resumed_step: int = 0):
        self.path = path
        kept = [record for record in read_metrics(path) if record["step"] <= resumed_step] if resumed_step else []
        write_text(path, "".join(_line(record) for record in kept))

    def append(self, record: dict[str, Any]) -> None:
        """Write one record, which must hold `step`; the line is on disk when this returns."""
        with self.path.open("a") as file:
            file.write(_line(record))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read a metrics file, leaving out lines that are no records, such as one that a killed run did not finish."""
    if not path.is_file():
        return []
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with suppress(ValueError, RecursionError):
            record = json.loads(line)
            if isinstance(record, dict) and isinstance(record.get("step"), int):
                records.append(record)
    return records


def _line(record: dict[str, Any]) -> str:
    """One line; JSON has no NaN, so that becomes null."""
    unknown = {key: None for key, value in record.items() if isinstance(value, float) and not math.isfinite(value)}
    return json.dumps({**record, **unknown}) + "\n"


class LossWindow:
    """Means of the losses since the last record.

    Its state is part of a checkpoint, so that a resumed run writes the same means.

    Args:
        state: what `state` gave.
    """

    def __init__(self, state: dict[str, list[float]] | None = None):
        self.sums = {name: list(pair) for name, pair in (state or {}).items()}

    def add(self, losses: dict[str, float]) -> None:
        """Add one step's losses."""
        for name, value in losses.items():
            total, count = self.sums.get(name, [0.0, 0])
            self.sums[name] = [total + value, count + 1]

    def means(self) -> dict[str, float]:
        """Mean of each loss over the steps that had it."""
        return {name: total / count for name, (total, count) in self.sums.items()}

    def clear(self) -> None:
        """Begin the next window."""
        self.sums = {}

    def state(self) -> dict[str, list[float]]:
        """Sum and count of each loss."""
        return self.sums
