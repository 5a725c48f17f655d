"""The README is run: its Python blocks on a tiny checkpoint, its command lines by the parsers of the commands."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.components import tiny_components

from mediffusion_diffusers import MediffusionCounterfactualPipeline
from mediffusion_diffusers.commands.mediffusion import COMMANDS


ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON_BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.S)
COMMAND_LINES = re.findall(
    r"^\s*(?:accelerate launch )?((?:training/\w+\.py|mediffusion) (?:[^\n\\]|\\\n)*)",
    "\n".join(re.findall(r"```bash\n(.*?)```", README, flags=re.S)),
    flags=re.M,
)


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder with a checkpoint where the README says `org/mediffusion-cxr`, and with its pictures."""
    MediffusionCounterfactualPipeline(**tiny_components()).save_pretrained(tmp_path / "org/mediffusion-cxr")
    for name in ("chest.png", "a.png", "b.png"):
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 24), dtype=np.uint8)).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    return tmp_path


@pytest.mark.parametrize("block", PYTHON_BLOCKS, ids=range(len(PYTHON_BLOCKS)))
def test_python_block_runs(block, workplace):
    names = {}
    exec(compile(block, "README.md", "exec"), names)
    assert names["output"] is not None


def test_first_block_writes_the_picture_it_names(workplace):
    exec(compile(PYTHON_BLOCKS[0], "README.md", "exec"), {})
    assert Image.open(workplace / "without_cardiomegaly.png").size == (16, 16)


@pytest.mark.parametrize("line", COMMAND_LINES)
def test_command_lines_are_understood(line):
    program, *words = shlex.split(line.replace("\\\n", " "), comments=True)
    if program != "mediffusion":
        script = (ROOT / program).read_text(encoding="utf-8")
        words = [*re.findall(r'"([\w-]+)"', re.search(r"^    main\((.*)\)", script, flags=re.M)[1]), *words]
    command = COMMANDS[words.pop(0)]
    if isinstance(command, tuple):
        command = command[1][words.pop(0)]
    command.parser.parse(words)


def test_readme_shows_the_commands_of_every_step():
    shown = "\n".join(COMMAND_LINES)
    for step in ("explain ", "prepare ", "train_autoencoder", "train_joint", "calibrate", "explain_dataset"):
        assert step in shown, step
    assert len(PYTHON_BLOCKS) >= 3
