"""The text of a single file: header, sorted imports, definitions, laid out as `ruff format` leaves them."""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from .closure import Closure
from .merge import bases_of, merged_class
from .source import Definition, External


LINE_LENGTH = 119


def file_text(docstring: str, closure: Closure, merged: Mapping[Definition, Definition] | None = None) -> str:
    """Write a closure as a module.

    Args:
        docstring: of the module.
        closure: what it holds.
        merged: classes that take in the body of their only base, by class; the base then is no class of its own.
    """
    bases = dict(merged or {})
    head = [f'"""{docstring}"""', "", "from __future__ import annotations", "", *_import_lines(closure.externals)]
    if closure.stand_ins or bases:
        head += ["", "", "# Classes of other files and bases of the class below are known here by their parents."]
        head += [f"{one.name} = {one.parent.alias}" for one in closure.stand_ins]
        head += [f"{base.names[0]} = {bases_of(base)[0]}" for base in bases.values()]
    body: list[str] = []
    new_names = closure.new_names()
    previous: Definition | None = None
    for definition in closure.definitions:
        if definition in bases.values():
            continue
        if previous is None or definition.module is not previous.module:
            body += ["", "", f"# ---- {definition.module.name}", *[""] * (2 if definition.is_block else 1)]
        else:
            body += [""] * _blank_lines(previous, definition)
        base = bases.get(definition)
        text = definition.text if base is None else merged_class(definition, base)
        body.append(_renamed(text, [definition] if base is None else [base, definition], new_names))
        previous = definition
    return "\n".join([*head, *body]) + "\n"


def _blank_lines(previous: Definition, following: Definition) -> int:
    """As many as there were between neighbours; two around functions and classes."""
    if previous.is_block or following.is_block:
        return 2
    lines = previous.module.lines[previous.first_line + previous.text.count("\n") : following.first_line - 1]
    return min(len(lines), 1) if all(not line.strip() for line in lines) else 1


def _renamed(text: str, origins: Sequence[Definition], new_names: Mapping[Definition, str]) -> str:
    """The text, made of one or two definitions, with new names for what they are given to.

    Raises:
        ValueError: if a private name means one thing in one of them and something else in the other.
    """
    meanings: dict[str, Definition] = {}
    for definition in origins:
        for name in [*definition.names, *definition.used_names]:
            found = definition.module.resolve(name)
            if isinstance(found, Definition) and meanings.setdefault(name, found) is not found:
                raise ValueError(f"`{name}` means two things in {definition.module.name} and in its base. Rename one.")
    wanted = {name: new_names[found] for name, found in meanings.items() if found in new_names}
    if not wanted:
        return text
    definition = origins[-1]
    lines = text.splitlines()
    nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name) and node.id in wanted]
    for node in sorted(nodes, key=lambda one: (one.lineno, one.col_offset), reverse=True):
        line = lines[node.lineno - 1].encode()  # offsets count bytes
        lines[node.lineno - 1] = (
            line[: node.col_offset] + wanted[node.id].encode() + line[node.col_offset + len(node.id.encode()) :]
        ).decode()
    renamed = "\n".join(lines)
    if definition in new_names and definition.is_block:
        name = definition.names[0]
        renamed = renamed.replace(f"def {name}(", f"def {wanted[name]}(", 1)
        renamed = renamed.replace(f"class {name}", f"class {wanted[name]}", 1)
    return renamed


def _import_lines(externals: Iterable[External]) -> Iterator[str]:
    """Imports in the order of isort: the standard library first, modules before names."""
    groups: dict[bool, list[External]] = defaultdict(list)
    for external in externals:
        groups[external.module.split(".")[0] not in sys.stdlib_module_names].append(external)
    for index, is_foreign in enumerate(sorted(groups)):
        yield from [""] if index else []
        modules = sorted({(one.module, one.alias) for one in groups[is_foreign] if one.name is None})
        for module, alias in modules:
            yield f"import {module}" if alias == module.split(".")[0] else f"import {module} as {alias}"
        names: dict[str, set[str]] = defaultdict(set)
        for one in groups[is_foreign]:
            if one.name is not None:
                names[one.module].add(one.name if one.alias == one.name else f"{one.name} as {one.alias}")
        for module in sorted(names, key=lambda name: name.lower()):
            listed = sorted(names[module], key=_isort_key)
            line = f"from {module} import {', '.join(listed)}"
            if len(line) <= LINE_LENGTH:
                yield line
            else:
                yield from [f"from {module} import (", *(f"    {name}," for name in listed), ")"]


def _isort_key(name: str) -> tuple[int, str, str]:
    """Constants, then classes, then the rest."""
    plain = name.split(" ")[0]
    kind = 0 if plain.isupper() and len(plain) > 1 else 1 if plain[:1].isupper() else 2
    return kind, name.lower(), name
