#!/usr/bin/env python
"""Throughput of explain_dataset.py: images per second and core with one and two processes, and how it scales.

The same images, in four shards, are explained by one process and by two, in turns; what counts are medians over the
rounds. Every process has one thread. Wall-clock time says what a user waits for, and on a machine that does other
things too how the operating system shares it out; CPU time says what an image costs. Each scaling ratio is images per
second and process with two processes over those with one, 1 at best. Imports and the loading of the pipeline are left
out.

    OMP_NUM_THREADS=1 python benchmarks/explain_dataset.py --pretrained_model_name_or_path demo/mediffusion-phantom \
        --dataset demo/phantoms --away Cardiomegaly --output benchmarks/results/explain_dataset.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate import Accelerator
from diffusers import __version__ as diffusers_version

from mediffusion_diffusers import MediffusionCounterfactualPipeline
from mediffusion_diffusers.atomic_files import write_json
from mediffusion_diffusers.data.schema import parquet_files
from mediffusion_diffusers.explanation import chunk
from mediffusion_diffusers.explanation.dataset_runner import explain_dataset
from mediffusion_diffusers.explanation.plan import ExplanationJob
from mediffusion_diffusers.requests.counterfactuals import CounterfactualExplainer, ExplanationRequest


NUM_SHARDS = 4
PARTS = ("pipeline", "decoding", "encoding", "engine")  # of the CPU time; the engine is all the rest
LAUNCH = {
    1: (),
    2: (
        *("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"),
        *("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"),
    ),
}


def cut_shards(dataset_dir: Path, split: str, num_images: int, folder: Path) -> None:
    """Write the first images of a prepared dataset as `NUM_SHARDS` files of the same number of rows."""
    table = pa.concat_tables(pq.read_table(path) for path in parquet_files(dataset_dir, split))
    size = num_images // NUM_SHARDS
    if len(table) < size * NUM_SHARDS or size < 1:
        raise ValueError(f"`num_images` must lie in [{NUM_SHARDS}, {len(table)}], but got {num_images}.")
    folder.mkdir()
    for index in range(NUM_SHARDS):
        pq.write_table(table.slice(index * size, size), folder / f"{index}.parquet")


def timed(owner: Any, name: str) -> list[float]:
    """Let a function of a module or class note the CPU time of each call, of the thread that makes it."""
    call, seconds = getattr(owner, name), []

    def noting(*arguments: Any, **kwargs: Any) -> Any:
        began = time.thread_time()  # other threads decode and encode meanwhile
        try:
            return call(*arguments, **kwargs)
        finally:
            seconds.append(time.thread_time() - began)

    setattr(owner, name, noting)
    return seconds


def measure_process(args: argparse.Namespace) -> None:
    """What one of the launched processes does: explain, and note what it took, of which how much for what."""
    pipe = MediffusionCounterfactualPipeline.from_pretrained(args.pretrained_model_name_or_path)
    pipe.set_progress_bar_config(disable=True)
    inside = {
        "pipeline": timed(MediffusionCounterfactualPipeline, "__call__"),
        "decoding": timed(chunk, "read_picture"),
        "encoding": timed(CounterfactualExplainer, "_encoded"),
    }
    accelerator = Accelerator()
    request = ExplanationRequest(away=tuple(args.away), controls=args.controls)
    request.schema()  # imports `datasets`
    job = ExplanationJob(
        args.shards,
        args.run_dir / "out",
        request,
        batch_size=args.batch_size,
        chunk_rows=2 * args.batch_size,
        show_progress=False,
    )
    accelerator.wait_for_everyone()
    began, cpu_began = time.perf_counter(), time.process_time()
    explain_dataset(pipe, job)
    took = {
        "wall_seconds": time.perf_counter() - began,
        "cpu_seconds": time.process_time() - cpu_began,
        **{f"{part}_cpu_seconds": sum(seconds) for part, seconds in inside.items()},
        "num_processes": accelerator.num_processes,
    }
    (args.run_dir / f"{accelerator.process_index}.json").write_text(json.dumps(took))


def run_once(num_processes: int, shards: Path, num_images: int, run_dir: Path) -> dict[str, float]:
    """Explain all shards with so many processes and add up what they noted."""
    run_dir.mkdir()
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    line = [sys.executable, *LAUNCH[num_processes], *sys.argv, "--shards", str(shards), "--run_dir", str(run_dir)]
    subprocess.run(line, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    notes = [json.loads(path.read_text()) for path in run_dir.glob("*.json")]
    assert len(notes) == num_processes and all(note["num_processes"] == num_processes for note in notes)
    cpu_seconds = sum(note["cpu_seconds"] for note in notes)
    shares = {part: sum(note[f"{part}_cpu_seconds"] for note in notes) / cpu_seconds for part in PARTS[:-1]}
    output_bytes = sum(path.stat().st_size for path in (run_dir / "out").rglob("*.parquet"))
    return {
        "images_per_second_and_core": num_images / max(note["wall_seconds"] for note in notes) / num_processes,
        "images_per_cpu_second": num_images / cpu_seconds,
        **{f"{part}_share_of_cpu": share for part, share in shares.items()},
        "engine_share_of_cpu": 1.0 - sum(shares.values()),
        "output_bytes_per_image": output_bytes / num_images,
    }


def main() -> None:
    """Measure in turns and write what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pretrained_model_name_or_path", required=True)
    parser.add_argument("--dataset", type=Path, required=True, help="Prepared dataset.")
    parser.add_argument("--split", default="test")
    parser.add_argument("--away", nargs="+", required=True)
    parser.add_argument("--num_images", type=int, default=128)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--controls", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--num_rounds", type=int, default=5)
    parser.add_argument("--note", default="", help="What else the machine did meanwhile.")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--shards", default=None, help=argparse.SUPPRESS)
    parser.add_argument("--run_dir", type=Path, default=None, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run_dir is not None:
        measure_process(args)
        return

    num_images = args.num_images // NUM_SHARDS * NUM_SHARDS
    rounds: dict[int, list[dict[str, float]]] = {1: [], 2: []}
    loads = []
    with tempfile.TemporaryDirectory(prefix="explain-benchmark-") as folder:
        shards = Path(folder) / "shards"
        cut_shards(args.dataset, args.split, num_images, shards)
        for index in range(args.num_rounds):
            for num_processes in (1, 2) if index % 2 == 0 else (2, 1):
                loads.append(round(os.getloadavg()[0], 2))
                run_dir = Path(folder) / f"{index}-{num_processes}"
                rounds[num_processes].append(run_once(num_processes, shards, num_images, run_dir))
                print(f"{num_processes} process(es): {rounds[num_processes][-1]}", flush=True)

    def median(num_processes: int, name: str) -> float:
        return statistics.median(each[name] for each in rounds[num_processes])

    rates = ("images_per_second_and_core", "images_per_cpu_second")
    report = {
        "command": shlex.join(["python", *sys.argv]),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {"torch": torch.__version__, "diffusers": diffusers_version},
        "note": args.note,
        "load_averages_before_each_run": loads,
        "num_images": num_images,
        "scaling_ratio": {name: round(median(2, name) / median(1, name), 4) for name in rates},
        **{
            f"{name}_with_{count}": round(median(count, name), 4)
            for name in (*rates, *(f"{part}_share_of_cpu" for part in PARTS), "output_bytes_per_image")
            for count in rounds
        },
        "rounds": {str(count): values for count, values in rounds.items()},
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(args.output, report)
    print(json.dumps({name: value for name, value in report.items() if name != "rounds"}, indent=1))


if __name__ == "__main__":
    main()
