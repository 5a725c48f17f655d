#!/usr/bin/env python
"""What it takes to prepare a dataset of the size of ChestX-ray14, killed again and again.

Writes files in the official layout (label file, lists, twelve folders of PNG files), converts them with `mediffusion
prepare chestxray14` in a process of its own, and measures that process and its workers: seconds, CPU seconds, and the
largest memory of any of them. Ratios compare runs of the same call, in turns; `cpu_ratio` says what they could be at
most: where it is 1, two processes do no more work than one and take half of the time on two free cores.

    OMP_NUM_THREADS=1 python benchmarks/prepare_at_size.py --output benchmarks/results/prepare_at_size.json
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mediffusion_diffusers.data.pictures import encode_png
from mediffusion_diffusers.data.schema import load_info


OFFICIAL_COUNT = 112_120
NUM_FOLDERS = 12
IMAGES_PER_PATIENT = 4
DIFFERENT_PICTURES = 64
COLUMNS = "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position"
# Run apart, so that its workers' usage is its own: `resource` knows the largest child only over a process's life.
CONVERT = """
import json, resource, sys, time
from mediffusion_diffusers.commands.mediffusion import main
notes, began = sys.argv.pop(1), time.monotonic()
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
with open(notes, "w") as file:
    json.dump({
        "seconds": round(time.monotonic() - began, 2),
        "cpu_seconds": round(sum(usage.ru_utime + usage.ru_stime for usage in usages), 2),
        "parent_mib": round(usages[0].ru_maxrss / 1024, 1),
        "largest_worker_mib": round(usages[1].ru_maxrss / 1024, 1),
    }, file)
"""


def pictures(side: int) -> list[bytes]:
    """Some different grey PNG files with the smoothness and the noise of radiographs."""
    found = []
    for seed in range(DIFFERENT_PICTURES):
        rng = np.random.default_rng(seed)
        coarse = Image.fromarray(rng.integers(40, 220, (8, 8), dtype=np.uint8)).resize((side, side), Image.BICUBIC)
        noisy = np.asarray(coarse, np.float32) + rng.normal(0, 2, (side, side))
        found.append(encode_png(Image.fromarray(noisy.clip(0, 255).astype(np.uint8))))
    return found


def write_official_layout(folder: Path, count: int, side: int) -> None:
    """The official release in small: `images_001` ... `images_012`, lists and labels; a tenth of the patients test."""
    contents, names, rows = pictures(side), [], []
    for number in range(1, NUM_FOLDERS + 1):
        (folder / f"images_{number:03d}" / "images").mkdir(parents=True)
    for index in range(count):
        patient, follow_up = divmod(index, IMAGES_PER_PATIENT)
        name = f"{patient:08d}_{follow_up:03d}.png"
        place = folder / f"images_{1 + index * NUM_FOLDERS // count:03d}" / "images" / name
        place.write_bytes(contents[index % len(contents)])
        finding = "Cardiomegaly|Effusion" if index % 3 == 0 else "No Finding"
        names.append(name)
        rows.append(f"{name},{finding},{follow_up},{patient},{40 + patient % 40},{'FM'[patient % 2]},PA")
    (folder / "Data_Entry_2017.csv").write_text("\n".join([COLUMNS, *rows]) + "\n")
    first_test = count * 9 // 10 // IMAGES_PER_PATIENT * IMAGES_PER_PATIENT
    (folder / "train_val_list.txt").write_text("\n".join(names[:first_test]) + "\n")
    (folder / "test_list.txt").write_text("\n".join(names[first_test:]) + "\n")


def start(source: Path, target: Path, num_workers: int, notes: Path, *options: str) -> subprocess.Popen[bytes]:
    """Begin a conversion."""
    places = ("--source_dir", str(source), "--output_dir", str(target), "--num_workers", str(num_workers))
    line = [sys.executable, "-c", CONVERT, str(notes), "prepare", "chestxray14", *places, *options]
    return subprocess.Popen(
        line, stdout=subprocess.DEVNULL, stderr=notes.with_suffix(".log").open("wb"), start_new_session=True
    )


def convert(source: Path, target: Path, num_workers: int, *options: str) -> dict[str, float]:
    """A whole conversion, and what it took."""
    notes = target.with_suffix(".json")
    code = start(source, target, num_workers, notes, "--overwrite", *options).wait()
    assert code == 0, f"Exit code {code}: {notes.with_suffix('.log').read_text()[-2000:]}"
    return json.loads(notes.read_text())


def digest(folder: Path) -> str:
    """SHA-256 over all files of a dataset, with their names."""
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            total.update(path.relative_to(folder).as_posix().encode() + hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def compare_processes(source: Path, scratch: Path, rounds: int, *options: str) -> dict[str, Any]:
    """One process and two, in turns."""
    runs: dict[str, list[dict[str, float]]] = {"one": [], "two": []}
    for _ in range(rounds):
        for name, num_workers in (("one", 1), ("two", 2)):
            runs[name].append(convert(source, scratch / name, num_workers, *options))
    of = {(name, key): statistics.median(run[key] for run in own) for name, own in runs.items() for key in own[0]}
    # A worker that its parent did not wait for, as happens on a busy machine, is missing in the sum.
    most = {name: max(run["cpu_seconds"] for run in own) for name, own in runs.items()}
    return {
        "runs": runs,
        "speed_ratio": round(of["one", "seconds"] / of["two", "seconds"], 3),
        "cpu_ratio": round(most["two"] / most["one"], 3),
        "same_bytes": digest(scratch / "one") == digest(scratch / "two"),
    }


def kill_again_and_again(source: Path, target: Path, kills: int, num_parts: int, seed: int) -> dict[str, Any]:
    """Kill the run at random moments, so many times, and then let it end."""
    rng, course = random.Random(seed), []
    parts = target.parent / f".{target.name}.writing" / "parts"

    def finished() -> int:
        return len(list(parts.glob("*-*.json")))

    while len(course) < kills:
        run = start(source, target, 2, target.with_suffix(".json"))
        enough = finished() + rng.randint(1, max(num_parts // (2 * kills), 1))
        while finished() < enough and run.poll() is None:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.3))
        if run.poll() is not None:  # it ended by itself, because this loop got no turn: once more from the beginning
            shutil.rmtree(target)
            continue
        # Every other time the parent alone: its workers must end by themselves, and leave the folder to the next run.
        alone = len(course) % 2 == 1
        (os.kill if alone else os.killpg)(run.pid, signal.SIGKILL)
        run.wait()
        time.sleep(1.0)
        course.append({"killed": "parent" if alone else "all processes", "finished_parts": finished()})
        print(course[-1], flush=True)
    code = start(source, target, 2, target.with_suffix(".json")).wait()
    assert code == 0, f"Exit code {code}: {target.with_suffix('.log').read_text()[-2000:]}"
    return {"num_kills": kills, "num_parts": num_parts, "course": course}


def main() -> None:
    """Measure one after the other and write what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_images", type=int, default=OFFICIAL_COUNT, help="Of the whole release, in small.")
    parser.add_argument("--side", type=int, default=32, help="Of the small files, in pixels.")
    parser.add_argument("--few_images", type=int, default=1000)
    parser.add_argument("--true_size_images", type=int, default=2000, help="Of 1024 px, reduced to 256.")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="prepare-at-size-") as folder:
        scratch = Path(folder)
        sources = {}
        for name, count, side in (
            ("few", args.few_images, args.side),
            ("all", args.num_images, args.side),
            ("true_size", args.true_size_images, 1024),
        ):
            sources[name] = scratch / f"source-{name}"
            write_official_layout(sources[name], count, side)
            print(f"written: {count:,} files of {side} px", flush=True)
        report: dict[str, Any] = {"command": shlex.join(["python", *sys.argv])}
        report["settings"] = {key: value for key, value in vars(args).items() if key != "output"}

        true_size = compare_processes(sources["true_size"], scratch, args.rounds, "--image_size", "256")
        cpu = statistics.median(run["cpu_seconds"] for run in true_size["runs"]["one"])
        true_size["cpu_milliseconds_per_image"] = round(1000 * cpu / args.true_size_images, 2)
        true_size["core_hours_of_the_whole_release"] = round(cpu / args.true_size_images * OFFICIAL_COUNT / 3600, 2)
        report["true_size"] = true_size
        print(f"true size: {true_size}", flush=True)

        few = convert(sources["few"], scratch / "few", 2)
        whole = convert(sources["all"], scratch / "whole", 2)
        assert sum(load_info(scratch / "whole").num_rows.values()) == args.num_images
        report["memory"] = {"few": {"images": args.few_images, **few}, "all": {"images": args.num_images, **whole}}
        print(f"memory: {report['memory']}", flush=True)

        num_parts = len(list((scratch / "whole" / "data").iterdir()))
        killed = kill_again_and_again(sources["all"], scratch / "killed", args.kills, num_parts, seed=0)
        killed["same_bytes_as_without"] = digest(scratch / "killed") == digest(scratch / "whole")
        killed["left_behind"] = sorted(path.name for path in scratch.glob(".*"))
        report["killed"] = killed
        print(f"killed: {killed}", flush=True)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
