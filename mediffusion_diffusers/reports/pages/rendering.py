"""How pages are rendered: Jinja2 templates that escape whatever is data, style and script put into the page."""

from __future__ import annotations

import base64
import io
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from ..tables import format_value


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


_ENVIRONMENT = Environment(
    loader=PackageLoader("mediffusion_diffusers.reports.pages"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
_ENVIRONMENT.filters.update(data_url=data_url, value=format_value)
