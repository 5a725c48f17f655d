"""Kill a training by SIGKILL at random moments, start it again each time, and compare with a run left alone.

Run by `make kill-matrix`; pytest collects a small version (`test_interruption.py`). Weights, moving average, optimizer
state, metrics (but for what the clock says) and the final pipeline must be bit-identical. About every second kill
waits until a checkpoint is being written. A count of 0 leaves a part out.

    python tests/training/kill_matrix.py --output benchmarks/results/kill_matrix.json
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))
from support.fork_server import Started  # noqa: E402
from support.processes import TWO_PROCESSES, kill_tree, running_with, start, wait_to_kill  # noqa: E402


SCRIPT = ROOT / "training" / "train_joint.py"
Starter = Callable[[list[str], Path], subprocess.Popen | Started]
# Dropout, a classifier that starts within a logging window, an accumulated batch: all that could depend on the past.
RECIPE = (
    *("--resolution", "16", "--vae", "space_to_depth", "--block_out_channels", "16", "32", "--layers_per_block", "1"),
    *("--down_block_types", "DownBlock2D", "AttnDownBlock2D", "--norm_num_groups", "4", "--attention_head_dim", "8"),
    *("--train_batch_size", "8", "--labelled_batch_size", "3", "--learning_rate", "1e-3", "--ema_decay", "0.9"),
    *("--classifier_start_step", "5", "--classifier_every", "2", "--classifier_noise_prob", "0.5"),
    *("--lr_scheduler", "cosine", "--lr_warmup_steps", "3", "--random_shift", "1", "--logging_steps", "4"),
    *("--num_sample_images", "2", "--sample_inference_steps", "2", "--checkpoints_total_limit", "2"),
)
TIMINGS = ("seconds", "images_per_second", "data_wait_share")


@dataclass
class Kill:
    """One kill: when it struck, and what it left.

    Attributes:
        seconds: after the first sign of training.
        newest_checkpoint: name of the newest checkpoint folder then, "" for none.
        while_writing: whether a checkpoint was being written.
    """

    seconds: float
    newest_checkpoint: str
    while_writing: bool


def command(data: Path, output_dir: Path, num_processes: int, num_steps: int, extra: Sequence[str] = ()) -> list[str]:
    """The command line of every start."""
    launch = [sys.executable, *(TWO_PROCESSES if num_processes == 2 else ())]
    steps = ("--max_train_steps", str(num_steps), "--validation_steps", str(num_steps // 2))
    places = ("--dataset_dir", str(data), "--output_dir", str(output_dir), "--resume_from_checkpoint", "latest")
    return [*launch, str(SCRIPT), *RECIPE, *steps, "--checkpointing_steps", "3", *places, *extra]


def run_to_the_end(line: list[str], log: Path) -> None:
    """Start a run and wait; raises `RuntimeError` if it fails."""
    if start(line, log).wait():
        raise RuntimeError(f"The run failed:\n{log.read_text()[-3000:]}")


def kill_once(
    line: list[str], log: Path, output_dir: Path, rng: random.Random, span: float, start: Starter = start
) -> Kill | None:
    """Start a run and kill it up to `span` seconds after it began to train; `None` if it ended before."""
    config = output_dir / "training_config.json"
    before = config.stat().st_mtime_ns if config.exists() else 0
    process = start(line, log)
    while process.poll() is None and (config.stat().st_mtime_ns if config.exists() else 0) == before:
        time.sleep(0.002)
    began = time.monotonic()
    wait_to_kill(process, rng, span, lambda: _is_writing(output_dir))
    if process.poll() is not None:
        if process.returncode:
            raise RuntimeError(f"The run failed:\n{log.read_text()[-3000:]}")
        return None
    kill_tree(process)
    assert not running_with(output_dir), "A process that trains has survived and would train on beside the next start."
    names = sorted(output_dir.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    return Kill(round(time.monotonic() - began, 4), names[-1].name if names else "", _is_writing(output_dir))


def _is_writing(output_dir: Path) -> bool:
    return any(path.is_dir() for path in output_dir.glob(".checkpoint-*.partial"))


def differences(output_dir: Path, reference: Path, num_steps: int) -> list[str]:
    """Names of what is not bit-identical in two finished runs."""
    names = [f"checkpoint-{num_steps}/{file}.safetensors" for file in ("unet", "ema", "optimizer")]
    names += [f"checkpoint-{num_steps}/state.json", "unet/diffusion_pytorch_model.safetensors", "unet/config.json"]
    names += [path.relative_to(reference).as_posix() for path in sorted((reference / "samples").iterdir())]
    wrong = [name for name in names if (output_dir / name).read_bytes() != (reference / name).read_bytes()]
    return wrong + (["metrics.jsonl"] if _metrics(output_dir) != _metrics(reference) else [])


def _metrics(folder: Path) -> list[dict]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in record.items() if name not in TIMINGS} for record in records]


def kill_chain(
    scratch: Path,
    data: Path,
    num_kills: int,
    num_processes: int,
    num_steps: int,
    seed: int,
    extra: Sequence[str] = (),
    run_to_the_end: Callable[[list[str], Path], None] = run_to_the_end,
    start: Starter = start,
) -> dict:
    """Kill runs `num_kills` times, at most five times each, finish each one and compare it with one left alone.

    `start` starts the command lines of the runs that are killed.
    """
    rng = random.Random(seed)
    scratch.mkdir(parents=True, exist_ok=True)
    reference = scratch / "reference"
    run_to_the_end(command(data, reference, num_processes, num_steps, extra), scratch / "reference.log")
    records = _metrics_with_times(reference)
    span = sum(record["seconds"] for record in records) / 3
    world_size = json.loads((reference / "training_config.json").read_text())["num_processes"]
    assert world_size == num_processes, f"{world_size} processes ran instead of {num_processes}"

    kills: list[Kill] = []
    runs = []
    while len(kills) < num_kills:
        name = f"run-{len(runs)}"
        line = command(data, scratch / name, num_processes, num_steps, extra)
        log, struck = scratch / f"{name}.log", 0
        while struck < min(5, num_kills - len(kills)):
            kill = kill_once(line, log, scratch / name, rng, span, start)
            if kill is None:
                break
            struck += 1
            kills.append(kill)
            print(f"{num_processes} process(es), {name}: killed {asdict(kill)}", flush=True)
        run_to_the_end(line, log)
        runs.append({"num_kills": struck, "differences": differences(scratch / name, reference, num_steps)})
        print(f"{num_processes} process(es), {name}: {runs[-1]}", flush=True)
    return {
        "num_processes": num_processes,
        "num_train_steps": num_steps,
        "arguments": list(extra),
        "num_kills": len(kills),
        "num_kills_while_writing_a_checkpoint": sum(kill.while_writing for kill in kills),
        "bit_identical": not any(run["differences"] for run in runs),
        "runs": runs,
        "kills": [asdict(kill) for kill in kills],
    }


def _metrics_with_times(folder: Path) -> list[dict]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [record for record in records if record["kind"] == "train"]


def write_report(path: Path, results: list[dict]) -> dict:
    """Write what has been measured so far."""
    report = {
        "command": " ".join(["python", *sys.argv]),
        "bit_identical": all(result["bit_identical"] for result in results),
        "results": results,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")
    return report


def main() -> None:
    """Run the matrix and write what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num_steps", type=int, default=40)
    parser.add_argument("--single", type=int, default=15, help="Kills of one process.")
    parser.add_argument("--accumulated", type=int, default=10, help="Kills of one process that accumulates gradients.")
    parser.add_argument("--two_processes", type=int, default=6, help="Kills of two processes.")
    args = parser.parse_args()
    if args.single + args.accumulated + args.two_processes == 0:
        parser.error("all counts are 0: nothing would be killed")

    from mediffusion_diffusers.data.phantom import prepare_phantoms

    with tempfile.TemporaryDirectory(prefix="kill-matrix-") as folder:
        scratch = Path(folder)
        prepare_phantoms(scratch / "data", 48, 12, 0, image_size=16, show_progress=False)
        rows = (("two", args.two_processes, 2, ()), ("one", args.single, 1, ()))
        rows = (*rows, ("accumulated", args.accumulated, 1, ("--gradient_accumulation_steps", "2")))
        results = []
        for index, (name, count, num_processes, extra) in enumerate(rows):
            if count > 0:
                places = (scratch / name, scratch / "data")
                results.append(kill_chain(*places, count, num_processes, args.num_steps, args.seed + index, extra))
                report = write_report(args.output, results)
    print(f"{'All' if report['bit_identical'] else 'NOT ALL'} bit-identical; written to {args.output}.")
    sys.exit(0 if report["bit_identical"] else 1)


if __name__ == "__main__":
    main()
