"""The promise of docs/structure.md: in the package a lower line may import an upper one, never the reverse."""

import ast
import re
from pathlib import Path


ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "mediffusion_diffusers"


def layers():
    """Names of the package's modules and folders, in the order of the tree in docs/structure.md."""
    text = (ROOT / "docs" / "structure.md").read_text(encoding="utf-8")
    tree = re.search(r"^mediffusion_diffusers/ .*\n((?:  \S.*\n)+)", text, flags=re.M)[1]
    return [line.split()[0].removesuffix(".py").rstrip("/") for line in tree.splitlines()]


def imported_parts(path):
    """The package's top-level parts that a module imports by a relative path."""
    depth = len(path.relative_to(PACKAGE).parts)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level == depth:
            yield from [node.module.split(".")[0]] if node.module else [alias.name for alias in node.names]


def test_imports_run_from_the_bottom_to_the_top():
    order = layers()
    wrong = []
    for path in sorted(PACKAGE.rglob("*.py")):
        part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if part in ("__init__", "version"):
            continue
        for imported in imported_parts(path):
            if imported not in (part, "version") and order.index(imported) > order.index(part):
                wrong.append(f"{path.relative_to(PACKAGE)} imports {imported}")
    assert wrong == []


def test_the_tree_names_every_part():
    parts = {path.name.removesuffix(".py") for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert parts - {"__init__", "__pycache__", "version"} == set(layers())
