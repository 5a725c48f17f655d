import os
import signal
import sys

import pytest
from support.processes import children, kill_tree, running_with, start


# Like a launcher: its worker leads a session of its own. The argument tells them from other processes.
LAUNCHER = """
import subprocess, sys
worker = "import time; print('at work', flush=True); time.sleep(60)"
subprocess.run([sys.executable, "-c", worker, sys.argv[1]], start_new_session=True)
"""


@pytest.fixture
def launcher(tmp_path):
    """The launcher, once its worker has begun to work."""
    log = tmp_path / "log"
    process = start([sys.executable, "-c", LAUNCHER, str(tmp_path)], log)
    while "at work" not in log.read_text():
        assert process.poll() is None, log.read_text()
    yield process
    kill_tree(process)


def test_kill_tree_leaves_nothing_running(launcher, tmp_path):
    assert sorted(running_with(tmp_path)) == sorted([launcher.pid, *children(launcher.pid)])
    kill_tree(launcher)
    assert launcher.returncode == -signal.SIGKILL and running_with(tmp_path) == []
    kill_tree(launcher)  # nothing is left to do


def test_the_worker_of_a_launcher_killed_alone_is_found_to_live_on(launcher, tmp_path):
    (worker,) = children(launcher.pid)
    launcher.kill()
    launcher.wait()
    try:
        assert running_with(tmp_path) == [worker]
    finally:
        os.kill(worker, signal.SIGKILL)
