import runpy
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState, GradientState
from support.components import tiny_pipeline

from mediffusion_diffusers import MediffusionCounterfactualPipeline


SCRIPTS = Path(__file__).parents[2] / "training"


@dataclass
class Completed:
    """How a script ended, and all that it said."""

    exit_code: int
    said: str


@pytest.fixture
def run_script(monkeypatch, capsys, caplog):
    """Run a script of `training/` in this process, as from a command line."""

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        caplog.clear()
        code = 0
        try:
            runpy.run_path(str(SCRIPTS / name), run_name="__main__")
        except SystemExit as ended:
            code = ended.code or 0
        finally:  # accelerate keeps its state between runs of one process
            AcceleratorState._reset_state(reset_partial_state=True)
            GradientState._reset_state()
        out, err = capsys.readouterr()
        said = out + err + caplog.text + (code if isinstance(code, str) else "")
        return Completed(code if isinstance(code, int) else 1, said)

    return run


@pytest.fixture
def _short_waits(monkeypatch):
    """Retries wait for a moment, as often as otherwise."""
    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: sleep(min(seconds, 0.01)))


@pytest.fixture(scope="session")
def pipeline():
    defaults = {"strength": 0.2, "guidance_scale": 5.0, "num_inference_steps": 2}
    return tiny_pipeline(MediffusionCounterfactualPipeline, guidance_defaults=defaults)


@pytest.fixture
def pipeline_folder(pipeline, tmp_path):
    """A saved pipeline with a card of its own, and around it what a training run leaves behind."""
    folder = tmp_path / "run"
    pipeline.save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\ntags: [mediffusion]\n---\n\n# Our own card\n")
    for left_behind in (
        "checkpoint-10/unet.safetensors",
        ".checkpoint-20.partial/unet.safetensors",
        "unet/optimizer.bin",
        "logs/events.out.tfevents.1",
        "training_config.json",
        ".env",
        "token",
    ):
        path = folder / left_behind
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("not for the public")
    return folder
