"""The README is run: its Python blocks on a tiny checkpoint, its commands against the scripts' own parsers."""

import re
import shlex
from importlib import util
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.components import tiny_components

from mediffusion_diffusers import MediffusionCounterfactualPipeline
from mediffusion_diffusers.commands import (
    calibrate_guidance,
    evaluate_classification,
    evaluate_counterfactuals,
    explain_dataset,
    explain_images,
    prepare_dataset,
)
from mediffusion_diffusers.training.autoencoder.config import AutoencoderConfig
from mediffusion_diffusers.training.joint.config import JointConfig


ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON_BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.S)
SCRIPTS = re.findall(
    r"^\s*(?:python|accelerate launch) (training/\w+\.py (?:[^\n\\]|\\\n)*)",
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


STUDIES = {
    command.__name__.rpartition(".")[2]: command
    for command in (
        calibrate_guidance,
        evaluate_classification,
        evaluate_counterfactuals,
        explain_dataset,
        explain_images,
    )
}


@pytest.mark.parametrize("command", SCRIPTS)
def test_command_is_understood_by_its_script(command, capsys, monkeypatch):
    script, *arguments = shlex.split(command.replace("\\\n", " "))
    parsers = {
        "prepare_dataset": lambda: prepare_dataset.parse_args,
        "train_autoencoder": lambda: AutoencoderConfig.parser().parse_args,
        "train_joint": lambda: JointConfig.parser().parse_args,
        **{name: lambda command=command: command.parser().parse for name, command in STUDIES.items()},
    }
    name = Path(script).stem
    if name not in parsers:  # their parsers read the command line themselves
        monkeypatch.setattr("sys.argv", [script, *arguments])
        parsers[name] = lambda: lambda _: _load(ROOT / script).parse_arguments()
    try:
        parsers[name]()(arguments)
    except SystemExit:
        pytest.fail(f"{command!r} is not understood: {capsys.readouterr().err}")


def test_readme_shows_the_commands_of_every_step():
    shown = {Path(command.split()[0]).stem for command in SCRIPTS}
    assert {"prepare_dataset", "train_autoencoder", "train_joint", "calibrate_guidance", "explain_dataset"} <= shown
    assert len(PYTHON_BLOCKS) >= 3


def _load(path):
    spec = util.spec_from_file_location(path.stem, path)
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
