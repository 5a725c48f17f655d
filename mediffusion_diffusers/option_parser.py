"""A command line derived from dataclasses of options."""

from __future__ import annotations

import argparse
import dataclasses
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import HfArgumentParser

from .options import range_of


class OptionParser(HfArgumentParser):
    """`transformers.HfArgumentParser` that shows ranges in `--help`, and lets every switch be negated.

    A switch `--name` is undone by `--no-name`, `--no_name` or `--name false`, whatever its default, so that a command
    line can overrule a preset.

    Args:
        option_classes: dataclasses as in `options`; `_argument_group_name` names their group in `--help`.
        kwargs: as for `argparse.ArgumentParser`.
    """

    def __init__(self, *option_classes: type, **kwargs: Any):
        kwargs.setdefault("formatter_class", _HelpFormatter)
        # Whole names only: a new option must not make an abbreviation in somebody's script ambiguous.
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(list(option_classes), **kwargs)  # type: ignore[arg-type]
        for option_class in option_classes:
            self._show_ranges(option_class)
            self._add_negations(option_class)

    def parse(
        self, argv: Sequence[str] | None = None, presets: Mapping[str, Mapping[str, Any]] | None = None
    ) -> tuple[Any, ...]:
        """Parse a command line into one instance per class.

        Args:
            argv: the command line without the program; `None` is that of the process.
            presets: option values by preset name, defaults for what the command line leaves out; they belong to an
                option `preset`.

        Raises:
            ValueError: for an unknown preset, or a preset that names an unknown option.
            SystemExit: of argparse, for a command line that cannot be parsed, and after `--help`.
        """
        if presets is not None:
            self._use_preset(argv, presets)
        return self.parse_args_into_dataclasses(argv, look_for_args_file=False)

    def _use_preset(self, argv: Sequence[str] | None, presets: Mapping[str, Mapping[str, Any]]) -> None:
        only_preset = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        only_preset.add_argument("--preset")
        name = only_preset.parse_known_args(argv)[0].preset
        if name is None:
            return
        if name not in presets:
            raise ValueError(f"`preset` must be one of {sorted(presets)}, but got {name!r}.")
        unknown = presets[name].keys() - {action.dest for action in self._actions}
        if unknown:
            raise ValueError(f"Preset {name!r} sets options that do not exist: {sorted(unknown)}.")
        self.set_defaults(**presets[name])

    def _show_ranges(self, option_class: type) -> None:
        names = {field.name for field in dataclasses.fields(option_class)}
        for action in self._actions:
            if action.dest in names and action.help is not None:
                allowed = range_of(option_class, action.dest)
                text = "" if allowed is None else f" A number {allowed}."
                action.help = action.help.replace("%", "%%") + text

    def _add_negations(self, option_class: type) -> None:
        known = self._option_string_actions
        hints = typing.get_type_hints(option_class)
        for field in dataclasses.fields(option_class):
            if hints[field.name] not in (bool, bool | None):
                continue
            known[f"--{field.name}"].nargs, known[f"--{field.name}"].const = "?", True
            name = field.name
            spellings = {f"--no-{name}", f"--no_{name}", f"--no-{name.replace('_', '-')}"} - known.keys()
            if spellings:  # without any, argparse would take it for a positional argument, which is always there
                default = known[f"--{name}"].default
                self.add_argument(
                    *sorted(spellings), dest=name, action="store_false", default=default, help=argparse.SUPPRESS
                )


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Defaults where there are some."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, [], argparse.SUPPRESS) else super()._get_help_string(action)
