"""How pages are rendered: Jinja2 templates that escape whatever is data, style and script put into the page."""

from __future__ import annotations

import base64
import io
import math
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image


def render_page(**values: Any) -> str:
    """A page; see `page.html` for what it takes."""
    return _ENVIRONMENT.get_template("page.html").render(**values)


def render_block(template: str, block: str, **values: Any) -> Markup:
    """A part of a page.

    Args:
        template: file that holds the block as a macro.
        block: its name.
        values: what it takes.
    """
    return getattr(_ENVIRONMENT.get_template(template).module, block)(**values)


def packaged_text(*names: str) -> Markup:
    """Our own style sheets or scripts, as they are."""
    assert _ENVIRONMENT.loader is not None
    return Markup("".join(_ENVIRONMENT.loader.get_source(_ENVIRONMENT, name)[0] for name in names))


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


_ENVIRONMENT = Environment(
    loader=PackageLoader("mediffusion_diffusers.reports.pages"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
_ENVIRONMENT.filters.update(data_url=data_url, value=format_value)
