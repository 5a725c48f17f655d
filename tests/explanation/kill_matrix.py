"""Kill explain_dataset.py by SIGKILL at random moments, start it again each time, and compare with a run left alone.

pytest collects a small version (`test_processes.py`). Whatever was killed, at the end the output folder must hold the
same files with the same bytes: every shard once, nothing left of the work on them.

    python tests/explanation/kill_matrix.py --output benchmarks/results/explain_kill_matrix.json
"""

import argparse
import json
import os
import random
import signal
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
SCRIPT = ROOT / "training" / "explain_dataset.py"
TWO_PROCESSES = (
    *("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"),
    *("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"),
)


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


def start(line: list[str], log: Path) -> subprocess.Popen:
    """Start a run as the leader of a process group, so that all its processes can be killed at once."""
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    with log.open("a") as file:
        return subprocess.Popen(line, env=environment, stdout=file, stderr=file, start_new_session=True)


def run_to_the_end(line: list[str], log: Path) -> float:
    """Start a run, wait, and return the seconds from the first output on; raises `RuntimeError` if it fails."""
    process = start(line, log)
    _wait_for_work(process, Path(line[line.index("--output_dir") + 1]))
    began = time.monotonic()
    if process.wait():
        raise RuntimeError(f"The run failed:\n{log.read_text()[-3000:]}")
    return time.monotonic() - began


def kill_once(line: list[str], log: Path, output_dir: Path, rng: random.Random, span: float) -> Kill | None:
    """Start a run and kill it up to `span` seconds after it began to work; `None` if it ended before."""
    process = start(line, log)
    _wait_for_work(process, output_dir)
    began = time.monotonic()
    moment = began + rng.uniform(0, span)
    wait_for_writing = rng.random() < 0.5
    while process.poll() is None:
        now = time.monotonic()
        if now >= moment and (not wait_for_writing or _is_writing(output_dir) or now > moment + span):
            break
        time.sleep(0.0005)
    if process.poll() is not None:
        if process.returncode:
            raise RuntimeError(f"The run failed:\n{log.read_text()[-3000:]}")
        return None
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    shards = [path for path in output_dir.rglob("*.parquet") if path.is_file() and ".work" not in path.parts]
    parts = [path for path in (output_dir / ".work" / "parts").rglob("*.parquet") if path.is_file()]
    return Kill(round(time.monotonic() - began, 3), len(shards), len(parts), _is_writing(output_dir))


def _wait_for_work(process: subprocess.Popen, output_dir: Path) -> None:
    """Wait for the processes' notes on their progress: all that comes before is imports."""
    progress = output_dir / ".work" / "progress"
    before = set(progress.glob("*"))
    while process.poll() is None and not set(progress.glob("*")) - before:
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
    pipeline: Path,
    data: Path,
    reference: Path,
    num_kills: int,
    num_processes: int,
    span: float,
    seed: int,
    run_to_the_end: Callable[[list[str], Path], object] = run_to_the_end,
) -> dict:
    """Kill runs `num_kills` times, at most five times each, finish each one and compare it with `reference`."""
    rng = random.Random(seed)
    scratch.mkdir(parents=True, exist_ok=True)
    kills: list[Kill] = []
    runs = []
    while len(kills) < num_kills:
        name = f"run-{len(runs)}"
        output_dir, log, struck = scratch / name, scratch / f"{name}.log", 0
        line = command(pipeline, data, output_dir, num_processes)
        while struck < min(5, num_kills - len(kills)):
            kill = kill_once(line, log, output_dir, rng, span)
            if kill is None:
                break
            struck += 1
            kills.append(kill)
            print(f"{num_processes} process(es), {name}: killed {asdict(kill)}", flush=True)
        run_to_the_end(line, log)
        manifest = json.loads((output_dir / "manifest.json").read_text())
        result = {
            "num_kills": struck,
            "complete": manifest["complete"],
            "num_duplicates": duplicates(output_dir),
            "differences": differences(output_dir, reference),
        }
        runs.append(result)
        print(f"{num_processes} process(es), {name}: {result}", flush=True)
    return {
        "num_processes": num_processes,
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
    parser.add_argument("--num_images", type=int, default=1200)
    parser.add_argument("--num_shards", type=int, default=5)
    parser.add_argument("--single", type=int, default=10, help="Kills of one process.")
    parser.add_argument("--two_processes", type=int, default=10, help="Kills of two processes.")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory(prefix="explain-kill-matrix-") as folder:
        scratch = Path(folder)
        pipeline, data = prepare(scratch, args.num_images, args.num_shards)
        reference = scratch / "reference"
        span = run_to_the_end(command(pipeline, data, reference, 1), scratch / "reference.log") / 3
        rows = (("one", args.single, 1), ("two", args.two_processes, 2))
        results = [
            kill_chain(
                scratch / name,
                pipeline,
                data,
                reference,
                count,
                num_processes,
                span / num_processes,
                args.seed + index,
            )
            for index, (name, count, num_processes) in enumerate(rows)
            if count > 0
        ]
    report = {
        "command": " ".join(["python", *sys.argv]),
        "num_images": args.num_images,
        "num_shards": args.num_shards,
        **{name: all(result[name] for result in results) for name in ("complete", "bit_identical")},
        "num_duplicates": sum(result["num_duplicates"] for result in results),
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps({**report, "results": results}, indent=1) + "\n")
    is_good = report["complete"] and report["bit_identical"] and not report["num_duplicates"]
    print(f"{'All' if is_good else 'NOT ALL'} complete and bit-identical; written to {args.output}.")
    sys.exit(0 if is_good else 1)


if __name__ == "__main__":
    main()
