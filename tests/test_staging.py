import os
import signal
import subprocess
import sys
import time

import pytest

from mediffusion_diffusers import staging
from mediffusion_diffusers.staging import locked_file, remove_abandoned, staged_file


HOLD = """
import runpy, sys, time
from pathlib import Path

with runpy.run_path(sys.argv[1])["locked_file"](Path(sys.argv[2]), "held"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_file_takes_its_name_when_it_is_whole(tmp_path):
    target = tmp_path / "data" / "shard"
    with staged_file(tmp_path / "staging", target) as file:
        file.write(b"whole")
        assert not target.exists()
    assert target.read_bytes() == b"whole"
    with pytest.raises(RuntimeError, match="stop"), staged_file(tmp_path / "staging", target) as file:
        file.write(b"half")
        raise RuntimeError("stop")
    assert target.read_bytes() == b"whole" and list((tmp_path / "staging").iterdir()) == []


def test_only_the_files_of_dead_processes_are_removed(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, staging.__file__, tmp_path], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "held\n"
        (path,) = tmp_path.iterdir()
        with locked_file(tmp_path, "own"):
            assert remove_abandoned(tmp_path) == []
            process.send_signal(signal.SIGKILL)
            process.wait()
            assert remove_abandoned(tmp_path) == [path]
            assert len(list(tmp_path.iterdir())) == 1
    finally:
        process.kill()


def test_files_of_other_machines_are_kept_for_a_day(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(staging, "_HOST", "elsewhere")
        with locked_file(tmp_path, "file") as (_, path):
            pass
    assert remove_abandoned(tmp_path) == []
    old = time.time() - staging.ABANDONED_SECONDS - 60
    os.utime(path, (old, old))
    assert remove_abandoned(tmp_path) == [path]
