"""A pipeline and its base as one class: diffusers wants exactly one pipeline class in a file."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from .source import Definition, bound_names


def merged_class(child: Definition, base: Definition) -> str:
    """The text of a class with its base's body in place of the base.

    Args:
        child: a class with one base.
        base: that base.

    Raises:
        ValueError: if the child extends a method of the base through `super()`, which would then be lost.
    """
    own_nodes, base_nodes = _body(child), _body(base)
    own = {name for node in own_nodes for name in bound_names(node)}
    inherited = [node for node in base_nodes if not own.intersection(bound_names(node))]
    overridden = {name for node in base_nodes for name in bound_names(node)} & own
    for node in own_nodes:
        calls_super = any(isinstance(inner, ast.Name) and inner.id == "super" for inner in ast.walk(node))
        if calls_super and overridden.intersection(bound_names(node)):
            raise ValueError(
                f"{child.module.name}, line {node.lineno}: this method extends that of `{base.names[0]}`, but a "
                "single file has one class of both. Let the base call a method of a name of its own instead."
            )
    decorators, _, _ = child.text.partition(f"class {child.names[0]}")
    lines = [f"{decorators}class {child.names[0]}({', '.join(bases_of(base))}):"]
    assert isinstance(child.node, ast.ClassDef)
    lines += [child.module.text_of(child.node.body[0])[1], ""]
    lines += _spaced([*((base, node) for node in inherited), *((child, node) for node in own_nodes)])
    return "\n".join(lines)


def bases_of(definition: Definition) -> list[str]:
    """The bases of a class, as they are written."""
    assert isinstance(definition.node, ast.ClassDef)
    return [ast.unparse(base) for base in definition.node.bases]


def _body(definition: Definition) -> list[ast.stmt]:
    """The statements of a class without its docstring."""
    assert isinstance(definition.node, ast.ClassDef)
    return definition.node.body[1:]


def _spaced(members: list[tuple[Definition, ast.stmt]]) -> Iterator[str]:
    """Texts of statements, with a line left empty around functions."""
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    previous: ast.stmt | None = None
    for source, node in members:
        if previous is not None and (isinstance(previous, functions) or isinstance(node, functions)):
            yield ""
        yield source.module.text_of(node)[1]
        previous = node
