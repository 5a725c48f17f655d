#!/usr/bin/env python
"""What only a GPU can show: the parts of `gpu.sh`, one after another, each into the same JSON.

- *tests*: those marked `gpu`.
- *steps*: the unguided, our guided and the authors' step by precision, batch and layout.
- *training*: joint steps with their peak memory, in float32, TF32 and bfloat16, beside a plain `UNet2DModel`'s.
- *explaining*: images per second of `explain_dataset`, from PNG to PNG.
- *compiled*: the unguided and our guided step by `torch.compile`.
- *preset*: ten minutes of `train_joint.py` with a preset, if a prepared dataset is given; beyond the ten minutes.

Times are medians of wall-clock seconds with the device synchronised around each step. Weights are random, which
changes no cost. The JSON is written after every part; a part that fails is named in it, and the exit code is then 1;
what finds no time left says so. Without a GPU everything runs at the smallest size, so that the way through it is
known to work.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DDIMScheduler
from edit_cost import rounded
from guided_steps import SHAPES, GuidanceSteps, build_unet, build_vae
from train_step import diffusion_batch, joint_side, labelled_batch, plain_side

from mediffusion_diffusers import MediffusionCounterfactualPipeline, SpaceToDepthAutoencoder
from mediffusion_diffusers.atomic_files import write_json
from mediffusion_diffusers.data.phantom import prepare_phantoms
from mediffusion_diffusers.device import pick_device, switch_tf32
from mediffusion_diffusers.explanation.dataset_runner import explain_dataset
from mediffusion_diffusers.explanation.plan import ExplanationJob
from mediffusion_diffusers.metrics_log import read_metrics
from mediffusion_diffusers.models.presets import PAPER_NOISE_SCHEDULE
from mediffusion_diffusers.requests.counterfactuals import ExplanationRequest


ROOT = Path(__file__).parents[1]
PRECISIONS: dict[str, tuple[torch.dtype, bool]] = {
    "float32": (torch.float32, False),
    "tf32": (torch.float32, True),
    "bfloat16": (torch.bfloat16, False),
}


class Bench:
    """The device, the size, and the clock.

    Args:
        device: where to measure.
        tiny: the smallest shapes and a round of each.
        minutes: after which nothing more is measured.
    """

    def __init__(self, device: torch.device, tiny: bool, minutes: float = 10):
        self.deadline = time.perf_counter() + 60 * minutes
        self.device, self.tiny = device, tiny
        self.shape = "demo" if tiny else "paper"
        self.batch_sizes = (1, 2) if tiny else (1, 8, 32)
        self.precisions = {name: value for name, value in PRECISIONS.items() if name != "tf32" or not tiny}

    def measure(self, step: Callable[[], Any]) -> dict[str, float] | str:
        """Median seconds and peak memory of a step, or why there are none."""
        if time.perf_counter() > self.deadline:
            return "no time left"
        is_cuda = self.device.type == "cuda"
        seconds: list[float] = []
        try:
            step()  # allocations, choice of kernels, compilation
            if is_cuda:
                torch.cuda.reset_peak_memory_stats()
            began = time.perf_counter()
            while len(seconds) < (1 if self.tiny else 5) or (len(seconds) < 30 and time.perf_counter() - began < 2):
                self._synchronize()
                started = time.perf_counter()
                step()
                self._synchronize()
                seconds.append(time.perf_counter() - started)
                if self.tiny:
                    break
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            return "out of memory"
        peak = {"peak_megabytes": torch.cuda.max_memory_allocated() / 2**20} if is_cuda else {}
        return {"seconds": statistics.median(seconds), **peak}

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def run_tests(bench: Bench, args: argparse.Namespace) -> dict[str, Any]:
    """The tests marked `gpu`, in a process of their own."""
    line = [sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", "tests/devices"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=240)
    said = done.stdout.strip().splitlines()
    failed = [text for text in said if text.startswith(("FAILED", "ERROR"))]
    if done.returncode not in (0, 5):
        raise RuntimeError("; ".join(failed) or done.stdout[-500:] + done.stderr[-500:])
    return {"summary": said[-1] if said else ""}


def measure_steps(bench: Bench, args: argparse.Namespace) -> dict[str, Any]:
    """Kinds of step by precision, layout and batch; then compiled ones."""
    figures: dict[str, Any] = {}
    for precision, (dtype, tf32) in bench.precisions.items():
        switch_tf32(tf32)
        unet = build_unet(bench.shape).to(bench.device, dtype)
        for layout in ("contiguous", "channels_last"):
            unet.to(memory_format=getattr(torch, f"{layout}_format" if layout == "contiguous" else layout))
            for size in bench.batch_sizes:
                steps = GuidanceSteps(unet, size)
                kinds = {"unguided": steps.unguided, "guided": steps.guided, "authors": steps.authors}
                if layout == "channels_last":
                    kinds.pop("authors")
                for kind, step in kinds.items():
                    figures[f"{kind}, {precision}, {layout}, batch {size}"] = bench.measure(step)
    switch_tf32(False)
    return {"steps": figures, "ratios": _step_ratios(bench, figures)}


def _step_ratios(bench: Bench, figures: dict[str, Any]) -> dict[str, float]:
    ratios = {}
    for precision in bench.precisions:
        for size in bench.batch_sizes:
            place = f"{precision}, contiguous, batch {size}"
            found = {kind: figures[f"{kind}, {place}"] for kind in ("unguided", "guided", "authors")}
            seconds = {kind: figure["seconds"] for kind, figure in found.items() if isinstance(figure, dict)}
            for one, other in (("guided", "unguided"), ("authors", "guided")):
                if {one, other} <= seconds.keys():
                    ratios[f"{one} / {other}, {place}"] = seconds[one] / seconds[other]
    return ratios


def measure_training(bench: Bench, args: argparse.Namespace) -> dict[str, Any]:
    """Steps per second of the joint step and of a plain diffusion step, with AdamW and moving average."""
    joint = SHAPES[bench.shape]
    config = {name: value for name, value in joint.items() if name != "num_labels" and "classifier" not in name}
    latent_shape = (config["in_channels"], config["sample_size"], config["sample_size"])
    size, labelled_size = (2, 2) if bench.tiny else (64, 32)
    scheduler = diffusers.DDPMScheduler(**PAPER_NOISE_SCHEDULE)
    figures: dict[str, Any] = {}
    for precision, (dtype, tf32) in bench.precisions.items():
        switch_tf32(tf32)
        with torch.device(bench.device):
            batch = diffusion_batch(latent_shape, size)
            labelled = labelled_batch(latent_shape, labelled_size, joint["num_labels"])
            sides = {
                "plain UNet2DModel": lambda batch=batch: plain_side(config, scheduler, batch),
                "diffusion alone": lambda batch=batch: joint_side(joint, scheduler, batch, None, True),
                "joint": lambda batch=batch, labelled=labelled: joint_side(joint, scheduler, batch, labelled, True),
            }
            for name, build in sides.items():
                side = build()
                with torch.autocast(bench.device.type, dtype, enabled=dtype != torch.float32):
                    figure = bench.measure(side.step)
                if isinstance(figure, dict):
                    figure["images_per_second"] = size / figure["seconds"]
                figures[f"{name}, {precision}"] = figure
                del side
    switch_tf32(False)
    return {"train_batch_size": size, "labelled_batch_size": labelled_size, "steps": figures}


def measure_explaining(bench: Bench, args: argparse.Namespace) -> dict[str, Any]:
    """Images per second of `explain_dataset`, decoding and encoding of pictures included."""
    size = 32 if bench.tiny else 256
    num_images, batch_size = (4, 2) if bench.tiny else (128, 32)
    unet = build_unet(bench.shape)
    vae = SpaceToDepthAutoencoder(in_channels=1, out_channels=1) if bench.tiny else build_vae()
    pipe = MediffusionCounterfactualPipeline(vae, unet, DDIMScheduler(**PAPER_NOISE_SCHEDULE, set_alpha_to_one=False))
    settings = {"num_inference_steps": 2 if bench.tiny else 7, "strength": 0.3, "guidance_scale": 10.0}
    unet.register_to_config(guidance_defaults=settings)
    figures: dict[str, Any] = {"num_images": num_images, "batch_size": batch_size, "image_size": size, **settings}
    with tempfile.TemporaryDirectory() as folder:
        prepare_phantoms(Path(folder) / "data", 0, 0, num_images, image_size=size, show_progress=False)
        for controls in (False, True):
            job = ExplanationJob(
                str(Path(folder) / "data"),
                Path(folder) / f"controls-{controls}",
                ExplanationRequest(away=(pipe.label_names[0],), controls=controls),
                split="test",
                batch_size=batch_size,
                show_progress=False,
            )
            summary = explain_dataset(pipe, job)
            name = "images_per_second_with_controls" if controls else "images_per_second"
            figures[name] = summary.images_per_second
            figures["num_failed"] = summary.counts["num_failed"]
    return figures


def measure_compiled(bench: Bench, args: argparse.Namespace) -> dict[str, Any]:
    """`torch.compile` of the U-Net at one batch size; Python alone at the smallest size, where nothing is compiled."""
    dtype = torch.float32 if bench.tiny else torch.bfloat16
    if time.perf_counter() > bench.deadline - (0 if bench.tiny else 120):
        return {"skipped": "no time left"}
    unet = build_unet(bench.shape).to(bench.device, dtype)
    steps = GuidanceSteps(unet, bench.batch_sizes[1])
    eager = {kind: bench.measure(getattr(steps, kind)) for kind in ("unguided", "guided")}
    steps.unet = torch.compile(unet, backend="eager" if bench.tiny else "inductor")
    result: dict[str, Any] = {"precision": str(dtype).removeprefix("torch."), "batch_size": bench.batch_sizes[1]}
    for kind, before in eager.items():
        began = time.perf_counter()
        getattr(steps, kind)()
        first_call = time.perf_counter() - began
        result[kind] = {"eager": before, "compiled": bench.measure(getattr(steps, kind)), "first_call": first_call}
    return result


def run_preset(bench: Bench, args: argparse.Namespace) -> dict[str, Any]:
    """Train with a preset for some minutes, ask it to stop, and say at which rate it went."""
    if args.dataset_dir is None:
        return {"skipped": "no --dataset_dir was given"}
    with tempfile.TemporaryDirectory() as folder:
        line = [sys.executable, "training/train_joint.py", "--preset", args.preset, "--output_dir", folder]
        line += ["--dataset_dir", args.dataset_dir, "--mixed_precision", "no" if bench.tiny else "bf16"]
        for name in ("labelled_split", "vae_path"):
            line += [] if getattr(args, name) is None else [f"--{name}", getattr(args, name)]
        with (Path(folder) / "log.txt").open("w") as log:
            process = subprocess.Popen([*line, "--logging_steps", "10"], cwd=ROOT, stdout=log, stderr=log)
            try:
                process.wait(args.preset_minutes * 60)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGTERM)
                process.wait(120)
        metrics = Path(folder) / "metrics.jsonl"
        train = [each for each in read_metrics(metrics) if each["kind"] == "train"] if metrics.is_file() else []
        if not train:
            raise RuntimeError((Path(folder) / "log.txt").read_text()[-500:])
        rates = [each["images_per_second"] for each in train[1:] or train]
        return {
            "preset": args.preset,
            "minutes": args.preset_minutes,
            "steps": train[-1]["step"],
            "images_per_second": statistics.median(rates),
            "first_and_last": [train[0], train[-1]],
        }


PARTS: dict[str, Callable[[Bench, argparse.Namespace], dict[str, Any]]] = {
    "tests": run_tests,
    "steps": measure_steps,
    "training": measure_training,
    "explaining": measure_explaining,
    "compiled": measure_compiled,
    "preset": run_preset,
}


def describe_machine(device: torch.device) -> dict[str, Any]:
    """The card and the versions that the figures belong to."""
    machine: dict[str, Any] = {
        "device": "cpu" if device.type == "cpu" else torch.cuda.get_device_name(device),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "threads": torch.get_num_threads(),
    }
    if device.type == "cuda":
        machine |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
        machine["memory_gigabytes"] = torch.cuda.get_device_properties(device).total_memory / 2**30
    return machine


def main() -> int:
    """Run the parts; 1 if one of them failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=tuple(PARTS), default=list(PARTS))
    parser.add_argument("--tiny", action="store_true", help="The smallest size; always so without a GPU.")
    parser.add_argument("--dataset_dir", default=None, help="Prepared dataset of the part `preset`.")
    parser.add_argument("--labelled_split", default=None, help="Its labelled share.")
    parser.add_argument("--vae_path", default=None, help="Its autoencoder.")
    parser.add_argument("--preset", default="chestxray14-2pct")
    parser.add_argument("--preset_minutes", type=float, default=10)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "gpu.json")
    args = parser.parse_args()
    device = pick_device("cuda" if torch.cuda.is_available() else "cpu")
    bench = Bench(device, args.tiny or device.type == "cpu")
    report: dict[str, Any] = {
        "command": shlex.join(["benchmarks/gpu.sh", *sys.argv[1:]]),
        "machine": describe_machine(device),
        "shape": bench.shape,
        "failed": {},
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    for name in args.parts:
        print(f"{name} ...", flush=True)
        began = time.perf_counter()
        try:
            report[name] = rounded(PARTS[name](bench, args))
        except Exception as error:
            traceback.print_exc()
            report["failed"][name] = f"{type(error).__name__}: {error}"
        report.setdefault("seconds_of_parts", {})[name] = round(time.perf_counter() - began, 1)
        write_json(args.output, report)
    print(json.dumps(report, indent=1))
    return int(bool(report["failed"]))


if __name__ == "__main__":
    sys.exit(main())
