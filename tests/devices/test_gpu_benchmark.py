"""`benchmarks/gpu.sh` finds its way to the end, at the smallest size."""

import json
import subprocess
from pathlib import Path

import torch


ROOT = Path(__file__).parents[2]


def test_every_figure_is_there(tmp_path):
    line = [ROOT / "benchmarks" / "gpu.sh", "--tiny", "--parts", "steps", "explaining", "preset"]
    output = tmp_path / "gpu.json"
    subprocess.run([*line, "--output", output], check=True, stdout=subprocess.DEVNULL)
    report = json.loads(output.read_text())
    assert report["failed"] == {} and report["machine"]["torch"] == torch.__version__
    assert all(figure["seconds"] > 0 for figure in report["steps"]["steps"].values())
    assert report["steps"]["ratios"]["authors / guided, float32, contiguous, batch 1"] > 0
    assert report["explaining"]["images_per_second"] > 0 and report["explaining"]["num_failed"] == 0
    assert "dataset_dir" in report["preset"]["skipped"]
