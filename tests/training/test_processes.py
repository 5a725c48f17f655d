import json
import signal
import socket
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.processes import kill_tree
from support.training import TINY_JOINT, joint_config

from mediffusion_diffusers.commands.demo.worker import environments
from mediffusion_diffusers.metrics_log import read_metrics
from mediffusion_diffusers.training.joint.task import train_joint
from mediffusion_diffusers.training.run.checkpoints import find_checkpoint


SCRIPT = Path(__file__).parents[2] / "training" / "train_joint.py"
LAUNCH = (
    *("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"),
    *("--mixed_precision", "no", "--dynamo_backend", "no"),
)


def finish(processes, logs):
    """Wait for all of them; none may fail."""
    try:
        for process, log in zip(processes, logs, strict=True):
            assert process.wait() == 0, log.read_text()[-3000:]
    finally:
        for process in processes:
            kill_tree(process)


@pytest.fixture
def logs(tmp_path):
    """What each of two processes prints."""
    return [tmp_path / f"{rank}.log" for rank in range(2)]


@pytest.fixture
def start_two(fork_server, logs):
    """Start train_joint.py twice as the demo does, without a launcher; each process is told its place."""

    def start(*arguments):
        line = [sys.executable, SCRIPT, *arguments, "--device", "cpu"]
        places = zip(logs, environments(2), strict=True)
        return [fork_server.start(line, log, environment) for log, environment in places]

    return start


def assert_same_run(folder, reference, num_steps):
    """Weights and losses agree up to rounding, and nothing was counted twice."""
    assert json.loads((folder / "training_config.json").read_text())["num_processes"] == 2
    name = f"checkpoint-{num_steps}/unet.safetensors"
    weights, others = load_file(reference / name), load_file(folder / name)
    assert all(torch.allclose(tensor, others[key], atol=1e-4) for key, tensor in weights.items())
    records, other_records = (read_metrics(each / "metrics.jsonl") for each in (reference, folder))
    assert len(records) == len(other_records)
    for record, other in zip(records, other_records, strict=True):
        assert record["kind"] == other["kind"] and record.get("num_images") == other.get("num_images")
        for loss in ("diffusion_loss", "classification_loss"):
            if loss in record:
                assert abs(record[loss] - other[loss]) < 1e-4 * abs(record[loss])


def test_two_processes_train_as_one(phantoms, tmp_path, logs, start_two):
    """Three labelled images are shared by two processes of two parts each, so that one slice is empty."""
    line = (*TINY_JOINT, "--dataset_dir", phantoms, "--classifier_dropout", "0", "--max_train_steps", "3")
    line = (*line, "--classifier_start_step", "1", "--classifier_every", "2", "--logging_steps", "1")
    train_joint(joint_config(*line, "--output_dir", tmp_path / "one"))
    accumulated = ("--gradient_accumulation_steps", "2")
    finish(start_two(*line, "--output_dir", tmp_path / "two", *accumulated), logs)
    assert_same_run(tmp_path / "two", tmp_path / "one", 3)


def test_two_machines_train_as_one(phantoms, tmp_path, logs, fork_server):
    """One process each, on loopback, with a labelled batch that only one of them gets; latents come from a cache."""
    line = (*TINY_JOINT, "--dataset_dir", phantoms, "--classifier_dropout", "0", "--max_train_steps", "2")
    line = (*line, "--labelled_batch_size", "1", "--logging_steps", "1", "--cache_latents")
    train_joint(joint_config(*line, "--output_dir", tmp_path / "one" / "run"))
    out = tmp_path / "two" / "run"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    machines = []
    for rank, log in enumerate(logs):
        place = ("--num_machines", 2, "--machine_rank", rank, "--main_process_ip", "127.0.0.1")
        place = (*place, "--main_process_port", port, SCRIPT)
        machines.append(fork_server.start([sys.executable, *LAUNCH, *place, *line, "--output_dir", out], log))
    finish(machines, logs)
    assert_same_run(out, tmp_path / "one" / "run", 2)


def test_a_signal_to_one_of_two_processes_stops_both_with_a_checkpoint(phantoms, tmp_path, logs, start_two):
    folder = tmp_path / "run"
    line = (*TINY_JOINT, "--dataset_dir", phantoms, "--max_train_steps", "100000", "--checkpointing_steps", "100000")
    processes = start_two(*line, "--validation_steps", "100000", "--output_dir", folder)
    try:
        while not read_metrics(folder / "metrics.jsonl"):
            assert all(each.poll() is None for each in processes), logs[0].read_text()[-3000:]
            time.sleep(0.05)
        processes[1].send_signal(signal.SIGTERM)
        assert all(each.wait() != 0 for each in processes)
    finally:
        for each in processes:
            kill_tree(each)
    assert "Stopped by SIGTERM after step" in logs[0].read_text()
    path, passed_over = find_checkpoint(folder, "latest")
    assert path is not None and passed_over == []
