#!/usr/bin/env python
"""What guidance, layout, batches and the autoencoder cost, and how a whole counterfactual compares.

Times are medians of CPU seconds, of things measured in this one process in turns, so that whatever else the machine
does falls on all of them. Weights are random, which changes no cost. Each part adds its figures to the output file:

    OMP_NUM_THREADS=1 python benchmarks/counterfactual.py --parts steps batches memory external precision
    OMP_NUM_THREADS=1 python benchmarks/counterfactual.py --parts steps --shape demo --num_rounds 31
    OMP_NUM_THREADS=1 python benchmarks/counterfactual.py --parts compile --num_rounds 5
    OMP_NUM_THREADS=1 python benchmarks/counterfactual.py --parts whole --num_rounds 3 \\
      --settings '{"num_inference_steps": 7, "follow_inversion": true}'
    OMP_NUM_THREADS=1 python benchmarks/counterfactual.py --parts quality --pipeline demo/mediffusion-phantom \\
      --dataset_dir demo/phantoms --oracle demo/oracle --num_images_per_label 4 \\
      --settings '{"num_inference_steps": 7, "follow_inversion": true}'

What the kinds of step and layout are: `guided_steps.py`.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from counterfactual_quality import compare_quality
from diffusers import DDIMScheduler
from guided_steps import (
    SHAPES,
    GuidanceSteps,
    build_unet,
    build_vae,
    compare_batches,
    compare_compiled,
    compare_external,
    compare_memory,
    compare_precisions,
    compare_steps,
    measure,
    medians_of,
    rounded,
)

from mediffusion_diffusers import MediffusionCounterfactualPipeline
from mediffusion_diffusers.latents import decode_latents, encode_pixels
from mediffusion_diffusers.models.presets import PAPER_NOISE_SCHEDULE


STEPS_PER_ROUND = 3  # of the procedures that take 300


def compare_whole(num_rounds: int, settings: dict[str, Any]) -> dict[str, Any]:
    """A whole counterfactual at 256x256 against 300 steps of the authors' procedure and of two passes.

    Ours includes the null edit, both pictures, and the classification of what they show; the procedures include one
    encoding and one decoding. They run as diffusers loads a model (`contiguous`), ours with `prepack_convolutions`.

    Args:
        num_rounds: calls of the pipeline; each beside `STEPS_PER_ROUND` steps of the procedures.
        settings: arguments of the pipeline other than its defaults.

    Returns:
        Ratios, seconds and settings.
    """
    unet, vae = build_unet("paper", "winograd"), build_vae("winograd")
    plain, plain_vae = GuidanceSteps(build_unet("paper")), build_vae()
    pipe = MediffusionCounterfactualPipeline(vae, unet, DDIMScheduler(**PAPER_NOISE_SCHEDULE, set_alpha_to_one=False))
    pipe.set_progress_bar_config(disable=True)
    torch.manual_seed(0)
    image, latents = torch.rand(1, 1, 256, 256), torch.randn(1, 4, 32, 32)

    @torch.no_grad()
    def both_ends() -> None:
        encode_pixels(plain_vae, image * 2 - 1)
        decode_latents(plain_vae, latents)

    calls = {
        "ours": lambda: pipe(image, away=0, controls=False, **settings),
        "ours, 4 targets": lambda: pipe(image, away=[[0], [1], [2], [3]], controls=False, **settings),
        "ours, with controls": lambda: pipe(image, away=0, **settings),
        "encode and decode": both_ends,
        "authors": lambda: [plain.authors() for _ in range(STEPS_PER_ROUND)],
        "two passes": lambda: [plain.two_passes() for _ in range(STEPS_PER_ROUND)],
    }
    pipe(image, away=0, controls=False, **{**settings, "num_inference_steps": 1})  # prepares the weights
    both_ends()
    medians = medians_of(measure(calls, num_rounds, "Whole counterfactuals", has_warm_up=False))
    procedures = {
        name: medians["encode and decode"] + 300 / STEPS_PER_ROUND * medians[name]
        for name in ("authors", "two passes")
    }
    return {
        "settings": {"controls": False, **settings},
        "num_rounds": num_rounds,
        "cpu_seconds_of_300_steps_extrapolated": procedures,
        "measured_steps_of_each_procedure": num_rounds * STEPS_PER_ROUND,
        "ratios_per_target": {
            f"{procedure} / {name}": seconds * (4 if "4 targets" in name else 1) / medians[name]
            for procedure, seconds in procedures.items()
            for name in list(calls)[:3]
        },
        "median_cpu_seconds": medians,
    }


def processor_name() -> str:
    """The processor's name as Linux knows it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def main() -> None:
    """Measure, print and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ("steps", "batches", "memory", "external", "precision", "compile", "whole", "quality")
    parser.add_argument("--parts", nargs="+", choices=parts, default=["steps"])
    parser.add_argument("--shape", choices=tuple(SHAPES), default="paper", help="of steps, batches and memory")
    parser.add_argument("--num_rounds", type=int, default=9)
    parser.add_argument("--batch_size", type=int, default=4, help="of memory")
    parser.add_argument(
        "--settings", type=json.loads, default={}, help="JSON: pipeline arguments of whole and quality"
    )
    parser.add_argument("--pipeline", type=Path, help="trained checkpoint of quality")
    parser.add_argument("--dataset_dir", type=Path, help="prepared dataset of quality")
    parser.add_argument("--oracle", type=Path, help="outside classifier of quality")
    parser.add_argument("--num_images_per_label", type=int, default=8, help="of quality")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "counterfactual_speed.json")
    args = parser.parse_args()
    measures: dict[str, tuple[str, Callable[[], dict[str, Any]]]] = {
        "steps": (f"steps, {args.shape}", lambda: compare_steps(args.shape, args.num_rounds)),
        "batches": (f"batches, {args.shape}", lambda: compare_batches(args.shape, args.num_rounds)),
        "memory": (f"memory, {args.shape}", lambda: compare_memory(args.shape, args.batch_size)),
        "external": ("external guidance, paper", lambda: compare_external(args.num_rounds)),
        "precision": ("precision, paper", lambda: compare_precisions(args.num_rounds)),
        "compile": ("torch.compile, paper", lambda: compare_compiled(args.num_rounds)),
        "whole": ("whole counterfactual, paper", lambda: compare_whole(args.num_rounds, args.settings)),
        "quality": (
            "quality of few steps",
            lambda: compare_quality(
                args.pipeline, args.dataset_dir, args.oracle, args.settings, args.num_images_per_label
            ),
        ),
    }
    for part in args.parts:
        key, run = measures[part]
        result = {
            "command": " ".join(["python", *sys.argv]),
            "machine": {
                "processor": processor_name(),
                "threads": torch.get_num_threads(),
                "torch": torch.__version__,
            },
            **rounded(run()),
        }
        report = json.loads(args.output.read_text()) if args.output.is_file() else {}
        report[key] = result
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(report, indent=1) + "\n")
        print(json.dumps({key: result}, indent=1))


if __name__ == "__main__":
    main()
