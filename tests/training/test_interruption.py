"""How a run ends early: killed, told to stop, or out of space; and that it then goes on as if nothing had happened."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time

import kill_matrix
import pytest
import torch
from diffusers.utils import logging
from safetensors import SafetensorError
from support.training import TINY_JOINT, joint_config

from mediffusion_diffusers import stop_request
from mediffusion_diffusers.stop_request import StoppedBySignal, StopRequest
from mediffusion_diffusers.training.joint import task as joint_task
from mediffusion_diffusers.training.joint.task import train_joint
from mediffusion_diffusers.training.run.checkpoints import find_checkpoint, save_checkpoint
from mediffusion_diffusers.training.run.interruption import explained_full_disk


def run(phantoms, output_dir, *arguments):
    line = (*TINY_JOINT, "--dataset_dir", phantoms, "--checkpointing_steps", 100)
    train_joint(joint_config(*line, "--output_dir", output_dir, *arguments))


def test_killed_twice_a_run_ends_as_if_left_alone(phantoms, tmp_path, fork_server):
    """The small version of `make kill-matrix`; the runs that nobody kills are not processes of their own."""

    def run_here(line, log):
        torch.set_num_threads(1)
        train_joint(joint_config(*line[2:]))

    runs = {"run_to_the_end": run_here, "start": fork_server.start}
    result = kill_matrix.kill_chain(tmp_path, phantoms, 2, 1, num_steps=16, seed=0, **runs)
    assert result["num_kills"] == 2 and result["bit_identical"], result["runs"]


@pytest.fixture
def messages(caplog):
    """What is logged."""
    logging.enable_propagation()
    yield caplog
    logging.disable_propagation()


def test_a_truncated_checkpoint_is_named_and_the_one_before_it_gone_on_from(phantoms, tmp_path, messages):
    """Whichever file of it is cut in half; the run that was left alone ends in the same bytes."""
    run(phantoms, tmp_path / "whole", "--checkpointing_steps", 3)
    files = sorted(path.name for path in (tmp_path / "whole" / "checkpoint-6").iterdir())
    assert files == ["ema.safetensors", "manifest.json", "optimizer.safetensors", "state.json", "unet.safetensors"]
    for file in files:
        shutil.copytree(tmp_path / "whole", tmp_path / file)
        newest = tmp_path / file / "checkpoint-6"
        os.truncate(newest / file, (newest / file).stat().st_size // 2)
        with pytest.raises(ValueError, match=f"checkpoint-6 cannot be used: {file}"):
            run(phantoms, tmp_path / file, "--checkpointing_steps", 3, "--resume_from_checkpoint", "checkpoint-6")
        messages.clear()
        run(phantoms, tmp_path / file, "--checkpointing_steps", 3, "--resume_from_checkpoint", "latest")
        assert f"Checkpoint {newest} is not used: {file}" in messages.text
        assert (newest / file).read_bytes() == (tmp_path / "whole" / "checkpoint-6" / file).read_bytes()
        assert kill_matrix.differences(tmp_path / file, tmp_path / "whole", 6) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_a_signal_saves_at_the_next_step_boundary_and_the_run_goes_on(phantoms, tmp_path, number, monkeypatch, capsys):
    run(phantoms, tmp_path / "whole", "--classifier_dropout", 0.3)
    steps = []

    def interrupt(*keys):
        steps.append(keys)
        if len(steps) == 4:  # in the middle of the fourth step
            signal.raise_signal(number)
        return seed_step(*keys)

    seed_step = joint_task.seed_step
    monkeypatch.setattr(joint_task, "seed_step", interrupt)
    before = signal.getsignal(number)
    with pytest.raises(StoppedBySignal) as stop:
        run(phantoms, tmp_path / "run", "--classifier_dropout", 0.3)
    assert stop.value.code == 128 + number and signal.getsignal(number) is before
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-4"]
    message = capsys.readouterr().out
    assert f"Stopped by {number.name} after step 4, and saved checkpoint-4" in message
    assert "--resume_from_checkpoint latest" in message

    run(phantoms, tmp_path / "run", "--classifier_dropout", 0.3, "--resume_from_checkpoint", "latest")
    assert kill_matrix.differences(tmp_path / "run", tmp_path / "whole", 6) == []


def test_a_signal_at_the_last_step_lets_the_run_finish(phantoms, tmp_path, monkeypatch):
    seed_step = joint_task.seed_step

    def interrupt(*keys):
        signal.raise_signal(signal.SIGTERM)
        return seed_step(*keys)

    monkeypatch.setattr(joint_task, "seed_step", interrupt)
    run(phantoms, tmp_path / "run", "--max_train_steps", 1)
    assert (tmp_path / "run" / "model_index.json").is_file()


def test_a_repeated_signal_is_one_request_and_a_later_one_ends_the_process(monkeypatch):
    stop = StopRequest()
    with stop.listening():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert stop.signal_number == signal.SIGINT
        monkeypatch.setattr("mediffusion_diffusers.stop_request._REPETITION_SECONDS", -1.0)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


LISTENER = """
import runpy, signal, sys
stop = runpy.run_path(sys.argv[1])["StopRequest"]()  # the file alone: the package takes seconds to import
with stop.listening():
    signal.raise_signal(signal.SIGINT)
    print(repr(stop.signal_number), flush=True)
    signal.raise_signal(signal.SIGTERM)
    print(repr(stop.signal_number), flush=True)
"""


@pytest.mark.parametrize(
    ("before", "expected"),
    [(signal.SIG_IGN, [None, 15]), (signal.default_int_handler, [2, 2])],
    ids=["in the background", "in the foreground"],
)
def test_a_program_that_was_started_to_ignore_ctrl_c_ignores_it(before, expected):
    """As a shell starts what stands in the background of a script; SIGTERM still stops it."""
    result = subprocess.run(
        [sys.executable, "-c", LISTENER, stop_request.__file__],
        preexec_fn=lambda: signal.signal(signal.SIGINT, before),
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.splitlines() == [repr(each) for each in expected]


def test_a_run_that_fails_ends_the_line_of_its_bar_and_gives_signals_back(phantoms, tmp_path, capsys):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(FloatingPointError, match=r"at step 2\. Lower `learning_rate`") as failure:
        run(phantoms, tmp_path / "run", "--learning_rate", 1e30)
    assert signal.getsignal(signal.SIGTERM) is before and failure.traceback  # whose frames are still there
    assert capsys.readouterr().err.endswith("\n")


def test_outside_the_main_thread_signals_are_left_alone():
    stop = StopRequest()
    before = signal.getsignal(signal.SIGTERM)

    def listen():
        with stop.listening():
            time.sleep(0.01)

    thread = threading.Thread(target=listen)
    thread.start()
    assert signal.getsignal(signal.SIGTERM) is before
    thread.join()


def test_a_second_run_in_the_same_folder_is_refused_and_the_first_goes_on(phantoms, tmp_path, monkeypatch):
    refusals = []

    def start_another(*keys):
        if not refusals:
            with pytest.raises(ValueError, match=r"`output_dir` .* is in use by another run") as refusal:
                run(phantoms, tmp_path / "run", "--overwrite_output_dir")
            refusals.append(refusal)
        return seed_step(*keys)

    seed_step = joint_task.seed_step
    monkeypatch.setattr(joint_task, "seed_step", start_another)
    run(phantoms, tmp_path / "run")
    assert refusals and (tmp_path / "run" / "model_index.json").is_file()
    run(phantoms, tmp_path / "run", "--resume_from_checkpoint", "latest")  # it has let go


def test_a_killed_run_lets_its_folder_go(phantoms, tmp_path, fork_server):
    line = (*TINY_JOINT, "--dataset_dir", phantoms, "--output_dir", tmp_path / "run", "--max_train_steps", 100_000)
    line = (*line, "--checkpointing_steps", 100_000)  # or it might go beyond the last step of those that follow
    process = fork_server.start([sys.executable, kill_matrix.SCRIPT, *line], tmp_path / "log")
    while not (tmp_path / "run" / "metrics.jsonl").exists():
        assert process.poll() is None, (tmp_path / "log").read_text()
        time.sleep(0.05)
    with pytest.raises(ValueError, match="is in use by another run"):
        run(phantoms, tmp_path / "run")
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    run(phantoms, tmp_path / "run", "--resume_from_checkpoint", "latest")
    assert (tmp_path / "run" / "model_index.json").is_file()


@pytest.mark.parametrize("kind", ["a file", "a folder inside a file"])
def test_an_output_folder_that_is_none_is_refused_before_the_work(phantoms, tmp_path, kind):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="`output_dir` must be a folder that can be written to"):
        run(phantoms, tmp_path / "file" / ("" if kind == "a file" else "run"))


@pytest.fixture
def no_room():
    """Files cannot grow beyond 64 KiB, which fails in the operating system as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    signal.signal(signal.SIGXFSZ, handler)


def test_a_failed_write_leaves_the_last_good_checkpoint_and_no_rest(tmp_path, no_room):
    good = save_checkpoint(tmp_path, 3, {"unet": {"weight": torch.zeros(10)}}, {}, total_limit=1)
    with pytest.raises((OSError, SafetensorError)):
        save_checkpoint(tmp_path, 6, {"unet": {"weight": torch.zeros(100_000)}}, {}, total_limit=1)
    assert list(tmp_path.iterdir()) == [good] and find_checkpoint(tmp_path, "latest") == (good, [])


FULL_DISK = """
mount -t tmpfs -o size={kib}k tmpfs {disk} || exit 77
{python} {script} {line}
code=$?
cp -r {disk} {copy}
exit $code
"""


def test_a_full_disk_stops_with_the_last_good_checkpoint(phantoms, tmp_path):
    """On a real file system with room for little more than one checkpoint."""
    if shutil.which("unshare") is None:
        pytest.skip("unshare is not installed")
    disk, copy = tmp_path / "disk", tmp_path / "copy"
    disk.mkdir()
    line = (*TINY_JOINT, "--dataset_dir", phantoms, "--output_dir", disk / "run", "--checkpointing_steps", 1)
    run(phantoms, tmp_path / "measured", "--max_train_steps", 1)
    num_bytes = sum(path.stat().st_size for path in (tmp_path / "measured" / "checkpoint-1").iterdir())
    places = {"disk": disk, "copy": copy, "python": sys.executable, "script": kill_matrix.SCRIPT}
    script = FULL_DISK.format(kib=num_bytes * 3 // 2 // 1024, line=" ".join(map(str, line)), **places)
    result = subprocess.run(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", script],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    if result.returncode == 77 or "unshare" in result.stderr[:200]:
        pytest.skip("no file system may be mounted here")
    assert result.returncode == 1 and "Traceback" not in result.stderr
    newest, passed_over = find_checkpoint(copy / "run", "latest")
    assert newest is not None and passed_over == []
    assert "The disk of `output_dir` is full" in result.stderr
    assert f"the last good checkpoint is {disk / 'run' / newest.name}" in result.stderr
    run(phantoms, copy / "run", "--resume_from_checkpoint", "latest")
    assert (copy / "run" / "model_index.json").is_file()


def test_other_errors_pass_unchanged(tmp_path):
    with pytest.raises(OSError, match="other"), explained_full_disk(tmp_path):
        raise OSError("other")
    with pytest.raises(SafetensorError, match="other"), explained_full_disk(tmp_path):
        raise SafetensorError("other")
    with pytest.raises(OSError, match="there is no checkpoint yet"), explained_full_disk(tmp_path):
        raise SafetensorError("I/O error: No space left on device (os error 28)")
