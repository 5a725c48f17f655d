"""The README and the pages are run: Python blocks, and the command lines that take a moment; the others are parsed."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.components import tiny_components
from support.documents import blocks, check_other_program, command_lines, command_of, run_document, words_of

from mediffusion_diffusers import MediffusionCounterfactualPipeline


ROOT = Path(__file__).parents[2]
PAGES = (
    "README.md",
    "docs/index.md",
    "docs/explaining.md",
    "docs/workflow.md",
    "docs/measured.md",
    "training/README.md",
)


def text_of(page):
    return (ROOT / page).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A tiny one for `org/mediffusion-cxr`."""
    folder = tmp_path_factory.mktemp("checkpoint")
    MediffusionCounterfactualPipeline(**tiny_components()).save_pretrained(folder)
    return folder


@pytest.fixture
def workplace(tmp_path, monkeypatch, checkpoint):
    """A folder where the checkpoint and the pictures lie that the pages name."""
    (tmp_path / "org").mkdir()
    (tmp_path / "scans").mkdir()
    (tmp_path / "org/mediffusion-cxr").symlink_to(checkpoint)
    for name in ("chest.png", "a.png", "b.png", "scans/1.png"):
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 24), dtype=np.uint8)).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    return tmp_path


def test_the_readme_runs_as_it_stands(workplace, monkeypatch):
    names = run_document(ROOT / "README.md", monkeypatch, runs=lambda line: "scans/" not in line)
    output = names["output"]
    column = output.label_names.index("Cardiomegaly")
    assert output.reached[0] and output.probabilities_after[0, column] <= 0.2 < output.probabilities_before[0, column]
    written = {"without_cardiomegaly.png", "generated.png", "explanation.html", "explained"}
    assert written <= {path.name for path in workplace.iterdir()}


@pytest.mark.parametrize(
    ("page", "number"),
    [(page, number) for page in PAGES[1:] for number in range(len(list(blocks(text_of(page), "python"))))],
)
def test_python_block_runs(page, number, workplace):
    _, _, code = list(blocks(text_of(page), "python"))[number]
    names = {}
    exec(compile(code, page, "exec"), names)
    assert names.keys() & {"output", "metric"}


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(line, id=" ".join(line[:4]))
        for page in PAGES
        for _, _, code in blocks(text_of(page), "bash")
        for line in command_lines(code)
        if "..." not in line and "=" not in line[0]
    ],
)
def test_command_lines_are_understood(line):
    words = words_of(line)
    if words is None:
        check_other_program(line)
    else:
        command, _, options = command_of(words)
        command.parser.parse(options)


def test_the_workflow_shows_every_step():
    for step in ("prepare ", "train_autoencoder", "train_joint", "calibrate", "evaluate ", "explain_dataset"):
        assert step in text_of("docs/workflow.md"), step


def test_the_readme_fits_on_two_screens():
    prose = re.sub(r"```.*?```", "", text_of("README.md"), flags=re.S)
    assert len(text_of("README.md").splitlines()) <= 125 and len(prose.split()) <= 800
