"""A command: its options, declared in dataclasses, and what it does with them.

What computes is imported by `run` and not by the module, so that `--help` and completion of all commands are there at
once: torch and diffusers take seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import typer

from ..option_parser import OptionParser, call, new_app
from ..options import option


@dataclass(frozen=True)
class Command:
    """One command of `mediffusion`.

    Args:
        parser: of its command line.
        run: does the work, given one instance per dataclass of the parser; what it returns is the exit code, `None`
            is 0.
    """

    parser: OptionParser
    run: Callable[..., int | None]

    def main(self, argv: Sequence[str] | None = None) -> int | None:
        """Parse a command line and run.

        Args:
            argv: the command line without the program; `None` is that of the process.
        """
        return self.run(*self.parser.parse(argv))

    def add_to(self, app: typer.Typer, name: str) -> None:
        """Make it a command of an application, under a name."""
        self.parser.add_to(app, name, self.run)


@dataclass(frozen=True)
class ResultOptions:
    """How the result is told."""

    _argument_group_name = "result"

    json: bool = option(False, "Print the result as JSON, and nothing else, to the standard output.")


def first_paragraph(doc: str | None) -> str:
    """Of a module's docstring, for `--help`."""
    return (doc or "").split("\n\n")[0]


def group_of(commands: Mapping[str, Command], help: str) -> typer.Typer:
    """An application of several commands.

    Args:
        commands: by name.
        help: one paragraph.
    """
    app = new_app(help=help, no_args_is_help=True, add_completion=False)
    for name, command in commands.items():
        command.add_to(app, name)
    return app


def run_group(commands: Mapping[str, Command], argv: Sequence[str] | None, help: str) -> int | None:
    """Run the command that a command line begins with.

    Args:
        commands: by name.
        argv: the command line without the program; `None` is that of the process.
        help: one paragraph.

    Raises:
        UsageError: for a command line that cannot be understood.
    """
    return call(typer.main.get_command(group_of(commands, help)), argv)
