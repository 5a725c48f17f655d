import json
import signal
import time
from functools import partial

import pytest
import torch
from explanation import kill_matrix
from support.explanation import output_bytes
from support.processes import kill_tree

from mediffusion_diffusers import MediffusionCounterfactualPipeline
from mediffusion_diffusers.commands.explain_dataset import COMMAND, job_of
from mediffusion_diffusers.explanation.dataset_runner import explain_dataset


def run_here(line, log=None, environment=None):
    """Run a command line of explain_dataset.py in this process, with one thread as the others have."""
    options, edit, *_ = COMMAND.parser.parse(line[line.index(str(kill_matrix.SCRIPT)) + 1 :])
    torch.set_num_threads(1)
    return explain_dataset(
        MediffusionCounterfactualPipeline.from_pretrained(options.pretrained_model_name_or_path),
        job_of(options, edit, environment or {}),
    )


@pytest.fixture(scope="module")
def whole(pipeline_folder, phantoms, tmp_path_factory):
    """What one process alone makes of the phantoms."""
    folder = tmp_path_factory.mktemp("whole") / "out"
    run_here(kill_matrix.command(pipeline_folder, phantoms, folder))
    return folder


@pytest.fixture(scope="module")
def long_work(tmp_path_factory):
    """Pipeline, 144 phantoms in three files, what one process alone makes of them, and in how many seconds."""
    folder = tmp_path_factory.mktemp("long")
    pipeline, data = kill_matrix.prepare(folder, num_images=144, num_shards=3)
    began = time.monotonic()
    run_here(kill_matrix.command(pipeline, data, folder / "reference"))
    return pipeline, data, folder / "reference", time.monotonic() - began


def test_two_processes_make_what_one_makes(pipeline_folder, phantoms, whole, tmp_path, fork_server):
    log = tmp_path / "two.log"
    line = kill_matrix.command(pipeline_folder, phantoms, tmp_path / "two")
    kill_matrix.run_to_the_end(line, log, partial(fork_server.start, num_processes=2))
    assert "Explained 36 images (0 could not be, 0 were not asked about)" in log.read_text()
    assert "by 2 workers; 5 of 5 shards are finished" in log.read_text()
    assert "36/36" in log.read_text()  # the first process's bar counts the rows of both
    assert output_bytes(tmp_path / "two") == output_bytes(whole)


def test_two_tasks_of_a_job_array_at_once_make_what_one_makes(pipeline_folder, phantoms, whole, tmp_path, fork_server):
    line = kill_matrix.command(pipeline_folder, phantoms, tmp_path / "tasks")
    places = [{"ID": index + 1, "COUNT": 2, "MIN": 1, "STEP": 1} for index in range(2)]
    first, second = ({f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in place.items()} for place in places)
    log = tmp_path / "first.log"
    process = fork_server.start(line, log, first)
    while process.poll() is None and "Images:" not in log.read_text():
        time.sleep(0.01)
    assert run_here(line, environment=second).counts["num_explained"] == 14
    assert process.wait() == 0 and "Explained 22 images" in log.read_text(), log.read_text()
    assert output_bytes(tmp_path / "tasks") == output_bytes(whole)


def test_killed_in_the_middle_and_started_again(long_work, tmp_path, fork_server):
    """The small version of kill_matrix.py: one kill; another number of processes goes on from there."""
    pipeline, data, reference, seconds = long_work
    inputs = (pipeline, data, reference)
    runs = {"run_to_the_end": run_here, "start": partial(fork_server.start, num_processes=2)}
    result = kill_matrix.kill_chain(tmp_path, inputs, 1, "one process", seconds / 8, 0, **runs)
    assert result["complete"] and result["bit_identical"] and result["num_duplicates"] == 0, result["runs"]


def test_sigterm_to_the_launcher_stops_both_processes_with_a_message(long_work, tmp_path, fork_server):
    """accelerate's launcher, which starts processes of its own."""
    log, out = tmp_path / "log", tmp_path / "out"
    line = kill_matrix.command(*long_work[:2], out, "two processes")
    process = kill_matrix.start_work(line, log, fork_server.start)
    try:
        while not list(out.rglob("*.parquet")):
            assert process.poll() is None, log.read_text()[-3000:]
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=120) != 0
    finally:
        kill_tree(process)
    assert "Stopped by SIGTERM: 0 of 3 shards are finished" in log.read_text()
    assert not list((out / ".staging").glob("*"))
    assert not json.loads((out / "manifest.json").read_text())["complete"]
