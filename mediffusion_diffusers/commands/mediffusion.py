"""The command `mediffusion`: everything that this package does, from the command line.

`python -m mediffusion_diffusers` is the same, and `accelerate launch -m mediffusion_diffusers train joint ...` runs a
command in several processes.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Annotated

import typer

from ..notices import CARD_NOTICE
from ..option_parser import call, new_app
from ..version import __version__
from . import (
    audit,
    calibrate_guidance,
    calibrate_probabilities,
    classify_images,
    doctor,
    evaluate_classification,
    evaluate_counterfactuals,
    evaluate_generation,
    explain_dataset,
    explain_images,
    generate_images,
    prepare_dataset,
    publish,
    reader_study,
    reproduce,
    run_demo,
    serve_app,
    train,
)
from .boundary import run_command
from .command import Command, group_of


NAME = "mediffusion"

# By name: a command, or what a group is for and its commands.
COMMANDS: Mapping[str, Command | tuple[str, Mapping[str, Command]]] = {
    "explain": explain_images.COMMAND,
    "classify": classify_images.COMMAND,
    "generate": generate_images.COMMAND,
    "prepare": (prepare_dataset.HELP, prepare_dataset.COMMANDS),
    "train": ("Train the autoencoder, the joint model, or the outside classifier that judges.", train.COMMANDS),
    "calibrate": calibrate_guidance.COMMAND,
    "calibrate-probabilities": calibrate_probabilities.COMMAND,
    "evaluate": (
        "Measure a checkpoint on held-out images.",
        {
            "classification": evaluate_classification.COMMAND,
            "counterfactuals": evaluate_counterfactuals.COMMAND,
            "generation": evaluate_generation.COMMAND,
        },
    ),
    "reproduce": reproduce.COMMAND,
    "audit": audit.COMMAND,
    "explain-dataset": explain_dataset.COMMAND,
    "reader-study": (reader_study.HELP, reader_study.COMMANDS),
    "publish": publish.COMMAND,
    "app": serve_app.COMMAND,
    "demo": run_demo.COMMAND,
    "doctor": doctor.COMMAND,
}


def build() -> typer.Typer:
    """The application, with completion for bash, zsh, fish and PowerShell."""
    app = new_app(
        name=NAME,
        help=f"Classify, generate and explain medical images with one diffusion model.\n\n{CARD_NOTICE}",
        no_args_is_help=True,
    )

    @app.callback()
    def common(
        version: Annotated[
            bool, typer.Option("--version", help="Print the version.", callback=_say_version, is_eager=True)
        ] = False,
    ) -> None:
        """What every command has."""

    for name, command in COMMANDS.items():
        if isinstance(command, Command):
            command.add_to(app, name)
        else:
            app.add_typer(group_of(command[1], command[0]), name=name, short_help=command[0])
    return app


def _say_version(is_asked: bool) -> None:
    if is_asked:
        print(__version__)
        raise typer.Exit


def main(*words: str) -> None:
    """Run the command that the process's command line names, and end the process.

    Args:
        words: before the command line, for a script that is one command.

    Raises:
        SystemExit: always.
    """
    argv = [*words, *sys.argv[1:]]
    name = " ".join((NAME, *_command_words(argv)))
    run_command(lambda: call(typer.main.get_command(build()), argv, NAME, underscores=bool(words)), name)


def _command_words(argv: Sequence[str]) -> list[str]:
    """The words at the beginning of a command line that name the command."""
    found = COMMANDS.get(argv[0]) if argv else None
    is_in_group = isinstance(found, tuple) and len(argv) > 1 and argv[1] in found[1]
    return list(argv[: 0 if found is None else 2 if is_in_group else 1])
