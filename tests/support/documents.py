"""Runs what documents show: Python blocks as they stand, command lines in this process and at a tiny size."""

import re
import shlex
import sys
from configparser import ConfigParser
from pathlib import Path

from accelerate.state import AcceleratorState, GradientState

from mediffusion_diffusers.commands.mediffusion import COMMANDS, main
from support.studies import QUICK_LINE
from support.training import TINY_AUTOENCODER, TINY_JOINT


ROOT = Path(__file__).parents[2]
# What follows a command of a document, so that it takes a second: the last word on an option counts.
TINY = {
    "prepare phantom": ("--image_size", "16", "--num_train", "24", "--num_validation", "12", "--num_test", "8"),
    "train joint": TINY_JOINT,
    "train autoencoder": TINY_AUTOENCODER,
    "calibrate": ("--strengths", "0.2", "--masks", "everywhere", "--max_trials", "2", "--num_images_per_label", "1"),
    "evaluate classification": ("--num_resamples", "20"),
    "evaluate counterfactuals": QUICK_LINE,
    "explain": ("--num_images", "1", "--num_inference_steps", "2"),
    "reader-study make": ("--num_cases", "1", "--methods", "ours", "null_edit", "--num_inference_steps", "2"),
    "explain-dataset": ("--quality", "fast", "--num_inference_steps", "2"),
}
# Commands that are only parsed: they serve a page until they are stopped, or look at this machine.
PARSED = ("app", "doctor")
# Programs that a document may name and no test starts.
OTHERS = ("hf", "make", "pip")


def blocks(text, *languages):
    """The code blocks of a document, in order: `(language, first line, code)`."""
    for found in re.finditer(r"^( *)```(\w+)\n(.*?)^\1```", text, flags=re.S | re.M):
        if found[2] in languages:
            yield found[2], text[: found.start(3)].count("\n"), found[3]


def command_lines(code):
    """The lines of a shell block as lists of words, without comments."""
    lines = (shlex.split(line, comments=True) for line in code.replace("\\\n", " ").splitlines())
    return [line for line in lines if line]


def words_of(line):
    """What follows `mediffusion` in a command line, however it starts it; `None` for another program.

    Raises:
        AssertionError: for a program that no document should name.
    """
    program, *words = line
    if program in OTHERS:
        return None
    if program == "accelerate":
        assert words.pop(0) == "launch"
        first = next(index for index, word in enumerate(words) if word == "-m" or word.endswith(".py"))
        program, *words = words[first:]
        if program == "-m":
            assert words.pop(0) == "mediffusion_diffusers"
            return words
    elif program in ("python", "python3"):
        program, *words = words
    if program.endswith(".py"):
        script = (ROOT / program).read_text(encoding="utf-8")
        return [*re.findall(r'"([\w-]+)"', re.search(r"^    main\((.*)\)", script, flags=re.M)[1]), *words]
    assert program == "mediffusion", program
    return words


def command_of(words):
    """A command, its name, and the words that are for it."""
    name, *words = words
    command = COMMANDS[name]
    if isinstance(command, tuple):
        second, *words = words
        name, command = f"{name} {second}", command[1][second]
    return command, name, words


def check_other_program(line):
    """That a target of the Makefile or an extra of the package exists."""
    if line[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M)
        assert line[1] in targets, line
    elif line[0] == "pip":
        metadata = ConfigParser(interpolation=None)
        metadata.read(ROOT / "setup.cfg")
        named = re.findall(r"\[([\w,]+)\]", " ".join(line))
        assert set(",".join(named).split(",")) <= {"", *metadata["options.extras_require"]}, line


def run_command_line(line, monkeypatch):
    """Run a command line of a document at a tiny size, in this process."""
    words = words_of(line)
    if words is None:
        return check_other_program(line)
    command, name, options = command_of(words)
    if name in PARSED:
        return command.parser.parse(options)
    tiny = () if "--no_counterfactuals" in words else TINY.get(name, ())
    monkeypatch.setattr(sys, "argv", ["mediffusion", *words, *tiny])
    try:
        main()
    except SystemExit as ended:
        assert not ended.code, f"{shlex.join(line)} ended with {ended.code}"
    finally:  # accelerate keeps its state between runs of one process
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()


def run_document(path, monkeypatch, runs=lambda line: True):
    """Run all blocks of a document in their order, in the current folder.

    Args:
        path: of the document.
        monkeypatch: of pytest.
        runs: whether a command line is run; all of them by default.

    Returns:
        The names that its Python blocks have left.
    """
    names = {}
    for language, first_line, code in blocks(path.read_text(encoding="utf-8"), "python", "bash"):
        if language == "bash":
            for line in command_lines(code):
                if runs(line):
                    run_command_line(line, monkeypatch)
        else:  # preceded by empty lines, so that a traceback names the document's line
            exec(compile("\n" * first_line + code, str(path), "exec"), names)
    return names
