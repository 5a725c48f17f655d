"""A command line derived from dataclasses of options: typer's parameters, and instances of what was given."""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from .options import plain_types, range_in


# Typer's own base of what is wrong with a command line, which it does not name.
_TyperUsageError: Any = typer.BadParameter.__bases__[0]
_REFERENCE = re.compile(r"\[`~?(?:\w+\.)*(\w+)`\]")  # a docstring's cross-reference
_DASH_IN_FLAG = re.compile(r"(?<=[a-z0-9])-(?=[a-z0-9])")
_WIDTH = 120
_GROUPS = {"argument": "Arguments", "option": "Options"}


class UsageError(ValueError):
    """A command line that cannot be understood."""


class OptionParser:
    """Parameters of a command, each declared once as a field of a dataclass (see `options`).

    A field `guidance_scale` is `--guidance-scale` and, as diffusers spells it, `--guidance_scale`. A list takes all
    values up to the next option (`--strengths 0.2 0.3`). A switch is undone by `--no-name` or `--name false`, whatever
    its default, so that a command line can overrule a preset. A field with `positional` in its metadata is an
    argument.

    Args:
        option_classes: dataclasses as in `options`; `_argument_group_name` names their panel in `--help`.
        description: for `--help`.
        defaults: option values by name, instead of those of the dataclasses.
        presets: option values by preset name, defaults for what the command line leaves out; they belong to an option
            `preset`.
    """

    def __init__(
        self,
        *option_classes: type,
        description: str = "",
        defaults: Mapping[str, Any] | None = None,
        presets: Mapping[str, Mapping[str, Any]] | None = None,
    ):
        self.option_classes = option_classes
        self.description = description
        self.defaults = dict(defaults or {})
        self.presets = presets or {}
        self.parameters = [
            _Parameter(
                entry,
                option_class,
                hints[entry.name],
                self.defaults.get(entry.name, _default_of(entry)),
                sorted(self.presets) if entry.name == "preset" else [],
            )
            for option_class, hints in _with_hints(option_classes)
            for entry in dataclasses.fields(option_class)
            if entry.init
        ]

    def parse(self, argv: Sequence[str] | None = None) -> tuple[Any, ...]:
        """Parse a command line into one instance per class.

        Args:
            argv: the command line without the program; `None` is that of the process.

        Raises:
            UsageError: for a command line that cannot be understood.
            ValueError: for an unknown preset, or a value outside its range.
            SystemExit: after `--help`.
        """
        app = new_app(add_completion=False)
        self.add_to(app, "command", lambda *options: options)
        result = call(typer.main.get_command(app), argv)
        if not isinstance(result, tuple):
            raise SystemExit(result)
        return result

    def add_to(self, app: typer.Typer, name: str, run: Callable[..., Any]) -> None:
        """Make it a command of a typer application.

        Args:
            app: the application.
            name: of the command.
            run: called with one instance per class; what it returns is what the application's command returns.
        """

        def callback(**given: Any) -> Any:
            return run(*self.collect(given))

        signature = inspect.Signature([parameter.for_typer() for parameter in self.parameters])
        callback.__signature__ = signature  # type: ignore[attr-defined]
        callback.__annotations__ = {key: each.annotation for key, each in signature.parameters.items()}
        rules = {"rules": {flag: parameter for parameter in self.parameters for flag in parameter.flags}}
        command_class = type("OptionCommand", (_OptionCommand,), rules)
        short_help = self.description.split("\n\n")[0]  # whole, where typer would cut it
        app.command(name, help=self.description, short_help=short_help, cls=command_class)(callback)

    def collect(self, given: Mapping[str, Any]) -> tuple[Any, ...]:
        """One instance per class of what the command line gives, else the preset, else the defaults.

        Args:
            given: values by option; `None` or an empty list is not given.

        Raises:
            ValueError: for an unknown preset, or a preset that names an unknown option.
        """
        given = {name: value for name, value in given.items() if value is not None and value != []}
        values = {**self.defaults, **self._preset(given.get("preset")), **given}
        return tuple(
            option_class(**{entry.name: values[entry.name] for entry in _arguments(option_class, values)})
            for option_class in self.option_classes
        )

    def _preset(self, name: str | None) -> Mapping[str, Any]:
        if name is None:
            return {}
        if name not in self.presets:
            raise ValueError(f"`preset` must be one of {sorted(self.presets)}, but got {name!r}.")
        unknown = self.presets[name].keys() - {parameter.name for parameter in self.parameters}
        if unknown:
            raise ValueError(f"Preset {name!r} sets options that do not exist: {sorted(unknown)}.")
        return self.presets[name]


def new_app(**kwargs: Any) -> typer.Typer:
    """An application of typer whose `--help` is plain text, in full names; arguments as of `typer.Typer`."""
    return typer.Typer(rich_markup_mode=None, context_settings={"max_content_width": _WIDTH}, **kwargs)


def call(command: Any, argv: Sequence[str] | None, name: str | None = None, underscores: bool = False) -> Any:
    """Run a command of typer; what it returns, or the exit code of `--help`.

    Args:
        command: as `typer.main.get_command` makes it.
        argv: the command line without the program; `None` is that of the process.
        name: of the program, for `--help` and completion.
        underscores: spell options in `--help` as diffusers' scripts do: `--guidance_scale`.

    Raises:
        UsageError: for a command line that cannot be understood.
    """
    try:
        spelling = _Spelling(underscores)
        arguments = None if argv is None else list(argv)
        return command.main(args=arguments, prog_name=name, standalone_mode=False, obj=spelling)
    except _TyperUsageError as error:
        message: str = error.format_message()
        raise UsageError(" ".join(message.replace("Value error, ", "").split())) from None


@dataclasses.dataclass(frozen=True)
class _Spelling:
    """How `--help` spells options of several words."""

    underscores: bool

    def of(self, flags: str) -> str:
        """Flags with what they take, as `--help` shows them."""
        return _DASH_IN_FLAG.sub("_", flags) if self.underscores else flags


class _Parameter:
    """A field as a parameter of typer.

    Args:
        entry: the field.
        option_class: its dataclass.
        hint: its type.
        default: what holds where it is not given, `dataclasses.MISSING` if it must be.
        offered: values that completion offers.
    """

    def __init__(
        self, entry: dataclasses.Field, option_class: type, hint: Any, default: Any, offered: Sequence[str] = ()
    ):
        self.offered = offered
        self.name, self.metadata, self.default = entry.name, entry.metadata, default
        self.flag = f"--{entry.name.replace('_', '-')}"
        self.flags = (self.flag, *self.metadata.get("aliases", ()))
        self.type = next(member for member in plain_types(hint) if member is not type(None))
        self.is_list = typing.get_origin(self.type) is list
        self.is_switch = self.type is bool
        self.is_positional = bool(self.metadata.get("positional"))
        self.value_if_bare: str | None = self.metadata.get("const")
        self.panel: str | None = getattr(option_class, "_argument_group_name", None)
        allowed = range_in(hint)
        text = self.metadata.get("help", "") + ("" if allowed is None else f" A number {allowed}.")
        if default not in (None, [], dataclasses.MISSING):
            text += f" (default: {_shown(default)})"
        self.help = _REFERENCE.sub(r"`\1`", text)

    def for_typer(self) -> inspect.Parameter:
        """As a parameter of a function that typer reads."""
        is_required = self.default is dataclasses.MISSING
        info: Any
        if self.is_positional:
            info = typer.Argument(help=self.help, metavar=self.metadata.get("metavar"), show_default=False)
        else:
            spelling = f"{self.flag}/--no-{self.flag[2:]}" if self.is_switch else self.flag
            metavar = self.metadata.get("metavar")
            info = typer.Option(
                *(spelling, *self.flags[1:]),
                help=self.help,
                metavar=" ".join(metavar) if isinstance(metavar, tuple) else metavar,
                show_default=False,
                rich_help_panel=self.panel,
                autocompletion=self._complete if self.offered else None,
            )
        return inspect.Parameter(
            self.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if is_required else None,
            annotation=Annotated[self.type if is_required else self.type | None, info],
        )

    def _complete(self, incomplete: str) -> list[str]:
        return [value for value in self.offered if value.startswith(incomplete)]


class _OptionCommand(TyperCommand):
    """A command whose options are also spelled with underscores, and whose lists take several values at a time."""

    rules: Mapping[str, _Parameter] = {}

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, list(_one_value_each(args, self.rules)))

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Options by group, in the order in which they are declared."""
        groups: dict[str, list[tuple[str, str]]] = {}
        spelling = ctx.find_root().obj or _Spelling(False)
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                group = getattr(parameter, "rich_help_panel", None) or _GROUPS[parameter.param_type_name]
                flags, text = record
                groups.setdefault(group, []).append((spelling.of(flags), text))
        for title, records in groups.items():
            with formatter.section(title):
                formatter.write_dl(records)


def _one_value_each(args: Sequence[str], rules: Mapping[str, _Parameter]) -> Iterator[str]:
    """A command line as typer reads it: `--a_b 1 2` becomes `--a-b 1 --a-b 2`, and `--flip false` `--no-flip`.

    What has no flag of its own may be named too: `--images a.png b.png` is `a.png b.png`.
    """
    rest = list(args)
    while rest:
        word = rest.pop(0)
        if word == "--":
            yield from (word, *rest)
            return
        if not word.startswith("--"):
            yield word
            continue
        name, equals, value = word.partition("=")
        name = name.replace("_", "-")
        rule = rules.get(name)
        if rule is not None and rule.is_switch:
            if not equals and rest and rest[0].lower() in ("true", "false"):
                value = rest.pop(0)
            yield f"--no-{name[2:]}" if value.lower() == "false" else name
        elif rule is not None and rule.is_positional:
            yield from [value] if equals else []
            while rest and not equals and not _is_option(rest[0]):
                yield rest.pop(0)
        elif equals:
            yield f"{name}={value}"
        elif rule is not None and rule.is_list:
            first = rest.pop(0) if rest else None
            yield from (name,) if first is None else (name, first)
            while rest and not _is_option(rest[0]):
                yield from (name, rest.pop(0))
        elif rule is not None and rule.value_if_bare is not None and (not rest or _is_option(rest[0])):
            yield from (name, rule.value_if_bare)
        else:
            yield name
            if rule is not None and rest:
                yield rest.pop(0)  # its value, whatever it looks like


def _is_option(word: str) -> bool:
    return word.startswith("-") and not word[1:2].isdigit() and word not in ("-", "-.")


def _with_hints(option_classes: Sequence[type]) -> Iterator[tuple[type, Mapping[str, Any]]]:
    """Each dataclass with the types of its fields."""
    for option_class in option_classes:
        yield option_class, typing.get_type_hints(option_class, include_extras=True)


def _default_of(entry: dataclasses.Field) -> Any:
    return entry.default if entry.default_factory is dataclasses.MISSING else entry.default_factory()


def _arguments(option_class: type, values: Mapping[str, Any]) -> list[dataclasses.Field]:
    return [entry for entry in dataclasses.fields(option_class) if entry.init and entry.name in values]


def _shown(default: Any) -> str:
    return " ".join(map(str, default)) if isinstance(default, (list, tuple)) else str(default)
