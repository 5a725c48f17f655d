"""A table or figure made again: own figures, beside the printed ones, as tables, notes and a picture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from ..evaluation.classification import nan_to_none
from ..reports.tables import Table
from .published import PublishedItem


@dataclass(frozen=True)
class Reproduction:
    """What was made again.

    Args:
        item: the paper's.
        own: own figures, ready for JSON.
        draw: draws them, beside the printed ones where there are any.
        tables: what Markdown shows, each with a caption.
        notes: what a reader of the own figures must know.
    """

    item: PublishedItem
    own: Any
    draw: Callable[[], Image.Image]
    tables: list[tuple[Table, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """For JSON: the printed figures as `paper`, the own ones as `own`."""
        paper = {"source": self.item.source, **self.item.content}
        return nan_to_none({"item": self.item.name, "own": self.own, "notes": self.notes, "paper": paper})
