"""A self-contained HTML report: one file, pictures inside, nothing loaded from elsewhere, no script of its own."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup
from PIL import Image

from ...atomic_files import write_text
from ...notices import PAGE_FOOTER, PAGE_NOTICE
from .rendering import Templates


_TEMPLATES = Templates("mediffusion_diffusers.reports.pages")
_SHOWN_WIDTH = 0.72  # of a figure's pixels, which are drawn dense enough for a fine screen


@dataclass(frozen=True)
class KeyFigure:
    """One number at the top of a report.

    Args:
        name: what it is.
        value: the number, or text.
        target: what was aimed at, e.g. `"at least 0.80"`.
        is_met: whether it was reached; None says nothing about it.
    """

    name: str
    value: float | str | None
    target: str | None = None
    is_met: bool | None = None


class HtmlReport:
    """A report that grows from top to bottom; every method returns the report. All text is shown as it is.

    Args:
        title: heading of the page.
        subtitle: one line below it.

    Example:
        >>> report = HtmlReport("Phantom demo", "Trained from nothing in twelve minutes")
        >>> _ = report.add_section("Classifier").add_table(["label", "AUROC"], [["Mass", 0.91]])
        >>> "0.910" in report.render()
        True
    """

    styles: tuple[str, ...] = ("report.css",)
    scripts: tuple[str, ...] = ()  # a kind of report that moves brings its own, inside the page

    def __init__(self, title: str, subtitle: str = ""):
        self.title = title
        self.subtitle = subtitle
        self._parts: list[Markup] = []

    def add_section(self, heading: str, text: str = "") -> HtmlReport:
        """Begin a section; `text` may hold several paragraphs, separated by an empty line."""
        self._add("section", heading=heading)
        return self.add_text(text)

    def add_text(self, text: str) -> HtmlReport:
        """Add paragraphs, separated by an empty line."""
        for part in text.split("\n\n"):
            if part.strip():
                self._add("paragraph", text=part.strip())
        return self

    def add_code(self, code: str) -> HtmlReport:
        """Add a block of code."""
        return self._add("code", text=code.strip())

    def add_key_figures(self, figures: Sequence[KeyFigure]) -> HtmlReport:
        """Add a row of cards with numbers, their targets, and whether those were met."""
        return self._add("key_figures", figures=figures)

    def add_figure(self, image: Image.Image, caption: str, alt: str | None = None) -> HtmlReport:
        """Add a picture, stored inside the page.

        Args:
            image: the picture.
            caption: what one sees.
            alt: text in place of the picture; by default the caption.
        """
        shown_width = round(image.width * _SHOWN_WIDTH)
        return self._add("figure", image=image, caption=caption, alt=alt or caption, shown_width=shown_width)

    def add_table(
        self,
        columns: Sequence[str],
        rows: Sequence[Sequence[Any]],
        caption: str = "",
        strong_rows: Sequence[int] = (),
    ) -> HtmlReport:
        """Add a table.

        Args:
            columns: headings; the first column is left-aligned.
            rows: cells; numbers are formatted, None and NaN become a dash.
            caption: what one reads from it.
            strong_rows: positions of rows in bold.

        Raises:
            ValueError: if a row has another number of cells than there are columns.
        """
        for row in rows:
            if len(row) != len(columns):
                raise ValueError(
                    f"Every row of `rows` must have {len(columns)} cells, one per column, but got {list(row)}."
                )
        return self._add("table", columns=columns, rows=rows, caption=caption, strong_rows=strong_rows)

    def add_provenance(self, provenance: Mapping[str, Any]) -> HtmlReport:
        """Add what another needs to repeat the figures: data, split hash, seed, checkpoint, ..."""
        return self._add("provenance", entries=list(provenance.items()))

    def render(self) -> str:
        """The page as text."""
        return _TEMPLATES.render(
            "page.html",
            title=self.title,
            subtitle=self.subtitle,
            notice=PAGE_NOTICE,
            footer=PAGE_FOOTER,
            parts=self._parts,
            style=_TEMPLATES.text(*self.styles),
            script=_TEMPLATES.text(*self.scripts),
        )

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the page aside, then rename it into place."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, self.render())
        return path

    def _add(self, block: str, template: str = "blocks.html", **values: Any) -> HtmlReport:
        self._parts.append(_TEMPLATES.block(template, block, **values))
        return self
