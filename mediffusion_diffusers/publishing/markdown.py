"""How cards are rendered: Jinja2 templates in which whatever is data reads as text and never as Markdown.

A value in a template is escaped unless a filter below says what else it is: `code`, `literal` (of Python) or `prose`,
whose addresses stay links.
"""

from __future__ import annotations

import json
import re
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ..reports.tables import format_value


# What has a meaning anywhere in a line: code, emphasis, links, HTML, entities, tables, formulas.
_ANYWHERE = re.compile(r"[\\`*\[\]<>|~&$]|(?<![^\W_])_|_(?![^\W_])|:(?=//)|(?<=\bwww)\.")
# What has a meaning at the beginning of a line only: headings, lists, rules, underlined headings.
_AT_THE_BEGINNING = re.compile(r"(#{1,6}|[-+]|={1,}|-{1,})(?=\s|$)|(?:-\s*){3,}$|(?P<number>\d{1,9})[.)](?=\s|$)")
_ADDRESS = re.compile(r"(https?://[^\s<>|`\\]*[^\s<>|`\\.,;:!?)\]'\"])")


def render_markdown(template: str, **values: Any) -> str:
    """Render a template of this folder.

    Args:
        template: its file name.
        values: what it takes; all of them are data.
    """
    return _ENVIRONMENT.get_template(template).render(**values)


def escape_markdown(value: Any) -> str:
    r"""A value on one line that Markdown shows as it is: no heading, list, table, link, HTML or code comes out of it.

    Example:
        >>> [escape_markdown(name) for name in ("# Mass", "a|b", "[x](y)", "Pleural_Thickening", "two\nlines", -0.5)]
        ['\\# Mass', 'a\\|b', '\\[x\\](y)', 'Pleural_Thickening', 'two lines', '-0.5']
    """
    text = _ANYWHERE.sub(lambda match: "\\" + match[0], one_line(value))
    marker = _AT_THE_BEGINNING.match(text)
    if marker is None:
        return text
    place = marker.end("number") if marker["number"] else 0
    return f"{text[:place]}\\{text[place:]}"


def one_line(value: Any) -> str:
    """A value as text with single spaces for all white space and control characters."""
    text = str(value).encode("utf-8", "replace").decode()
    return " ".join(re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", " ", text).split())


def code(value: Any) -> Markup:
    """A value as inline code, for which it must hold no backtick and, for tables, no bar: else it is text."""
    text = one_line(value)
    return Markup(escape_markdown(text) if not text or re.search(r"[`|]", text) else f"`{text}`")


def literal(value: Any) -> Markup:
    """A text as a string of Python, on one line."""
    return Markup(json.dumps(str(value).encode("utf-8", "replace").decode(), ensure_ascii=False))


def prose(value: Any) -> Markup:
    """A value as text in which the addresses of web pages are links."""
    parts = _ADDRESS.split(one_line(value))  # text, address, text, ...
    return Markup("".join(f"<{part}>" if index % 2 else _escape_part(part) for index, part in enumerate(parts)))


def _escape_part(text: str) -> str:
    """A part of a line, with the spaces at its ends."""
    start, end = (" " if text[:1] == " " else ""), (" " if text.strip() and text[-1:] == " " else "")
    return f"{start}{escape_markdown(text)}{end}"


def _finalize(value: Any) -> Any:
    return value if isinstance(value, Markup) else Markup(escape_markdown(value))


_ENVIRONMENT = Environment(
    loader=PackageLoader("mediffusion_diffusers.publishing"),
    autoescape=True,  # so that what macros and filters have made safe is known as such
    finalize=_finalize,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
_ENVIRONMENT.filters.update(code=code, literal=literal, prose=prose, value=format_value)
