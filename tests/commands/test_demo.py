"""The demo's plan, and how its steps run side by side."""

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.demo_steps import work

from mediffusion_diffusers.commands.demo.plan import FULL, SMALL, Step, plan
from mediffusion_diffusers.commands.demo.schedule import Schedule
from mediffusion_diffusers.commands.demo.worker import environments
from mediffusion_diffusers.commands.mediffusion import COMMANDS
from mediffusion_diffusers.training.presets import JOINT_PRESETS


@pytest.mark.parametrize("size", [SMALL, FULL])
def test_every_step_is_a_command_that_is_understood(size, tmp_path):
    steps = plan(tmp_path, size)
    for step in steps:
        first, *words = step.words
        command = COMMANDS[first]
        if isinstance(command, tuple):
            command = command[1][words.pop(0)]
        command.parser.parse(words)
    assert size.preset in JOINT_PRESETS
    assert len({step.output for step in steps}) == len({step.name for step in steps}) == len(steps)
    assert {step.name for step in steps if step.num_processes > 1} == {"model"}


@pytest.mark.parametrize("size", [SMALL, FULL])
def test_every_step_gets_its_turn(size, tmp_path):
    steps, done = plan(tmp_path, size), set()
    while len(done) < len(steps):
        ready = {step.name for step in steps if done.issuperset(step.after)} - done
        assert ready, f"{[step.name for step in steps if step.name not in done]} wait for one another"
        done |= ready


def make(place, *names, action="do", **after):
    """Steps, of which one called "shared" is shared by two processes."""
    return [
        Step(name, name, (action, name, str(place)), Path(place, name), after.get(name, ()), 1 + (name == "shared"))
        for name in names
    ]


def events(place):
    return [line.split()[:2] for line in (place / "events").read_text().splitlines()]


def test_a_step_waits_for_what_it_needs_and_two_are_side_by_side(tmp_path):
    schedule = Schedule(make(tmp_path, "a", "b", "c", action="meet", c=("a",)), tmp_path / "logs", work, ())
    schedule.run()
    seen = events(tmp_path)
    assert {name for _, name in seen[:2]} == {"a", "b"} and [kind for kind, _ in seen[:2]] == ["begin", "begin"]
    assert seen.index(["end", "a"]) < seen.index(["begin", "c"])
    assert set(schedule.seconds) == {"a", "b", "c"} and schedule.cpu_seconds == 3
    assert schedule.busy_share == pytest.approx(3 / schedule.wall_seconds / schedule.num_cores)


def test_processes_that_share_a_step_know_their_places(tmp_path):
    schedule = Schedule(make(tmp_path, "shared", "b", action="meet", b=("shared",)), tmp_path / "logs", work, ())
    schedule.num_cores = 2
    schedule.run()
    lines = [line.split() for line in (tmp_path / "events").read_text().splitlines()]
    assert sorted(line[3] for line in lines if line[:2] == ["begin", "shared"]) == ["0", "1"]
    assert lines[-2][:4] == ["begin", "b", "1", "None"]  # after both, and alone
    assert schedule.cpu_seconds == 3
    first, second = environments(2)
    assert first == {**second, "RANK": "0", "LOCAL_RANK": "0"} and first["MASTER_ADDR"] == "127.0.0.1"


def test_what_was_done_before_is_not_done_again(tmp_path):
    (tmp_path / "a").write_text("")
    Schedule(make(tmp_path, "a", "b", b=("a",)), tmp_path / "logs", work, ()).run()
    assert events(tmp_path) == [["begin", "b"], ["end", "b"]]


def test_a_step_that_fails_says_its_last_words_and_where_the_others_are(tmp_path):
    with pytest.raises(SystemExit, match=r"`mediffusion fail b .*` failed \(3\): of b All it said is in .*b\.log"):
        Schedule(make(tmp_path, "b", action="fail"), tmp_path / "logs", work, ()).run()


def test_one_of_two_processes_that_fails_ends_the_other(tmp_path):
    steps = make(tmp_path, "shared", action="fail_or_wait")
    schedule = Schedule(steps, tmp_path / "logs", work, ())
    schedule.num_cores = 2
    with pytest.raises(SystemExit, match=r"fail_or_wait shared .* failed \(3\)"):
        schedule.run()
    assert len(events(tmp_path)) == 2
    pids = [int(line.split()[4]) for line in (tmp_path / "events").read_text().splitlines()]
    assert not any(is_running(pid) for pid in pids)


def test_killing_the_demo_ends_its_steps(tmp_path):
    code = (
        "import sys; from pathlib import Path; from support.demo_steps import work\n"
        "from mediffusion_diffusers.commands.demo.plan import Step\n"
        "from mediffusion_diffusers.commands.demo.schedule import Schedule\n"
        "place = sys.argv[1]\n"
        "steps = [Step(name, name, ('wait', name, place), Path(place, name)) for name in 'ab']\n"
        "if __name__ == '__main__': Schedule(steps, Path(place, 'logs'), work, ()).run()\n"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    demo = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path)], env={**os.environ, "PYTHONPATH": path}, stderr=subprocess.DEVNULL
    )
    wait_until(lambda: (tmp_path / "events").exists() and len(events(tmp_path)) == 2)
    demo.kill()
    demo.wait()
    steps = [int(line.split()[4]) for line in (tmp_path / "events").read_text().splitlines()]
    wait_until(lambda: not any(is_running(step) for step in steps))


def is_running(pid):
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text() if Path("/proc/self").exists() else True
    return False


def wait_until(condition, seconds=60):
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, "It took too long."
        time.sleep(0.05)
