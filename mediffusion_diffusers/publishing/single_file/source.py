"""A module of the package as the pieces that can be copied: its definitions, each with its text, and its imports."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path


PACKAGE = Path(__file__).parents[2]


@dataclass(frozen=True)
class External:
    """A name that comes from another library: `from module import name as alias`, or `import module` without a name.

    Args:
        module: what is imported, or imported from.
        name: what is taken from it; `None` for the module itself.
        alias: what it is called here.
    """

    module: str
    name: str | None
    alias: str


@dataclass(frozen=True)
class Internal:
    """A name that comes from another module of the package.

    Args:
        module: where it is imported from.
        name: what it is called there.
    """

    module: Module
    name: str


@dataclass(frozen=True, eq=False)
class Definition:
    """One top-level statement: a function, a class, an assignment, or a call for its effect.

    Args:
        module: where it stands.
        node: the statement.
        names: what it binds; nothing for a call.
        text: its lines, with the comment directly above it.
        first_line: number of its first line, from 1.
    """

    module: Module
    node: ast.stmt
    names: tuple[str, ...]
    text: str
    first_line: int

    @property
    def is_block(self) -> bool:
        """Whether it is a function or a class, around which two lines stay empty."""
        return isinstance(self.node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))

    @cached_property
    def used_names(self) -> list[str]:
        """Every name that it reads, annotations included, in the order of their first appearance."""
        names = [node.id for node in ast.walk(self.node) if isinstance(node, ast.Name)]
        return list(dict.fromkeys(names))


class Module:
    """A module of the package, read and cut into definitions.

    Args:
        path: its file.

    Raises:
        ValueError: for an import that no single file can have: of a whole module of the package, by `*`, or relative
            inside a function.
    """

    _known: dict[Path, Module] = {}

    def __init__(self, path: Path):
        self.path = path
        source = path.read_text(encoding="utf-8")
        self.lines = source.splitlines()
        tree = ast.parse(source)
        self.docstring = ast.get_docstring(tree) or ""
        self.imports: dict[str, External | Internal] = {}
        self.definitions: list[Definition] = []
        self._conditional: dict[str, int] = {}
        for node in tree.body:
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                self._add_import(node)
            elif (names := bound_names(node)) or _is_call(node):
                _refuse_inner_imports(self, node)
                first, text = self.text_of(node)
                self.definitions.append(Definition(self, node, names, text, first))
            else:
                self._conditional |= dict.fromkeys(_names_within(node), node.lineno)
        self.calls = [definition for definition in self.definitions if not definition.names]
        self.by_name = {name: definition for definition in self.definitions for name in definition.names}

    @classmethod
    def at(cls, path: Path) -> Module:
        """The module of a file, read once."""
        if path not in cls._known:
            cls._known[path] = cls(path)
        return cls._known[path]

    @property
    def name(self) -> str:
        """Its path in the package, as a reader looks for it."""
        is_ours = self.path.is_relative_to(PACKAGE)
        return self.path.relative_to(PACKAGE.parent).as_posix() if is_ours else self.path.name

    @property
    def imported_modules(self) -> list[Module]:
        """The modules of the package that it imports from, in its order."""
        return list(dict.fromkeys(one.module for one in self.imports.values() if isinstance(one, Internal)))

    def resolve(self, name: str) -> Definition | External | None:
        """What a name means here, followed through re-exports; `None` for a builtin or a local variable.

        Raises:
            ValueError: for a name that is bound under a condition.
        """
        if name in self.by_name:
            return self.by_name[name]
        if name in self._conditional:
            raise ValueError(
                f"{self.name}, line {self._conditional[name]}: a single file cannot bind `{name}` under a condition. "
                "Import or define it at the top level."
            )
        found = self.imports.get(name)
        return found.module.resolve(found.name) if isinstance(found, Internal) else found

    def _add_import(self, node: ast.Import | ast.ImportFrom) -> None:
        if isinstance(node, ast.Import):
            for alias in node.names:
                bound = alias.asname or alias.name.split(".")[0]
                self.imports[bound] = External(alias.name, None, bound)
            return
        if node.module == "__future__":
            return
        if node.level and (node.module is None or node.names[0].name == "*"):
            raise ValueError(
                f"{self.name}, line {node.lineno}: a single file cannot import a whole module of the package. Import "
                "the names that are used."
            )
        for alias in node.names:
            bound = alias.asname or alias.name
            if node.level:
                self.imports[bound] = Internal(self._imported_from(node), alias.name)
            else:
                self.imports[bound] = External(str(node.module), alias.name, bound)

    def _imported_from(self, node: ast.ImportFrom) -> Module:
        """The module that a relative import names."""
        folder = self.path.parents[node.level - 1].joinpath(*str(node.module).split("."))
        file = folder.with_suffix(".py")
        return Module.at(file if file.is_file() else folder / "__init__.py")

    def text_of(self, node: ast.stmt) -> tuple[int, str]:
        """Number of the first line of a statement, and its text, with decorators and the comment directly above."""
        first = min([node.lineno, *(one.lineno for one in getattr(node, "decorator_list", []))])
        while first > 1 and self.lines[first - 2].lstrip().startswith("#"):
            first -= 1
        return first, "\n".join(self.lines[first - 1 : node.end_lineno])


def _is_call(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)


def _names_within(node: ast.stmt) -> list[str]:
    """What the statements within a block, such as `if TYPE_CHECKING`, bind."""
    names = []
    for inner in ast.walk(node):
        if isinstance(inner, (ast.Import, ast.ImportFrom)):
            names += [alias.asname or alias.name.split(".")[0] for alias in inner.names]
        elif isinstance(inner, ast.stmt):
            names += bound_names(inner)
    return names


def _refuse_inner_imports(module: Module, node: ast.stmt) -> None:
    for inner in ast.walk(node):
        if isinstance(inner, ast.ImportFrom) and inner.level:
            raise ValueError(
                f"{module.name}, line {inner.lineno}: a single file cannot import from the package inside a function. "
                "Move the import to the top of the module."
            )


def bound_names(node: ast.stmt) -> tuple[str, ...]:
    """The names that a statement of a module or a class binds; none for docstrings, calls and `__all__`."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return (node.name,)
    if isinstance(node, ast.Assign):
        names = [inner.id for target in node.targets for inner in ast.walk(target) if isinstance(inner, ast.Name)]
        return tuple(name for name in names if name != "__all__")
    return (node.target.id,) if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) else ()
