"""Run the notebooks and keep what they show: `python docs/execute_notebooks.py [NOTEBOOK ...]`, all by default.

Their cells are Python, or command lines that begin with "!"; so neither Jupyter nor a kernel is needed to run them.
What is printed, and the value of a cell's last line, become its outputs, pictures as PNG.
"""

from __future__ import annotations

import ast
import base64
import contextlib
import io
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image


NOTEBOOKS = Path(__file__).resolve().parent / "notebooks"


def start_command(line: list[str]) -> None:
    """Run a command line `mediffusion ...` in a process of its own and print what it prints."""
    assert line[0] == "mediffusion", line
    command = [sys.executable, "-m", "mediffusion_diffusers", *line[1:]]
    print(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout, end="")


def execute(notebook: dict[str, Any], run_command: Callable[[list[str]], Any] = start_command) -> dict[str, Any]:
    """Run the cells in their order, in the current folder.

    Args:
        notebook: as in the file.
        run_command: runs a line that begins with "!", given as its words.

    Returns:
        The notebook with fresh outputs.
    """
    names: dict[str, Any] = {"__name__": "__main__"}
    cells, count = [], 0
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            count += 1
            outputs = list(run_cell("".join(cell["source"]), names, run_command, count))
            cell = {**cell, "execution_count": count, "outputs": outputs}
        cells.append(cell)
    return {**notebook, "cells": cells}


def run_cell(
    code: str, names: dict[str, Any], run_command: Callable[[list[str]], Any], count: int
) -> Iterator[dict[str, Any]]:
    """Run one cell and give its outputs in the notebook format."""
    printed, value = io.StringIO(), None
    with contextlib.redirect_stdout(printed):
        if code.startswith("!"):
            for line in code.replace("\\\n", " ").splitlines():
                run_command(shlex.split(line.removeprefix("!")))
        else:
            value = _run_python(code, names, f"cell {count}")
    if printed.getvalue():
        text = printed.getvalue().splitlines(keepends=True)
        yield {"output_type": "stream", "name": "stdout", "text": text}
    if value is not None:
        data = {"text/plain": [repr(value)]}
        if isinstance(value, Image.Image):
            data = {"image/png": _png(value), "text/plain": [f"<a picture of {value.width} x {value.height}>"]}
        yield {"output_type": "execute_result", "execution_count": count, "metadata": {}, "data": data}


def _run_python(code: str, names: dict[str, Any], title: str) -> Any:
    """Run statements; the value of a last one that is an expression, like a notebook."""
    tree = ast.parse(code, title)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, title, "exec"), names)
    return None if last is None else eval(compile(ast.Expression(last.value), title, "eval"), names)


def _png(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode() + "\n"


def main(*paths: str) -> None:
    """Execute notebooks in empty folders, and write them."""
    for path in map(Path, paths or sorted(map(str, NOTEBOOKS.glob("*.ipynb")))):
        here, path = Path.cwd(), path.resolve()
        notebook = json.loads(path.read_text(encoding="utf-8"))
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            try:
                executed = execute(notebook)
            finally:
                os.chdir(here)
        path.write_text(json.dumps(executed, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(path.name)


if __name__ == "__main__":
    main(*sys.argv[1:])
