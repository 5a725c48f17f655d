"""Kill explain_dataset.py by SIGKILL at random moments, start it again each time, and compare with a run left alone.

pytest collects a small version (`test_processes.py`). Whatever was killed, at the end the output folder must hold the
same files with the same bytes: every chunk once, nothing left of the work on them.

    python tests/explanation/kill_matrix.py --output benchmarks/results/explain_kill_matrix.json
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path


ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))
from support.fork_server import Started  # noqa: E402
from support.processes import TWO_PROCESSES, kill_tree, running_with, start, wait_to_kill  # noqa: E402
from support.warm_start import Forked, fork, fork_ranks  # noqa: E402


SCRIPT = ROOT / "training" / "explain_dataset.py"


@dataclass
class Kill:
    """One kill: when it struck, and what it left.

    Attributes:
        seconds: after the first output appeared.
        num_chunks: finished by then.
        while_writing: whether a file was being written.
    """

    seconds: float
    num_chunks: int
    while_writing: bool


Starter = Callable[[list[str], Path], subprocess.Popen | Forked | Started]

ENGINES = {
    "one process": ((), ()),
    "two processes": (TWO_PROCESSES, ()),
    "ray": ((), ("--engine", "ray", "--num_workers", "2")),
}


def command(pipeline: Path, data: Path, output_dir: Path, engine: str = "one process") -> list[str]:
    """The command line of every start."""
    launch, options = ENGINES[engine]
    places = ("--pretrained_model_name_or_path", pipeline, "--dataset", data, "--output_dir", output_dir)
    question = ("--away", "Cardiomegaly", "--batch_size", "8", "--chunk_rows", "16")
    return [sys.executable, *launch, str(SCRIPT), *map(str, places), *question, *options]


def run_to_the_end(line: list[str], log: Path, start: Starter = start) -> float:
    """Start a run, wait, and return the seconds from the first output on; raises `RuntimeError` if it fails."""
    process = start_work(line, log, start)
    began = time.monotonic()
    if process.wait():
        raise RuntimeError(f"The run failed:\n{log.read_text()[-3000:]}")
    return time.monotonic() - began


def kill_once(
    line: list[str],
    log: Path,
    output_dir: Path,
    num_chunks: int,
    rng: random.Random,
    span: float,
    who: str = "all",
    start: Starter = start,
) -> Kill | None:
    """Start a run and kill it up to `span` seconds after it began to work; `None` if nothing was left to do by then.

    `who` is `"all"` processes, or the `"launcher"` alone: its orphans then work on beside the next start.
    """
    process = start_work(line, log, start)
    began = time.monotonic()
    wait_to_kill(process, rng, span, lambda: _is_writing(output_dir))
    if process.poll() is not None or len(_finished(output_dir)) == num_chunks:
        if process.wait():
            raise RuntimeError(f"The run failed:\n{log.read_text()[-3000:]}")
        return None
    if who == "all":
        kill_tree(process)
        assert not running_with(output_dir), "A process has survived and would work on beside the next start."
    else:
        process.kill()
        process.wait()
    return Kill(round(time.monotonic() - began, 3), len(_finished(output_dir)), _is_writing(output_dir))


def _finished(output_dir: Path) -> list[Path]:
    return list(output_dir.rglob("*.parquet"))


class WarmStarter:
    """Starts runs as forks of this process, which has imported all that they need."""

    def __init__(self) -> None:
        from mediffusion_diffusers.commands.explain_dataset import COMMAND
        from mediffusion_diffusers.explanation import dataset_runner  # noqa: F401

        self._command, self._started = COMMAND, []

    def run(self, line: list[str]) -> int | None:
        """Run a command line in this process."""
        os.environ.update(ACCELERATE_USE_CPU="true", OMP_NUM_THREADS="1")
        return self._command.main(line[line.index(str(SCRIPT)) + 1 :])

    def start(self, line: list[str], log: Path) -> Forked:
        """As `support.processes.start`."""
        run = partial(self.run, line)
        self._started.append(fork_ranks(run, 2, log) if "--multi_gpu" in line else fork(run, log))
        return self._started[-1]

    def is_at_work(self, output_dir: Path) -> bool:
        """Whether any of them, or a process that it has started, runs."""
        return any(each.has_company() for each in self._started)


def start_work(line: list[str], log: Path, start: Starter = start) -> subprocess.Popen | Forked | Started:
    """Start a run and wait until its bar appears in the log, or it has ended: all that comes before is imports."""
    before = log.stat().st_size if log.exists() else 0
    process = start(line, log)
    while process.poll() is None and b"Images:" not in log.read_bytes()[before:]:
        time.sleep(0.002)
    return process


def _is_writing(output_dir: Path) -> bool:
    return any((output_dir / ".staging").glob("*"))


def folder_bytes(output_dir: Path) -> dict[str, bytes]:
    """Every file below a folder, by name."""
    return {
        path.relative_to(output_dir).as_posix(): path.read_bytes() for path in output_dir.rglob("*") if path.is_file()
    }


def differences(output_dir: Path, reference: Path) -> list[str]:
    """Names of the files that are not the same in two finished runs, or only in one."""
    found, expected = folder_bytes(output_dir), folder_bytes(reference)
    return sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))


def duplicates(output_dir: Path) -> int:
    """Input rows that occur more than once in the union of the shards."""
    import pyarrow.parquet as pq

    rows: Counter = Counter()
    for path in output_dir.rglob("*.parquet"):
        table = pq.read_table(path, columns=["shard", "row"])
        rows.update(zip(table["shard"].to_pylist(), table["row"].to_pylist(), strict=True))
    return sum(count - 1 for count in rows.values())


def kill_chain(
    scratch: Path,
    inputs: tuple[Path, Path, Path],
    num_kills: int,
    engine: str,
    span: float,
    seed: int,
    who: str = "all",
    run_to_the_end: Callable[[list[str], Path], object] = run_to_the_end,
    start: Starter = start,
    is_at_work: Callable[[Path], object] = running_with,
) -> dict:
    """Kill runs `num_kills` times, at most five times each, finish each one and compare it with one left alone.

    `inputs` are the pipeline, the data and the folder of the run that was left alone; `who`: see `kill_once`; `start`
    starts a command line, and `is_at_work` says whether anybody still works on an output folder.
    """
    rng = random.Random(seed)
    scratch.mkdir(parents=True, exist_ok=True)
    pipeline, data, reference = inputs
    num_chunks = len(_finished(reference))
    kills: list[Kill] = []
    runs = []
    while len(kills) < num_kills:
        name = f"run-{len(runs)}"
        output_dir, log, struck = scratch / name, scratch / f"{name}.log", 0
        line = command(pipeline, data, output_dir, engine)
        while struck < min(5, num_kills - len(kills)):
            kill = kill_once(line, log, output_dir, num_chunks, rng, span, who, start)
            if kill is None:
                break
            struck += 1
            kills.append(kill)
            print(f"{engine}, {who}, {name}: killed {asdict(kill)}", flush=True)
        run_to_the_end(line, log)
        while who == "launcher" and is_at_work(output_dir):  # orphans
            time.sleep(0.1)
        manifest = json.loads((output_dir / "manifest.json").read_text())
        result = {
            "num_kills": struck,
            "complete": manifest["complete"],
            "num_duplicates": duplicates(output_dir),
            "differences": differences(output_dir, reference),
        }
        runs.append(result)
        print(f"{engine}, {who}, {name}: {result}", flush=True)
    return {
        "engine": engine,
        "killed": who,
        "num_kills": len(kills),
        "num_kills_while_writing": sum(kill.while_writing for kill in kills),
        "complete": all(run["complete"] for run in runs),
        "num_duplicates": sum(run["num_duplicates"] for run in runs),
        "bit_identical": not any(run["differences"] for run in runs),
        "runs": runs,
        "kills": [asdict(kill) for kill in kills],
    }


def prepare(scratch: Path, num_images: int, num_shards: int) -> tuple[Path, Path]:
    """A tiny pipeline and phantoms in several shards."""
    from support.components import tiny_pipeline
    from support.explanation import write_shards

    from mediffusion_diffusers import MediffusionCounterfactualPipeline
    from mediffusion_diffusers.data.phantom import PHANTOM_LABELS, prepare_phantoms

    defaults = {"strength": 0.2, "guidance_scale": 5.0, "num_inference_steps": 2}
    names = dict(enumerate(PHANTOM_LABELS))
    pipe = tiny_pipeline(MediffusionCounterfactualPipeline, id2label=names, guidance_defaults=defaults)
    pipe.save_pretrained(scratch / "pipeline")
    prepare_phantoms(scratch / "data", num_images, 0, 0, image_size=16, show_progress=False)
    write_shards(scratch / "data", "train", num_shards, rows_per_group=50)
    return scratch / "pipeline", scratch / "data"


def main() -> None:
    """Run the matrix and write what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num_images", type=int, default=240)
    parser.add_argument("--num_shards", type=int, default=4)
    parser.add_argument("--single", type=int, default=8, help="Kills of one process.")
    parser.add_argument("--two_processes", type=int, default=8, help="Kills of two processes.")
    parser.add_argument("--launcher", type=int, default=2, help="Kills of the launcher of two processes alone.")
    parser.add_argument("--ray", type=int, default=5, help="Kills of a Ray driver with its actors.")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory(prefix="explain-kill-matrix-") as folder:
        scratch = Path(folder)
        pipeline, data = prepare(scratch, args.num_images, args.num_shards)
        reference = scratch / "reference"
        warm = WarmStarter()
        to_the_end = partial(run_to_the_end, start=warm.start)
        span = to_the_end(command(pipeline, data, reference), scratch / "reference.log")
        inputs = (pipeline, data, reference)
        rows = (
            ("one", args.single, "one process", "all"),
            ("two", args.two_processes, "two processes", "all"),
            ("launcher", args.launcher, "two processes", "launcher"),
            ("ray", args.ray, "ray", "all"),
        )
        wanted = [row for row in rows if row[1] > 0]
        left_alone = {}
        for engine in dict.fromkeys(row[2] for row in wanted if row[2] != "one process"):
            place = scratch / f"whole-{engine.split()[0]}"
            to_the_end(command(pipeline, data, place, engine), log := scratch / f"{place.name}.log")
            assert "by 2 workers" in log.read_text(), log.read_text()[-3000:]
            left_alone[engine] = not differences(place, reference)
        results = [
            kill_chain(
                *(scratch / name, inputs, count, engine, span / 2, args.seed + index, who),
                *(to_the_end, warm.start, warm.is_at_work),
            )
            for index, (name, count, engine, who) in enumerate(wanted)
        ]
    report = {
        "command": " ".join(["python", *sys.argv]),
        "num_images": args.num_images,
        "num_shards": args.num_shards,
        "engines_left_alone_make_what_one_process_makes": left_alone,
        **{name: all(result[name] for result in results) for name in ("complete", "bit_identical")},
        "num_duplicates": sum(result["num_duplicates"] for result in results),
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps({**report, "results": results}, indent=1) + "\n")
    is_good = (
        all(left_alone.values()) and report["complete"] and report["bit_identical"] and not report["num_duplicates"]
    )
    print(f"{'All' if is_good else 'NOT ALL'} complete and bit-identical; written to {args.output}.")
    sys.exit(0 if is_good else 1)


if __name__ == "__main__":
    main()
