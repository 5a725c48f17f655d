"""`benchmarks/gpu.sh` finds its way to the end, at the smallest size."""

import json
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch


BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_every_figure_is_there(tmp_path, monkeypatch):
    output = tmp_path / "gpu.json"
    line = ["gpu.py", "--tiny", "--parts", "steps", "explaining", "preset", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", line)
    monkeypatch.syspath_prepend(BENCHMARKS)
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(BENCHMARKS / "gpu.py"), run_name="__main__")
    report = json.loads(output.read_text())
    assert ended.value.code == 0
    assert report["failed"] == {} and report["machine"]["torch"] == torch.__version__
    assert all(figure["seconds"] > 0 for figure in report["steps"]["steps"].values())
    assert report["steps"]["ratios"]["authors / guided, float32, contiguous, batch 1"] > 0
    assert report["explaining"]["images_per_second"] > 0 and report["explaining"]["num_failed"] == 0
    assert "dataset_dir" in report["preset"]["skipped"]


def test_the_script_starts_them_from_the_root(tmp_path):
    """With the interpreter of the environment there, and every argument as it was given."""
    script, python = tmp_path / "benchmarks" / "gpu.sh", tmp_path / ".venv" / "bin" / "python"
    for path in (script, python):
        path.parent.mkdir(parents=True)
    shutil.copy(BENCHMARKS / "gpu.sh", script)
    python.write_text('#!/bin/sh\npwd\nprintf "%s\\n" "$@"\n')
    python.chmod(0o755)
    said = subprocess.run([script, "--output", "a file.json"], capture_output=True, text=True, check=True).stdout
    assert said.splitlines() == [str(tmp_path.resolve()), "benchmarks/gpu.py", "--output", "a file.json"]
