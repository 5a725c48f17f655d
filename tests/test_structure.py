"""How the package is built: what makes it readable, and what must be done in one way only."""

import ast
import re
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "mediffusion_diffusers"
SOURCES = sorted([*PACKAGE.rglob("*.py"), *(ROOT / "training").glob("*.py")])
# Opening a file to write it: the ground floor, locks, and logs that grow while a process runs.
OPENS = {"atomic_files.py", "output_folder.py", "metrics_log.py", "commands/demo/worker.py"}


def name_of(path):
    return str(path.relative_to(ROOT))


def body_lines(function):
    """Lines of a function without its signature and docstring."""
    first = function.body[1] if ast.get_docstring(function) else function.body[0]
    return function.end_lineno - first.lineno + 1


def test_every_call_of_a_pipeline_fits_on_one_screen():
    lines = {}
    for path in (PACKAGE / "pipelines").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name == "__call__":
                lines[name_of(path)] = body_lines(node)
    assert len(lines) == 3 and max(lines.values()) <= 60, lines


@pytest.mark.parametrize("pattern", [r"self: Any\b", r"\bsettings\["])
def test_what_belongs_to_a_class_is_a_field_with_a_type(pattern):
    assert [name_of(path) for path in SOURCES if re.search(pattern, path.read_text(encoding="utf-8"))] == []


def test_no_file_holds_two_ideas():
    lengths = {name_of(path): path.read_text(encoding="utf-8").count("\n") for path in SOURCES}
    assert {name: length for name, length in lengths.items() if length > 400} == {}


def test_pages_come_from_templates():
    found = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                text = "".join(part.value for part in node.values if isinstance(part, ast.Constant))
                found += [f"{name_of(path)}:{node.lineno}"] if re.search(r"</?[a-z][a-z0-9]*[\s>]", text) else []
    assert found == []


def test_files_are_written_in_one_way():
    by_hand = re.compile(r"\.write_(?:text|bytes)\(|\bopen\([^)]*[\"'][wxa]b?\+?[\"']|\.to_csv\(|\bjson\.dump\(")
    rooms = [path for path in PACKAGE.rglob("*.py") if path.relative_to(PACKAGE).parts[0] != "training"]
    found = {str(path.relative_to(PACKAGE)) for path in rooms if by_hand.search(path.read_text(encoding="utf-8"))}
    assert found == OPENS
