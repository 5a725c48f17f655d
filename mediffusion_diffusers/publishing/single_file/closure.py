"""Which definitions a class needs, and how they fit into one namespace."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from .source import Definition, External, Module


@dataclass(frozen=True)
class StandIn:
    """A class that comes from another file, known here by its parent: for annotations and tables of types.

    Args:
        name: of the class.
        parent: its first base, of another library.
    """

    name: str
    parent: External

    @classmethod
    def of(cls, definition: Definition) -> StandIn:
        """The stand-in of a class whose first base comes from another library."""
        assert isinstance(definition.node, ast.ClassDef)
        base = definition.node.bases[0]
        parent = definition.module.resolve(base.id) if isinstance(base, ast.Name) else None
        if not isinstance(parent, External):
            raise ValueError(f"{definition.module.name}: the first base of `{definition.names[0]}` must be external.")
        return cls(definition.names[0], parent)


@dataclass(frozen=True)
class Closure:
    """All that a single file holds.

    Args:
        definitions: in an order in which they can be executed.
        externals: what is imported from other libraries.
        stand_ins: classes of other files.
    """

    definitions: list[Definition]
    externals: list[External]
    stand_ins: list[StandIn]

    @classmethod
    def of(cls, roots: Iterable[Definition], elsewhere: Collection[Definition] = ()) -> Closure:
        """All that some definitions need.

        Args:
            roots: what the file is for.
            elsewhere: classes that are not copied but stand in another file.

        Raises:
            ValueError: where the file would ask what class of another file something is, or if two imports take one
                name.
        """
        roots = list(roots)
        needed: dict[Definition, None] = {}
        externals: dict[str, External] = {}
        stand_ins: dict[str, StandIn] = {}

        def take(external: External) -> None:
            if externals.setdefault(external.alias, external) != external:
                raise ValueError(
                    f"A single file has one namespace, but `{external.alias}` is both {externals[external.alias]} and "
                    f"{external}. Import one of them by another name."
                )

        waiting = list(roots)
        while waiting:
            definition = waiting.pop()
            if definition in needed:
                continue
            needed[definition] = None
            waiting += definition.module.calls
            for name in definition.used_names:
                found = definition.module.resolve(name)
                if isinstance(found, External):
                    take(found)
                elif found is not None and found in elsewhere:
                    _refuse_asking(definition, name)
                    stand_ins[name] = StandIn.of(found)
                    take(stand_ins[name].parent)
                elif found is not None:
                    waiting.append(found)
        ordered = [
            definition
            for module in _in_order_of_imports([root.module for root in roots])
            for definition in module.definitions
            if definition in needed
        ]
        return cls(
            _without_copies(ordered), list(externals.values()), sorted(stand_ins.values(), key=lambda one: one.name)
        )

    def new_names(self) -> dict[Definition, str]:
        """Other names for private definitions whose names are taken by others.

        Raises:
            ValueError: if public names collide.
        """
        owners: dict[str, Definition] = {}
        renamed: dict[Definition, str] = {}
        taken = {one.alias for one in self.externals} | {one.name for one in self.stand_ins}
        for definition in self.definitions:
            for name in definition.names:
                owner = owners.setdefault(name, definition)
                if name not in taken and owner is definition:
                    continue
                if not name.startswith("_") or len(definition.names) > 1:
                    other = owner.module.name if owner is not definition else "another library"
                    raise ValueError(
                        f"A single file has one namespace, but `{name}` is defined in {definition.module.name} and in "
                        f"{other}. Rename one of them."
                    )
                renamed[definition] = f"{name}_{definition.module.path.stem}"
        return renamed


def _without_copies(definitions: list[Definition]) -> list[Definition]:
    """The definitions without those that say again what another says in the same words, such as each `logger`."""
    kept: dict[object, Definition] = {}
    for definition in definitions:
        meanings = [definition.module.resolve(name) for name in definition.used_names if name not in definition.names]
        kept.setdefault((definition.names, definition.text, *meanings), definition)
    return list(kept.values())


def _refuse_asking(definition: Definition, name: str) -> None:
    """Refuse `isinstance(x, Name)` and `Name.attribute`, where only the parent of the class is known."""
    for node in ast.walk(definition.node):
        if isinstance(node, ast.Attribute):
            asked: list[ast.AST] = [node.value]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "isinstance":
            asked = list(ast.walk(node.args[1]))
        else:
            continue
        if any(isinstance(one, ast.Name) and one.id == name for one in asked):
            raise ValueError(
                f"{definition.module.name}, line {node.lineno}: in a single file `{name}` is known by its parent "
                "alone. Ask what the object has, not what it is."
            )


def _in_order_of_imports(modules: Iterable[Module]) -> Iterator[Module]:
    """The modules and all that they import, each after what it imports."""
    seen: set[Module] = set()

    def visit(module: Module) -> Iterator[Module]:
        if module in seen:
            return
        seen.add(module)
        for imported in module.imported_modules:
            yield from visit(imported)
        yield module

    for module in modules:
        yield from visit(module)
