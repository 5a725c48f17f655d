"""How pages are rendered: Jinja2 templates that escape whatever is data, style and script put into the page."""

from __future__ import annotations

import base64
import io
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from ... import notices
from ..tables import format_value


class Templates:
    """The Jinja2 templates in the folders `templates` of packages, and the style sheets and scripts beside them.

    Args:
        packages: the first that has a template of a name is asked for it.
    """

    def __init__(self, *packages: str):
        self._environment = Environment(
            loader=ChoiceLoader([PackageLoader(package) for package in packages]),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
        )
        self._environment.filters.update(data_url=data_url, value=format_value)
        self._environment.globals["notices"] = notices

    def render(self, template: str, **values: Any) -> str:
        """A whole template."""
        return self._environment.get_template(template).render(**values)

    def block(self, template: str, macro: str, /, **values: Any) -> Markup:
        """A part of a page.

        Args:
            template: file that holds the block as a macro.
            macro: its name.
            values: what it takes.
        """
        return getattr(self._environment.get_template(template).module, macro)(**values)

    def text(self, *names: str) -> Markup:
        """Our own style sheets or scripts, as they are."""
        assert self._environment.loader is not None
        sources = (self._environment.loader.get_source(self._environment, name)[0] for name in names)
        return Markup("".join(sources))


def data_url(image: Image.Image) -> str:
    """A picture as an address that holds it, in PNG."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
