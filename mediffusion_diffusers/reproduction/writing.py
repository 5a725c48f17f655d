"""What was made again as files: JSON, Markdown and a picture for each item, and one page of all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..atomic_files import write_json, write_text
from ..notices import CARD_NOTICE
from ..publishing.markdown import render_markdown
from ..reports.pictures.drawing import save_picture
from .reproduction import Reproduction


PAGE = "reproduction.md"


def write_reproductions(made: Sequence[Reproduction], not_made: dict[str, str], folder: Path) -> Path:
    """Write `table-4.json`, `.md` and `.png` for each, and `reproduction.md` with all of them.

    Args:
        made: at least one.
        not_made: why, by name of the item.
        folder: an existing folder.

    Returns:
        Path of the page.
    """
    for each in made:
        save_picture(each.draw(), folder / f"{each.item.name}.png")
        write_json(folder / f"{each.item.name}.json", each.to_dict())
        write_text(folder / f"{each.item.name}.md", render_markdown("reproduction.md", **_values([each], {})))
    write_text(folder / PAGE, render_markdown("reproduction.md", **_values(made, not_made)))
    return folder / PAGE


def _values(made: Sequence[Reproduction], not_made: dict[str, str]) -> dict[str, Any]:
    return {"notice": CARD_NOTICE, "source": made[0].item.source, "made": made, "not_made": not_made}
