"""What the paper prints, as data: `published.json`, with its place there and notes on its protocol."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Any

from ..atomic_files import read_json


@dataclass(frozen=True)
class PublishedItem:
    """A table or figure of the paper.

    Args:
        name: `"table-4"`.
        kind: what it takes to make it again: `"classification"`, `"counterfactuals"`, `"localisation"`,
            `"generation"`, `"panel"` or `"sweep"`.
        title: what it shows.
        place: where it stands, as "Table 4, Sec. 4.2, p. 5".
        content: everything that `published.json` says of it: figures, protocol, settings, `notes`.
        source: the paper.
    """

    name: str
    kind: str
    title: str
    place: str
    content: Mapping[str, Any]
    source: str

    @property
    def notes(self) -> list[str]:
        """What a reader of the printed figures must know."""
        return list(self.content["notes"])

    @property
    def share(self) -> float | None:
        """Percent of the labels that its model was trained with; `None` if it has a column for each."""
        return self.content.get("share")


@lru_cache
def published_items() -> Mapping[str, PublishedItem]:
    """All tables and figures, by name, tables first."""
    document = read_json(str(files(__package__) / "published.json"))
    return {
        f"{family}-{number}": PublishedItem(
            f"{family}-{number}", content["kind"], content["title"], content["place"], content, document["source"]
        )
        for family in ("table", "figure")
        for number, content in document[f"{family}s"].items()
    }


def item_numbers(family: str) -> list[int]:
    """Numbers of the tables (`"table"`) or figures (`"figure"`) that can be made again."""
    return [int(name.split("-")[1]) for name in published_items() if name.startswith(f"{family}-")]
