"""Wheel and sdist as a user gets them: built, installed in fresh environments, and tried without network.

    python tests/check_wheel.py [PYTHON ...]

`PYTHON` is an interpreter, for which an environment is made with the versions of `constraints.txt`, or the folder of
an environment that has what the package needs, into which the wheel alone is put; by default the interpreter that runs
this. The wheel is built from the sdist, so that both are whole or neither.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path


ROOT = Path(__file__).resolve().parents[1]
MAX_SECONDS = 15.0  # of the first explanation, from the start of the process

# In a process of its own, with every way out of this machine closed.
EXPLAIN = """
import socket

def refuse(*arguments, **options):
    raise OSError("no network in this check")

socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse

from mediffusion_diffusers import MediffusionCounterfactualPipeline, examples

pipe = MediffusionCounterfactualPipeline.from_pretrained(examples.checkpoint())
pipe.set_progress_bar_config(disable=True)
example = examples.images()[0]
output = pipe(example.image, away=example.labels[0])
column = output.label_names.index(example.labels[0])
assert output.probabilities_after[0, column] < output.probabilities_before[0, column]
"""


def run(*command: str | Path, cwd: Path) -> str:
    """Run a program without the repository on its path; its output.

    Raises:
        SystemExit: with all that it said, if it fails.
    """
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout


def build(folder: Path) -> Path:
    """Build an sdist of the repository, and of what it holds the wheel; the path of the wheel."""
    backend = "from setuptools import build_meta; print(build_meta.build_{0}({1!r}))"
    name = run(sys.executable, "-c", backend.format("sdist", str(folder)), cwd=ROOT).splitlines()[-1]
    with tarfile.open(folder / name) as archive:
        archive.extractall(folder, filter="data")
    source = folder / name.removesuffix(".tar.gz")
    wheel = run(sys.executable, "-c", backend.format("wheel", str(folder)), cwd=source).splitlines()[-1]
    for path in (folder / name, folder / wheel):
        print(f"{path.name}: {path.stat().st_size / 1e6:.1f} MB")
    return folder / wheel


def install(python: str, wheel: Path, folder: Path) -> Path:
    """Install the wheel; the interpreter of its environment."""
    if (Path(python) / "bin" / "python").exists():
        interpreter = Path(python).absolute() / "bin" / "python"
        options = ("--no-deps", "--force-reinstall")
    else:
        environment = folder / f"environment-{Path(python).name}-{abs(hash(python))}"
        run(python, "-m", "venv", environment, cwd=folder)
        interpreter, options = environment / "bin" / "python", ("-c", str(ROOT / "constraints.txt"))
    run(interpreter, "-m", "pip", "install", "-q", *options, wheel, cwd=folder)
    return interpreter


def check(interpreter: Path, folder: Path) -> bool:
    """Try what was installed, from an empty folder, and say how long it took; whether that was short enough."""
    version = run(interpreter, "-c", "import sys; print(sys.version.split()[0])", cwd=folder).strip()
    seconds = {}
    for name, command in {
        "import": (interpreter, "-c", "import mediffusion_diffusers"),
        "mediffusion --help": (interpreter.with_name("mediffusion"), "--help"),
        "first explanation": (interpreter, "-c", EXPLAIN),
    }.items():
        start = time.perf_counter()
        run(*command, cwd=folder)
        seconds[name] = time.perf_counter() - start
    print(f"Python {version}: " + ", ".join(f"{name} {took:.1f} s" for name, took in seconds.items()))
    return seconds["first explanation"] <= MAX_SECONDS


def main(pythons: Sequence[str]) -> int:
    """Build, install, try; 1 if something took too long."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wheel = build(folder)
        empty = folder / "empty"
        empty.mkdir()
        in_time = [check(install(python, wheel, folder), empty) for python in pythons or [sys.executable]]
    if not all(in_time):
        print(f"A first explanation must take at most {MAX_SECONDS:g} s.", file=sys.stderr)
    return 0 if all(in_time) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
