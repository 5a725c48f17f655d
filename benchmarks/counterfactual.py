#!/usr/bin/env python
"""What guidance, layout, batches and the autoencoder cost, and how a whole counterfactual compares.

Times are medians of CPU seconds, of things measured in this one process in turns, so that whatever else the machine
does falls on all of them. Weights are random, which changes no cost. Each part adds its figures to the output file:

    OMP_NUM_THREADS=1 python benchmarks/counterfactual.py --parts steps batches memory external precision
    OMP_NUM_THREADS=1 python benchmarks/counterfactual.py --parts steps --shape demo --num_rounds 31
    OMP_NUM_THREADS=1 python benchmarks/counterfactual.py --parts compile --num_rounds 5
    OMP_NUM_THREADS=1 python benchmarks/counterfactual.py --parts whole --num_rounds 3 \\
      --settings '{"num_inference_steps": 7, "follow_inversion": true}'
    OMP_NUM_THREADS=1 python benchmarks/counterfactual.py --parts qualities --num_rounds 3
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
from edit_cost import rounded
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
)

from mediffusion_diffusers import MediffusionCounterfactualPipeline
from mediffusion_diffusers.atomic_files import read_json, write_json
from mediffusion_diffusers.latents import decode_latents, encode_pixels
from mediffusion_diffusers.models.presets import PAPER_NOISE_SCHEDULE
from mediffusion_diffusers.pipelines.counterfactual.quality import QUALITIES


STEPS_PER_ROUND = 3  # of the procedures that take 300
FOUR_TARGETS = [[0], [1], [2], [3]]


class WholeCounterfactuals:
    """Whole counterfactuals at 256x256, and what the procedures that take 300 steps do once.

    The procedures run as diffusers loads a model (`contiguous`), ours with `prepack_convolutions`.
    """

    def __init__(self) -> None:
        unet, vae = build_unet("paper", "winograd"), build_vae("winograd")
        self.plain, self.plain_vae = GuidanceSteps(build_unet("paper")), build_vae()
        scheduler = DDIMScheduler(**PAPER_NOISE_SCHEDULE, set_alpha_to_one=False)
        self.pipe = MediffusionCounterfactualPipeline(vae, unet, scheduler)
        self.pipe.set_progress_bar_config(disable=True)
        torch.manual_seed(0)
        self.image, self.latents = torch.rand(1, 1, 256, 256), torch.randn(1, 4, 32, 32)

    def ours(self, away: Any = 0, controls: bool = False, **settings: Any) -> Callable[[], Any]:
        """A call of the pipeline."""
        generator = torch.Generator().manual_seed(0)
        return lambda: self.pipe(self.image, away=away, controls=controls, generator=generator, **settings)

    def procedures(self) -> dict[str, Callable[[], Any]]:
        """One encoding and one decoding; and some steps of the authors' procedure and of two passes."""

        @torch.no_grad()
        def both_ends() -> None:
            encode_pixels(self.plain_vae, self.image * 2 - 1)
            decode_latents(self.plain_vae, self.latents)

        return {
            "encode and decode": both_ends,
            "authors": lambda: [self.plain.authors() for _ in range(STEPS_PER_ROUND)],
            "two passes": lambda: [self.plain.two_passes() for _ in range(STEPS_PER_ROUND)],
        }

    def measure(self, calls: dict[str, Callable[[], Any]], num_rounds: int) -> dict[str, float]:
        """Median CPU seconds of our calls and of the procedures' parts, in turns."""
        self.ours(num_inference_steps=1)()  # prepares the weights
        procedures = self.procedures()
        procedures["encode and decode"]()
        return medians_of(measure({**calls, **procedures}, num_rounds, "Whole counterfactuals", has_warm_up=False))


def procedure_seconds(medians: dict[str, float]) -> dict[str, float]:
    """CPU seconds of 300 steps, extrapolated, with one encoding and one decoding."""
    return {
        name: medians["encode and decode"] + 300 / STEPS_PER_ROUND * medians[name]
        for name in ("authors", "two passes")
    }


def compare_whole(num_rounds: int, settings: dict[str, Any]) -> dict[str, Any]:
    """A whole counterfactual at 256x256 against 300 steps of the authors' procedure and of two passes.

    Ours includes the null edit, both pictures, and the classification of what they show.

    Args:
        num_rounds: calls of the pipeline; each beside `STEPS_PER_ROUND` steps of the procedures.
        settings: arguments of the pipeline other than its defaults.

    Returns:
        Ratios, seconds and settings.
    """
    whole = WholeCounterfactuals()
    calls = {
        "ours": whole.ours(**settings),
        "ours, 4 targets": whole.ours(FOUR_TARGETS, **settings),
        "ours, with controls": whole.ours(controls=True, **settings),
    }
    medians = whole.measure(calls, num_rounds)
    procedures = procedure_seconds(medians)
    return {
        "settings": {"controls": False, **settings},
        "num_rounds": num_rounds,
        "cpu_seconds_of_300_steps_extrapolated": procedures,
        "measured_steps_of_each_procedure": num_rounds * STEPS_PER_ROUND,
        "ratios_per_target": {
            f"{procedure} / {name}": seconds * (4 if "4 targets" in name else 1) / medians[name]
            for procedure, seconds in procedures.items()
            for name in calls
        },
        "median_cpu_seconds": medians,
    }


def compare_qualities(num_rounds: int) -> dict[str, Any]:
    """`quality="fast"` and `"best"` at 256x256 against the authors' procedure, for one target and for four at once.

    Every step but the first costs the same, so that calls of one and of two steps tell what all of them cost:
    both ends are measured, the steps between are extrapolated.

    Args:
        num_rounds: calls of each kind; each beside `STEPS_PER_ROUND` steps of the procedures.
    """
    whole = WholeCounterfactuals()
    targets = {"1 target": 0, "4 targets": FOUR_TARGETS}
    calls = {
        f"{quality}, {name}, {steps} steps": whole.ours(away, quality=quality, num_inference_steps=steps)
        for quality in QUALITIES
        for name, away in targets.items()
        for steps in (1, 2)
    }
    medians = whole.measure(calls, num_rounds)
    procedures, seconds = procedure_seconds(medians), {}
    for quality in QUALITIES:
        num_steps = whole.pipe.resolve_settings(quality=quality).num_inference_steps
        for name in targets:
            one, two = (medians[f"{quality}, {name}, {steps} steps"] for steps in (1, 2))
            seconds[f"{quality}, {name}"] = one + (num_steps - 1) * (two - one)
    return {
        "num_rounds": num_rounds,
        "how": "calls of one and of two steps measured, those of all steps extrapolated",
        "cpu_seconds_extrapolated": {**procedures, **seconds},
        "ratios_per_target": {
            f"{procedure} / {name}": taken * (4 if "4 targets" in name else 1) / seconds[name]
            for procedure, taken in procedures.items()
            for name in seconds
        },
        "each of 4 targets / one alone": {
            quality: seconds[f"{quality}, 4 targets"] / 4 / seconds[f"{quality}, 1 target"] for quality in QUALITIES
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
    parts = ("steps", "batches", "memory", "external", "precision", "compile", "whole", "qualities", "quality")
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
        "qualities": ("fast and best, paper", lambda: compare_qualities(args.num_rounds)),
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
        report = read_json(args.output) if args.output.is_file() else {}
        report[key] = result
        args.output.parent.mkdir(parents=True, exist_ok=True)
        write_json(args.output, report)
        print(json.dumps({key: result}, indent=1))


if __name__ == "__main__":
    main()
