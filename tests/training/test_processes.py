import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from support.training import TINY_JOINT, joint_arguments

from mediffusion_diffusers.training.joint_trainer import train_joint
from mediffusion_diffusers.training.metrics_log import read_metrics


SCRIPT = Path(__file__).parents[2] / "training" / "train_joint.py"
LAUNCH = (
    *("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"),
    *("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"),
)


def test_two_processes_train_as_one(phantoms, tmp_path):
    """Three labelled images are shared by two processes of two parts each, so that one slice is empty."""
    line = (*TINY_JOINT, "--dataset_dir", phantoms, "--classifier_dropout", "0", "--max_train_steps", "3")
    line = (*line, "--classifier_start_step", "1", "--classifier_every", "2", "--logging_steps", "1")
    train_joint(joint_arguments(*line, "--output_dir", tmp_path / "one"))
    two = ("--output_dir", tmp_path / "two", "--gradient_accumulation_steps", "2")
    result = subprocess.run(
        [sys.executable, *LAUNCH, str(SCRIPT), *map(str, (*line, *two))],
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert json.loads((tmp_path / "two" / "training_config.json").read_text())["num_processes"] == 2

    weights, others = (load_file(tmp_path / each / "checkpoint-3" / "unet.safetensors") for each in ("one", "two"))
    assert all(torch.allclose(tensor, others[name], atol=1e-4) for name, tensor in weights.items())
    records, other_records = (read_metrics(tmp_path / each / "metrics.jsonl") for each in ("one", "two"))
    assert len(records) == len(other_records)
    for record, other in zip(records, other_records, strict=True):
        assert record["kind"] == other["kind"] and record.get("num_images") == other.get("num_images")
        for name in ("diffusion_loss", "classification_loss"):
            if name in record:
                assert abs(record[name] - other[name]) < 1e-4 * abs(record[name])
