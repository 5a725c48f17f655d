"""Kill explain_dataset.py by SIGKILL at random moments, start it again each time, and compare with a run left alone.

pytest collects a small version (`test_processes.py`). Whatever was killed, at the end the output folder must hold the
same files with the same bytes: every shard once, nothing left of the work on them.

    python tests/explanation/kill_matrix.py --output benchmarks/results/explain_kill_matrix.json
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path


ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))
from support.processes import TWO_PROCESSES, kill_tree, running_with, start, wait_to_kill  # noqa: E402


SCRIPT = ROOT / "training" / "explain_dataset.py"


@dataclass
class Kill:
    """One kill: when it struck, and what it left.

    Attributes:
        seconds: after the first output appeared.
        num_shards: finished by then.
        num_parts: parts of unfinished shards.
        while_writing: whether a file was being written.
    """

    seconds: float
    num_shards: int
    num_parts: int
    while_writing: bool


def command(pipeline: Path, data: Path, output_dir: Path, num_processes: int) -> list[str]:
    """The command line of every start."""
    launch = [sys.executable, *(TWO_PROCESSES if num_processes == 2 else ())]
    places = ("--pretrained_model_name_or_path", pipeline, "--dataset", data, "--output_dir", output_dir)
    return [*launch, str(SCRIPT), *map(str, places), "--away", "Cardiomegaly", "--batch_size", "16"]


def run_to_the_end(line: list[str], log: Path) -> float:
    """Start a run, wait, and return the seconds from the first output on; raises `RuntimeError` if it fails."""
    process = start(line, log)
    wait_for_work(process, Path(line[line.index("--output_dir") + 1]), 2 if "--multi_gpu" in line else 1)
    began = time.monotonic()
    if process.wait():
        raise RuntimeError(f"The run failed:\n{log.read_text()[-3000:]}")
    return time.monotonic() - began


def kill_once(
    line: list[str], log: Path, output_dir: Path, num_shards: int, rng: random.Random, span: float, who: str = "all"
) -> Kill | None:
    """Start a run and kill it up to `span` seconds after it began to work; `None` if nothing was left to do by then.

    `who` is `"all"` processes, or the `"launcher"` alone: its orphans then work on beside the next start.
    """
    process = start(line, log)
    wait_for_work(process, output_dir, 2 if "--multi_gpu" in line else 1)
    began = time.monotonic()
    wait_to_kill(process, rng, span, lambda: _is_writing(output_dir))
    if process.poll() is not None or len(_finished(output_dir)) == num_shards:
        if process.wait():
            raise RuntimeError(f"The run failed:\n{log.read_text()[-3000:]}")
        return None
    if who == "all":
        kill_tree(process)
        assert not running_with(output_dir), "A process has survived and would work on beside the next start."
    else:
        process.kill()
        process.wait()
    parts = [path for path in (output_dir / ".work" / "parts").rglob("*.parquet") if path.is_file()]
    return Kill(round(time.monotonic() - began, 3), len(_finished(output_dir)), len(parts), _is_writing(output_dir))


def _finished(output_dir: Path) -> list[Path]:
    return [path for path in output_dir.rglob("*.parquet") if path.is_file() and ".work" not in path.parts]


def wait_for_work(process: subprocess.Popen, output_dir: Path, num_processes: int) -> None:
    """Wait until the processes of a launch have noted their progress: all that comes before is imports."""
    progress = output_dir / ".work" / "progress"
    before = set(progress.glob("*"))
    while process.poll() is None:
        launches = Counter(path.name.split("-")[0] for path in set(progress.glob("*")) - before)
        if num_processes in launches.values():
            return
        time.sleep(0.002)


def _is_writing(output_dir: Path) -> bool:
    return any((output_dir / ".work" / "staging").glob("*"))


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
    num_processes: int,
    span: float,
    seed: int,
    who: str = "all",
    run_to_the_end: Callable[[list[str], Path], object] = run_to_the_end,
) -> dict:
    """Kill runs `num_kills` times, at most five times each, finish each one and compare it with one left alone.

    `inputs` are the pipeline, the data and the folder of the run that was left alone; `who`: see `kill_once`.
    """
    rng = random.Random(seed)
    scratch.mkdir(parents=True, exist_ok=True)
    pipeline, data, reference = inputs
    num_shards = len(_finished(reference))
    kills: list[Kill] = []
    runs = []
    while len(kills) < num_kills:
        name = f"run-{len(runs)}"
        output_dir, log, struck = scratch / name, scratch / f"{name}.log", 0
        line = command(pipeline, data, output_dir, num_processes)
        while struck < min(5, num_kills - len(kills)):
            kill = kill_once(line, log, output_dir, num_shards, rng, span, who)
            if kill is None:
                break
            struck += 1
            kills.append(kill)
            print(f"{num_processes} process(es), {who}, {name}: killed {asdict(kill)}", flush=True)
        run_to_the_end(line, log)
        while who == "launcher" and any((output_dir / ".work" / "progress").glob("*")):  # orphans are still at work
            time.sleep(0.1)
        manifest = json.loads((output_dir / "manifest.json").read_text())
        result = {
            "num_kills": struck,
            "complete": manifest["complete"],
            "num_duplicates": duplicates(output_dir),
            "differences": differences(output_dir, reference),
        }
        runs.append(result)
        print(f"{num_processes} process(es), {who}, {name}: {result}", flush=True)
    return {
        "num_processes": num_processes,
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
    parser.add_argument("--num_images", type=int, default=600)
    parser.add_argument("--num_shards", type=int, default=4)
    parser.add_argument("--single", type=int, default=10, help="Kills of one process.")
    parser.add_argument("--two_processes", type=int, default=10, help="Kills of two processes.")
    parser.add_argument("--launcher", type=int, default=3, help="Kills of the launcher of two processes alone.")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory(prefix="explain-kill-matrix-") as folder:
        scratch = Path(folder)
        pipeline, data = prepare(scratch, args.num_images, args.num_shards)
        reference = scratch / "reference"
        span = run_to_the_end(command(pipeline, data, reference, 1), scratch / "reference.log") / 3
        log = scratch / "two.log"
        run_to_the_end(command(pipeline, data, scratch / "two-whole", 2), log)
        assert "in each of 2 processes" in log.read_text(), log.read_text()[-3000:]
        two_as_one = not differences(scratch / "two-whole", reference)
        inputs = (pipeline, data, reference)
        rows = (("one", args.single, 1, "all"), ("two", args.two_processes, 2, "all"))
        rows = (*rows, ("launcher", args.launcher, 2, "launcher"))
        results = [
            kill_chain(scratch / name, inputs, count, num_processes, span / num_processes, args.seed + index, who)
            for index, (name, count, num_processes, who) in enumerate(rows)
            if count > 0
        ]
    report = {
        "command": " ".join(["python", *sys.argv]),
        "num_images": args.num_images,
        "num_shards": args.num_shards,
        "two_processes_left_alone_make_what_one_makes": two_as_one,
        **{name: all(result[name] for result in results) for name in ("complete", "bit_identical")},
        "num_duplicates": sum(result["num_duplicates"] for result in results),
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps({**report, "results": results}, indent=1) + "\n")
    is_good = two_as_one and report["complete"] and report["bit_identical"] and not report["num_duplicates"]
    print(f"{'All' if is_good else 'NOT ALL'} complete and bit-identical; written to {args.output}.")
    sys.exit(0 if is_good else 1)


if __name__ == "__main__":
    main()
