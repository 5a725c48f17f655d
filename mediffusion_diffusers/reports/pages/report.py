"""A self-contained HTML report: one file, pictures inside, nothing loaded from elsewhere, no script of its own."""

from __future__ import annotations

import base64
import io
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from ...atomic_files import write_text
from ...notices import PAGE_FOOTER, PAGE_NOTICE


_CSS = """
:root { color-scheme: light dark; --ink: #1b2430; --muted: #5b6775; --paper: #f6f7f9; --card: #fff; --line: #dfe4ea;
  --accent: #2563a8; --good: #1f7a4d; --bad: #b3263a; --warn-paper: #fff6df; --warn-line: #e3b341; --frame: #fff; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaf0; --muted: #9aa7b5; --paper: #12161c; --card: #1a2028;
  --line: #2d3641; --accent: #7db3ec; --good: #5cc492; --bad: #f08a98; --warn-paper: #2b2411; --warn-line: #8a6d1f;
  --frame: #f3f4f6; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 64rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .3rem; letter-spacing: -.01em; }
h2 { font-size: 1.3rem; margin: 3rem 0 .6rem; padding-top: 1.2rem; border-top: 1px solid var(--line); }
p { margin: .6rem 0; max-width: 46rem; }
.subtitle { color: var(--muted); font-size: 1.05rem; margin: 0 0 1.2rem; }
.notice { background: var(--warn-paper); border: 1px solid var(--warn-line); border-radius: .5rem;
  padding: .7rem 1rem; font-size: .9rem; max-width: none; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(12.5rem, 1fr)); gap: .8rem; margin: 1.2rem 0; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: .8rem 1rem; }
.card .value { font-size: 1.65rem; font-weight: 650; font-variant-numeric: tabular-nums; line-height: 1.25; }
.card .name { color: var(--muted); font-size: .88rem; line-height: 1.35; }
.card .target { font-size: .82rem; margin-top: .35rem; }
.good { color: var(--good); } .bad { color: var(--bad); }
figure { margin: 1.2rem 0; }
figure img { display: block; max-width: 100%; height: auto; background: var(--frame); border: 1px solid var(--line);
  border-radius: .6rem; padding: .5rem; }
figcaption { color: var(--muted); font-size: .9rem; margin-top: .5rem; max-width: 46rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .38rem .6rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top; }
th { color: var(--muted); font-weight: 600; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; padding-left: 0; white-space: nowrap; }
tbody tr.strong td { font-weight: 650; }
.provenance td { text-align: left; overflow-wrap: anywhere; } .provenance td:first-child { color: var(--muted); }
pre { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: .8rem 1rem;
  overflow-x: auto; font-size: .88rem; }
footer { margin-top: 3rem; color: var(--muted); font-size: .85rem; }
"""


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
    """A report that grows from top to bottom; every method returns the report.

    Args:
        title: heading of the page.
        subtitle: one line below it.

    Example:
        >>> report = HtmlReport("Phantom demo", "Trained from nothing in twelve minutes")
        >>> _ = report.add_section("Classifier").add_table(["label", "AUROC"], [["Mass", 0.91]])
        >>> "0.910" in report.render()
        True
    """

    style = _CSS
    script = ""  # a kind of report that moves brings its own, inside the page

    def __init__(self, title: str, subtitle: str = ""):
        self.title = title
        self.subtitle = subtitle
        self._parts: list[str] = []

    def add_section(self, heading: str, text: str = "") -> HtmlReport:
        """Begin a section; `text` may hold several paragraphs, separated by an empty line."""
        self._parts.append(f"<h2>{escape(heading)}</h2>")
        return self.add_text(text) if text else self

    def add_text(self, text: str) -> HtmlReport:
        """Add paragraphs, separated by an empty line."""
        self._parts.extend(f"<p>{escape(part.strip())}</p>" for part in text.split("\n\n") if part.strip())
        return self

    def add_code(self, code: str) -> HtmlReport:
        """Add a block of code."""
        self._parts.append(f"<pre><code>{escape(code.strip())}</code></pre>")
        return self

    def add_key_figures(self, figures: Sequence[KeyFigure]) -> HtmlReport:
        """Add a row of cards with numbers, their targets, and whether those were met."""
        cards = []
        for figure in figures:
            mark = "" if figure.is_met is None else ("✓ " if figure.is_met else "✗ ")
            kind = "" if figure.is_met is None else (" good" if figure.is_met else " bad")
            target = "" if figure.target is None else f'<div class="target{kind}">{mark}{escape(figure.target)}</div>'
            cards.append(
                f'<div class="card"><div class="value">{escape(format_value(figure.value))}</div>'
                f'<div class="name">{escape(figure.name)}</div>{target}</div>'
            )
        self._parts.append(f'<div class="cards">{"".join(cards)}</div>')
        return self

    def add_figure(self, image: Image.Image, caption: str, alt: str | None = None) -> HtmlReport:
        """Add a picture, stored inside the page.

        Args:
            image: the picture.
            caption: what one sees.
            alt: text in place of the picture; by default the caption.
        """
        self._parts.append(
            f'<figure><img alt="{escape(alt or caption)}" width="{image.width}" height="{image.height}" '
            f'style="width:{image.width * 0.72:.0f}px" src="{data_url(image)}">'
            f"<figcaption>{escape(caption)}</figcaption></figure>"
        )
        return self

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
                raise ValueError(f"Every row must have {len(columns)} cells, one per column, but got {list(row)}.")
        head = "".join(f"<th>{escape(column)}</th>" for column in columns)
        body = "".join(
            f"<tr{' class=' + chr(34) + 'strong' + chr(34) if index in strong_rows else ''}>"
            + "".join(f"<td>{escape(format_value(cell))}</td>" for cell in row)
            + "</tr>"
            for index, row in enumerate(rows)
        )
        text = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
        self._parts.append(
            f'<figure><div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
            f"{text}</figure>"
        )
        return self

    def add_provenance(self, provenance: Mapping[str, Any]) -> HtmlReport:
        """Add what another needs to repeat the figures: data, split hash, seed, checkpoint, ..."""
        rows = "".join(
            f"<tr><td>{escape(str(key).replace('_', ' '))}</td><td>{escape(format_value(value))}</td></tr>"
            for key, value in provenance.items()
        )
        self._parts.append(f'<div class="scroll"><table class="provenance"><tbody>{rows}</tbody></table></div>')
        return self

    def render(self) -> str:
        """The page as text."""
        subtitle = f'<p class="subtitle">{escape(self.subtitle)}</p>' if self.subtitle else ""
        notice = f'<p class="notice" role="note">{escape(PAGE_NOTICE)}</p>'
        script = f"<script>{self.script}</script>\n" if self.script else ""
        return (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            '<meta name="color-scheme" content="light dark">\n'
            f"<title>{escape(self.title)}</title>\n<style>{self.style}</style>\n</head>\n<body>\n<main>\n"
            f"<h1>{escape(self.title)}</h1>\n{subtitle}\n{notice}\n"
            + "\n".join(self._parts)
            + f"\n<footer>{escape(PAGE_FOOTER)}</footer>\n"
            f"</main>\n{script}</body>\n</html>\n"
        )

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the page aside, then rename it into place."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, self.render())
        return path


def data_url(image: Image.Image) -> str:
    """A picture as an address that holds it, in PNG."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def format_value(value: Any) -> str:
    """A cell's text: three decimals for fractions, thousands separators for counts, a dash for nothing.

    Example:
        >>> [format_value(value) for value in (0.12345, -0.5, 10.0, 12000, None, float("nan"), "Mass", [0.1, 0.2])]
        ['0.123', '−0.500', '10', '12,000', '–', '–', 'Mass', '0.100 to 0.200']
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}".replace("-", "−")
    if isinstance(value, float):
        digits = 0 if abs(value) >= 100 or (abs(value) >= 10 and value.is_integer()) else 3
        return f"{value:.{digits}f}".replace("-", "−")
    if isinstance(value, (list, tuple)) and len(value) == 2:
        return f"{format_value(value[0])} to {format_value(value[1])}"
    return str(value)
