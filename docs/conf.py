"""How Sphinx builds these documents: `make docs`, to `docs/_build/html`; offline, and any warning is an error.

Sphinx with furo and MyST, because they are maintained: MkDocs has had no release since 2024, and Material for MkDocs
reached its end of life in November 2026. The docstrings are Google's, which Sphinx reads by itself.
"""

import json
import os
import re
from pathlib import Path
from typing import Any

from myst_parser.sphinx_ import Parser
from sphinx.application import Sphinx

from mediffusion_diffusers import __version__


DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent

project = "mediffusion-diffusers"
author = "The mediffusion-diffusers authors"
release = version = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"{project} {release}"
html_copy_source = False

myst_heading_anchors = 3

# The docstrings write `code`, as Markdown does.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_default_options = {"members": True, "special-members": "__call__", "show-inheritance": True}
napoleon_google_docstring, napoleon_numpy_docstring = True, False
napoleon_use_rtype = False

# Documents of the repository that are pages here: what stands in `docs/` under the name is a pointer to them.
PAGES = {
    "README.md": "index",
    "CHANGELOG.md": "changes",
    "CONTRIBUTING.md": "contributing",
    "training/README.md": "training",
    "model_cards/README.md": "model_cards",
}
_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s:#]+)(#[^)\s]*)?\)")


def read_page(app: Sphinx, docname: str, source: list[str]) -> None:
    """Put a document of the repository in the place of its pointer, and turn links out of `docs/`."""
    outside = next((path for path, name in PAGES.items() if name == docname and name != "index"), None)
    origin = ROOT / outside if outside else Path(app.env.doc2path(docname))
    text = origin.read_text(encoding="utf-8") if outside else source[0]
    if origin.suffix == ".md":
        source[0] = with_links(text, origin.parent, (DOCS / docname).parent)


def with_links(text: str, origin: Path, here: Path) -> str:
    """Markdown whose links lead from a page.

    Args:
        text: Markdown.
        origin: folder that its links start from.
        here: folder of the page.
    """

    def turned(link: re.Match[str]) -> str:
        words, target, anchor = link[1], (origin / link[2]).resolve(), link[3] or ""
        inside = target.relative_to(ROOT).as_posix() if target.is_relative_to(ROOT) else ""
        if inside in PAGES:
            target, anchor = DOCS / f"{PAGES[inside]}.md", ""
        elif target.is_dir():
            return words
        return f"[{words}]({os.path.relpath(target, here)}{anchor})"

    return _LINK.sub(turned, text)


class NotebookParser(Parser):
    """Notebooks as Markdown: their texts, code and outputs."""

    supported = ("notebook",)

    def parse(self, inputstring: str, document: Any) -> None:
        """Parse the JSON of a notebook."""
        super().parse("\n\n".join(map(cell_text, json.loads(inputstring)["cells"])), document)


def cell_text(cell: dict[str, Any]) -> str:
    """One cell of a notebook in Markdown; its pictures as data, so that a page is one file."""
    text = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return text
    language = "bash" if text.startswith("!") else "python"
    parts = [f"```{language}\n{text}\n```"]
    for output in cell["outputs"]:
        shown = output.get("data", {"text/plain": output.get("text", "")})
        if "image/png" in shown:
            picture = "".join(shown["image/png"]).strip()
            parts.append(f'<p><img alt="Output" src="data:image/png;base64,{picture}"></p>')
        elif "".join(shown["text/plain"]).strip():
            parts.append(f"```text\n{''.join(shown['text/plain']).rstrip()}\n```")
    return "\n\n".join(parts)


def read_docstring(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """What the docstrings write as Markdown does, as reStructuredText: fences, `Metric`s, |x|."""
    whole = [line for line in _aligned(lines) if "```" not in line]
    lines[:] = [line if line.lstrip().startswith(">>>") else _escaped(line) for line in whole]


def _aligned(lines: list[str]) -> list[str]:
    """Sections at one indentation: `replace_example_docstring` of diffusers sets examples further left."""
    indent = max((len(line) - len("Args:") for line in lines if line.strip() == "Args:"), default=0)
    aligned, in_example = [], False
    for line in lines:
        if line == "Examples:" or (line.startswith(" " * indent) and line.strip() in ("Returns:", "Raises:")):
            in_example = line == "Examples:"
        aligned.append(line if in_example else line.removeprefix(" " * indent))
    return aligned


def _escaped(line: str) -> str:
    parts = line.split("`")  # every second one is code
    parts[::2] = [part.replace("|", "\\|") for part in parts[::2]]
    return re.sub(r"(`[^`]+`)(?=\w)", r"\1\\ ", "`".join(parts))


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.add_source_suffix(".ipynb", "notebook")
    app.add_source_parser(NotebookParser)
    app.connect("source-read", read_page)
    app.connect("autodoc-process-docstring", read_docstring, priority=400)  # before napoleon
    return {"parallel_read_safe": True}
