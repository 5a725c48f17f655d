#!/usr/bin/env python
"""One of two workers ten times slower than the other: how long the whole takes, over what it could take at best.

The workers are real processes of the real engines, and make real chunks; only the model is a pause, so that other work
on the machine changes little. Counted from the moment both are there: `ideal` is the work that is left then over the
sum of the speeds. `static` is the same with nobody helping: each process makes its own stretch and no more.

    OMP_NUM_THREADS=1 python benchmarks/explain_slow_worker.py --output benchmarks/results/explain_slow_worker.json
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mediffusion_diffusers import examples
from mediffusion_diffusers.atomic_files import write_json
from mediffusion_diffusers.data.phantom import prepare_phantoms
from mediffusion_diffusers.device_options import DeviceOptions
from mediffusion_diffusers.explanation import dataset_runner
from mediffusion_diffusers.explanation.chunk import Picture, Rows
from mediffusion_diffusers.explanation.plan import ExplanationJob
from mediffusion_diffusers.pipelines.source import PipelineSource
from mediffusion_diffusers.requests.counterfactuals import CounterfactualExplainer, ExplanationRequest


SLOWER = 10
TWO_PROCESSES = (
    *("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"),
    *("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"),
)


@dataclass(frozen=True)
class PausingSource(PipelineSource):
    """A pipeline whose explanations are pauses; who loads it first is the slow one.

    Args:
        notes: folder in which every worker notes its batches.
        pause: seconds per image of the faster worker.
    """

    notes: str = ""
    pause: float = 0.0

    def load(self) -> tuple[Any, Any]:
        """As `PipelineSource`, and prepare this process."""
        if not any(name == f"driver-{os.getpid()}" for name in os.listdir(self.notes)):
            pause_instead(Path(self.notes), self.pause)
        return super().load()


def pause_instead(notes: Path, pause: float) -> None:
    """Let this process pause instead of asking the model."""
    try:
        (notes / "slow").touch(exist_ok=False)
        factor = SLOWER
    except FileExistsError:
        factor = 1
    path = notes / f"{os.getpid()}.jsonl"

    def explain(self: CounterfactualExplainer, shard: str, pictures: list[Picture]) -> Callable[[], Rows]:
        began = time.time()
        time.sleep(pause * factor * len(pictures))
        batch = {"began": began, "ended": time.time(), "images": len(pictures), "slow": factor > 1}
        with path.open("a") as file:
            file.write(json.dumps(batch) + "\n")
        return lambda: [self.row(shard, picture.row) for picture in pictures]

    CounterfactualExplainer.explain = explain  # type: ignore[method-assign]


def job(data: Path, output_dir: Path, chunk_rows: int) -> ExplanationJob:
    """All phantoms, without a bar."""
    request = ExplanationRequest(away=("Cardiomegaly",), controls=False)
    return ExplanationJob(
        str(data), output_dir, request, batch_size=4, chunk_rows=chunk_rows, num_tasks=1, show_progress=False
    )


def run_worker(args: argparse.Namespace) -> None:
    """What one of the launched processes does, or the driver of Ray's actors."""
    source = PausingSource(str(examples.checkpoint()), None, DeviceOptions(device="cpu"), str(args.notes), args.pause)
    work = job(args.data, args.notes / "out", args.chunk_rows)
    if args.engine == "ray":
        from mediffusion_diffusers.explanation.ray_engine import explain_dataset_with_ray

        (args.notes / f"driver-{os.getpid()}").touch()
        explain_dataset_with_ray(source, work, 2)
        return
    pipe, device = source.load()
    if args.engine == "static":
        dataset_runner._dealt = (
            lambda todo, place, *_: iter(  # type: ignore[assignment]
                todo[len(todo) * place[0] // place[1] : len(todo) * (place[0] + 1) // place[1]]
            )
        )
    dataset_runner.explain_dataset(pipe, work, device)


def over_ideal(notes: Path, num_images: int, pause: float) -> dict[str, float]:
    """Wall time over the ideal, from the moment the second worker was there."""
    batches = [[json.loads(line) for line in path.read_text().splitlines()] for path in notes.glob("*.jsonl")]
    assert len(batches) == 2 and {own[0]["slow"] for own in batches} == {True, False}
    both = max(own[0]["began"] for own in batches)
    before = sum(batch["images"] for own in batches for batch in own if batch["ended"] <= both)
    wall = max(path.stat().st_mtime for path in (notes / "out").rglob("*.parquet")) - both
    ideal = (num_images - before) * pause / (1 + 1 / SLOWER)
    return {"wall_seconds": round(wall, 2), "ideal_seconds": round(ideal, 2), "over_ideal": round(wall / ideal, 4)}


def main() -> None:
    """Run each engine and write what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_images", type=int, default=320)
    parser.add_argument("--pause", type=float, default=0.1, help="Seconds per image of the faster worker.")
    parser.add_argument("--chunk_rows", type=int, default=8)
    parser.add_argument("--engines", nargs="+", default=["static", "accelerate", "ray"])
    parser.add_argument("--output", type=Path, required=True)
    for hidden in ("--engine", "--data", "--notes"):
        parser.add_argument(hidden, type=str if hidden == "--engine" else Path, default=None, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.engine is not None:
        run_worker(args)
        return
    results = {}
    with tempfile.TemporaryDirectory(prefix="explain-slow-worker-") as folder:
        data = Path(folder) / "data"
        prepare_phantoms(data, args.num_images, 0, 0, image_size=64, show_progress=False)
        for engine in args.engines:
            notes = Path(folder) / engine
            notes.mkdir()
            launch = () if engine == "ray" else TWO_PROCESSES
            places = ("--engine", engine, "--data", str(data), "--notes", str(notes))
            environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
            subprocess.run([sys.executable, *launch, *sys.argv, *places], env=environment, check=True)
            results[engine] = over_ideal(notes, args.num_images, args.pause)
            print(f"{engine}: {results[engine]}", flush=True)
    settings = {name: getattr(args, name) for name in ("num_images", "pause", "chunk_rows")}
    report = {"command": shlex.join(["python", *sys.argv]), **settings, "times_slower": SLOWER, "engines": results}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(args.output, report)


if __name__ == "__main__":
    main()
