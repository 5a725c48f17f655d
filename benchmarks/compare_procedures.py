#!/usr/bin/env python
"""Our counterfactuals against the paper's procedure and the plain gradient, judged by an outside classifier.

Every procedure gets its guidance scale by the same rule on the validation split (the smallest change that flips at
least 95 % of the model's own decisions), and is then run once on the same test images, chosen by the fixed selection
rule:

- *ours*: inversion, deviation from its path, second order, six steps up and down, gradient at z_t;
- *ours, in a region*: the same, edited only where a first pass changed most (`mask="auto"`);
- *ours, at half the scale, in a region*: a gentler edit;
- *ours, strong* and *ours, strong, in a region*: at the smallest of the tried scales whose Diff on the validation
  split reaches that of the paper's procedure;
- *paper*: random noise, 300 DDPM steps, gradient through the predicted clean latents (`x0`);
- *plain gradient* and *random noise* at the L1 of ours, image by image.

    OMP_NUM_THREADS=1 python benchmarks/compare_procedures.py --dataset_dir demo/phantoms \\
        --oracle_path demo/oracle --models demo/mediffusion-phantom runs/seed1 runs/seed2

`--procedures` measures some of them anew or in addition: scales and rows of models that the output file knows are
kept.

Figures are means over images, then over models. Where true counterfactuals are known (phantoms), the error to them
stands beside the original's own.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from diffusers import DDIMScheduler, DDPMScheduler
from tqdm.auto import tqdm

from mediffusion_diffusers.data.schema import load_info
from mediffusion_diffusers.evaluation.counterfactual_study import (
    DIRECTIONS,
    CounterfactualStudyRunner,
    cosine_to_truth,
)
from mediffusion_diffusers.evaluation.counterfactuals import Counterfactuals, summarize
from mediffusion_diffusers.evaluation.guidance_calibration import calibrate_guidance, choose_guidance
from mediffusion_diffusers.evaluation.provenance import describe_provenance


OURS = {"start": "inversion", "follow_inversion": True, "num_inference_steps": 6, "guidance_mode": "zt"}
PAPER = {"start": "noise", "num_inference_steps": 300, "guidance_mode": "x0"}
STRENGTH = 0.3
SCALES = {"ours": (10.0, 30.0, 60.0, 100.0), "paper": (10.0, 30.0)}


def use_procedure(runner: CounterfactualStudyRunner, procedure: str, **settings: Any) -> None:
    """Set the runner's scheduler and settings."""
    kind = DDPMScheduler if procedure == "paper" else DDIMScheduler
    runner.pipeline.scheduler = kind.from_config(runner.pipeline.scheduler.config)
    runner.settings = {**(PAPER if procedure == "paper" else OURS), "strength": STRENGTH, **settings}


def calibrate(model: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Scales by the rule, and by what the oracle says on the validation split."""
    runner = CounterfactualStudyRunner(model, args.dataset_dir, "validation", args.oracle_path, batch_size=64)
    num = args.num_calibration_images_per_label
    found: dict[str, Any] = {}
    for procedure, scales in SCALES.items():
        use_procedure(runner, procedure)
        found[procedure] = choose_guidance(
            calibrate_guidance(runner, [STRENGTH], scales, DIRECTIONS, num)
        ).guidance_scale

    def mean_diff(procedure: str, scale: float) -> float:
        use_procedure(runner, procedure, guidance_scale=scale)
        made = [runner.explain(runner.select(direction, num), direction) for direction in DIRECTIONS]
        return float(np.mean([abs(summarize(one)["oracle"]["diff"]) for one in made]))

    wanted = mean_diff("paper", found["paper"])
    enough = [scale for scale in SCALES["ours"] if mean_diff("ours", scale) >= wanted]
    found["ours, strong"] = min(enough, default=SCALES["ours"][-1])
    return found


def figures(made: Counterfactuals, truth: np.ndarray | None, seconds: float | None = None) -> dict[str, float]:
    """The row of a table."""
    summary = summarize(made)
    row = {
        "own_flip_rate": summary["own"]["flip_rate"],
        "oracle_flip_rate": summary["oracle"]["flip_rate"],
        "oracle_diff": summary["oracle"]["diff"],
        "oracle_other_diff": summary["oracle"]["other_diff"],
        "l1": summary["change"]["l1"],
        "high_frequency_share": summary["change"]["high_frequency_share"],
    }
    if seconds is not None:
        row["cpu_seconds_per_image"] = seconds / len(made)
    if truth is not None:
        row["cosine_to_truth"] = cosine_to_truth(made, truth)
        row["error_to_truth"] = float(np.sqrt(((made.images - truth) ** 2).mean()))
        row["error_of_original_to_truth"] = float(np.sqrt(((made.originals - truth) ** 2).mean()))
    return row


def procedures_at(scales: dict[str, float]) -> dict[str, tuple[str, dict[str, Any]]]:
    """By name: whose procedure it is, and its settings."""
    half = scales["ours"] / 2
    return {
        "ours": ("ours", {"guidance_scale": scales["ours"]}),
        "ours, in a region": ("ours", {"guidance_scale": scales["ours"], "mask": "auto"}),
        "ours, at half the scale, in a region": ("ours", {"guidance_scale": half, "mask": "auto"}),
        "ours, strong": ("ours", {"guidance_scale": scales["ours, strong"]}),
        "ours, strong, in a region": ("ours", {"guidance_scale": scales["ours, strong"], "mask": "auto"}),
        "paper": ("paper", {"guidance_scale": scales["paper"]}),
    }


def study(model: Path, scales: dict[str, float], args: argparse.Namespace) -> dict[str, Any]:
    """The procedures on the test images of one model, by direction and procedure."""
    runner = CounterfactualStudyRunner(model, args.dataset_dir, "test", args.oracle_path, batch_size=64)
    procedures = {name: how for name, how in procedures_at(scales).items() if name in args.procedures}
    results: dict[str, Any] = {}
    for direction in DIRECTIONS:
        chosen = runner.select(direction, args.num_images_per_label)
        truth = runner.truth(chosen)
        rows: dict[str, dict[str, float]] = {}
        for name, (procedure, settings) in tqdm(procedures.items(), desc=f"{model.name}, {direction}"):
            use_procedure(runner, procedure, **settings)
            started = time.process_time()
            made = runner.explain(chosen, direction)
            rows[name] = figures(made, truth, time.process_time() - started)
            if procedure == "ours":
                for control, images in runner.controls(made, chosen, direction).items():
                    rows[f"{control}, at the L1 of {name}"] = figures(runner.rescore(made, images), truth)
            else:
                rows["null edit of the paper"] = figures(runner.rescore(made, made.null_images), truth)
        results[direction] = {"num_images": len(chosen), **rows}
    return results


def mean_of(results: list[Any]) -> Any:
    """Mean over models of every figure, and its standard deviation."""
    if isinstance(results[0], dict):
        shared = [key for key in results[0] if all(key in result for result in results)]
        return {key: mean_of([result[key] for result in results]) for key in shared}
    return {"mean": round(float(np.mean(results)), 4), "sd": round(float(np.std(results)), 4)}


def claims_of(mean: dict[str, Any]) -> dict[str, Any]:
    """What can be claimed, as differences and ratios of the means."""
    claims: dict[str, Any] = {}
    for direction in DIRECTIONS:
        paper = mean[direction]["paper"]
        for name in ("ours, strong", "ours, strong, in a region", "ours, at half the scale, in a region"):
            if name not in mean[direction]:
                continue
            ours = mean[direction][name]
            gradient = mean[direction][f"plain_gradient, at the L1 of {name}"]

            def gain(key: str, ours: Any = ours, other: Any = paper) -> float:
                return round(abs(ours[key]["mean"]) - abs(other[key]["mean"]), 4)

            def ratio(key: str, ours: Any = ours, other: Any = paper) -> float:
                return round(ours[key]["mean"] / other[key]["mean"], 4)

            claims[f"{direction}: {name}"] = {
                "oracle flips, ours - paper": gain("oracle_flip_rate"),
                "|Diff|, ours - paper": gain("oracle_diff"),
                "Other diff, ours / paper": ratio("oracle_other_diff"),
                "L1, ours / paper": ratio("l1"),
                "CPU seconds, paper / ours": round(1 / ratio("cpu_seconds_per_image"), 1),
                "|Diff|, ours - plain gradient": gain("oracle_diff", other=gradient),
                "cosine to truth, ours - plain gradient": gain("cosine_to_truth", other=gradient),
                "error to truth, ours / plain gradient": ratio("error_to_truth", other=gradient),
                "error to truth, ours / original's own": round(
                    ours["error_to_truth"]["mean"] / ours["error_of_original_to_truth"]["mean"], 4
                ),
            }
    return claims


def main() -> None:
    """Calibrate, measure, print and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, nargs="+", required=True, help="Pipeline folders: one per seed.")
    parser.add_argument("--dataset_dir", type=Path, required=True, help="Phantoms, whose true changes are known.")
    parser.add_argument("--oracle_path", type=Path, required=True)
    parser.add_argument("--num_images_per_label", type=int, default=13)
    parser.add_argument("--num_calibration_images_per_label", type=int, default=3)
    names = list(procedures_at({"ours": 1.0, "ours, strong": 1.0, "paper": 1.0}))
    parser.add_argument("--procedures", nargs="+", choices=names, default=names)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "compare_procedures.json")
    args = parser.parse_args()
    report: dict[str, Any] = {"commands": [], "strength": STRENGTH, "models": []}
    if args.output.is_file():
        report = json.loads(args.output.read_text())
    report["commands"].append(" ".join(["python", *sys.argv]))
    for model in args.models:
        provenance = describe_provenance(model, load_info(args.dataset_dir), "test")
        known = [one for one in report["models"] if one["provenance"]["checkpoint"] == provenance["checkpoint"]]
        if not known:
            known = [{"scales": calibrate(model, args), "results": {}, "provenance": provenance}]
            report["models"] += known
        for direction, rows in study(model, known[0]["scales"], args).items():
            known[0]["results"].setdefault(direction, {}).update(rows)
        report["mean"] = mean_of([one["results"] for one in report["models"]])
        report["claims"] = claims_of(report["mean"])
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(report, indent=1) + "\n")  # after each model: it takes minutes
    print(json.dumps(report["claims"], indent=1))


if __name__ == "__main__":
    main()
