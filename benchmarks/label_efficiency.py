#!/usr/bin/env python
"""Learning from few labels: ours beside the same encoder, ResNets, Mean Teacher, FixMatch and a frozen probe.

Pre-trains the U-Net once on all images, chooses every method's learning rate on the validation split (as many trials
for each, on draws that are not reported), then runs every method on one draw of the labelled images after the other.
What is finished is kept in `--work_dir`, so that the same command goes on where it was stopped; `--output` is written
anew after every draw.

    mediffusion prepare isic2019 --source_dir isic2019 --output_dir data/isic2019 --image_size 54 \\
        --validation_share 15 --test_share 20
    OMP_NUM_THREADS=1 python benchmarks/label_efficiency.py --dataset_dir data/isic2019 --preset isic2019-small \\
        --share 3 --num_draws 10 --num_views 2 --work_dir runs/few_labels --output few_labels.json
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from few_labels import METHODS, Setting
from few_labels.denoising import denoising_losses
from few_labels.figure import draw_table
from few_labels.problem import Problem
from few_labels.table import Resampled, denoising_rows, differences_of, label_rows, method_rows, scores_in
from few_labels.task import PublishedTask, train
from safetensors.numpy import save_file

from mediffusion_diffusers.atomic_files import new_file, read_json, write_json
from mediffusion_diffusers.reports.pictures.drawing import save_picture


TUNING_DRAWS = (1000, 1001, 1002)


class Study:
    """One share of labels of one dataset.

    Args:
        problem: data and recipe.
        share: percent of labels.
        methods: names of `METHODS`, in the order in which they run.
        steps: overrides of the steps in a `Setting`.
    """

    def __init__(self, problem: Problem, share: float, methods: Sequence[str], **steps: int):
        self.problem, self.share, self.methods = problem, share, methods
        self.folder = problem.work_dir / f"{problem.info.name}-{share:g}pct"
        self.pretrained = problem.work_dir / f"{problem.info.name}-pretrained"
        self.steps = steps

    def pretrain(self) -> dict[str, Any]:
        """Diffusion alone, on all training images; labels are not looked at."""
        record = self.pretrained / "cpu_seconds.json"
        if not record.is_file():
            num_steps = self.problem.recipe.labels.classifier_start_step
            config = self.problem.recipe.with_options(
                classifier_loss_weight=0.0,
                consolidation_start_step=None,
                max_train_steps=num_steps,
                checkpointing_steps=500,
                checkpoints_total_limit=1,
                logging_steps=50,
                output_dir=str(self.pretrained),
                resume_from_checkpoint="latest",
            )
            started = time.process_time()
            task = train(config, PublishedTask)
            seconds = round(time.process_time() - started, 1)
            losses = denoising_losses(task, self.problem.validation.images)
            write_json(record, {"cpu_seconds": seconds, "steps": num_steps, "denoising_losses": losses})
        return read_json(record)

    def tune(self) -> dict[str, Any]:
        """The learning rate of each method with the best mean validation AUROC, and all trials."""
        trials: dict[str, dict[str, list[float]]] = {}
        chosen: dict[str, float] = {}
        for name in self.methods:
            method = METHODS[name]
            found = {f"{rate:g}": self._trials(name, rate, chosen) for rate in method.rates if len(method.rates) > 1}
            trials[name] = found
            chosen[name] = max(method.rates, key=lambda rate: sum(found.get(f"{rate:g}", [])))
        return {"chosen": chosen, "trials": trials}

    def _trials(self, name: str, rate: float, chosen: dict[str, float]) -> list[float]:
        """Validation AUROC of each tuning draw at a learning rate, going on from the chosen one of its predecessor."""
        after, found = METHODS[name].after, []
        for draw in TUNING_DRAWS:
            run = f"{name}-{rate:g}" if after is None else f"{after}-{chosen[after]:g}"
            suffix = "" if after is None else f"-{rate:g}"
            setting = self._setting(draw, self.folder / f"tuning-{draw}" / run, {**chosen, name: rate}, suffix)
            record = self._run(name, setting, f"{name}{suffix}.json", is_test=False)
            found.append(record["validation"]["macro_auroc"])
        print(f"tuning {name} at {rate:g}: {', '.join(f'{auroc:.4f}' for auroc in found)}", flush=True)
        return found

    def run_draw(self, draw: int, rates: dict[str, float]) -> None:
        """Every method on one draw."""
        setting = self._setting(draw, self.folder / f"draw-{draw}", rates)
        for name in self.methods:
            found = self._run(name, setting, f"{name}.json")
            print(
                f"draw {draw} {name}: validation {found['validation']['macro_auroc']:.4f}, "
                f"test {found['test']['macro_auroc']:.4f}, {found['cpu_seconds']:.0f} CPU s",
                flush=True,
            )

    def results(self) -> dict[str, dict[int, dict[str, Any]]]:
        """What is finished, by method and draw."""
        found: dict[str, dict[int, dict[str, Any]]] = {}
        for name in METHODS:
            files = sorted(self.folder.glob(f"draw-*/{name}.json"), key=lambda file: int(file.parent.name[5:]))
            if files:
                found[name] = {int(file.parent.name[5:]): read_json(file) for file in files}
        return found

    def table(self, pretraining: dict[str, Any], tuning: dict[str, Any], over_patients: bool) -> dict[str, Any]:
        """What goes into the results file; intervals over patients take a while."""
        problem, test, results = self.problem, self.problem.test, self.results()
        positives = np.nansum(test.labels, axis=0).astype(int).tolist()
        draws = sorted({draw for by_draw in results.values() for draw in by_draw})
        return {
            "what": f"{problem.info.name}: a network learns from few labelled images, and from all others without.",
            "data": problem.info.name,
            "preset": problem.preset,
            "share_percent": self.share,
            "num_labelled_images": problem.split_facts(self.share, 0)["num_images"],
            "num_validation_images": len(problem.validation.labels),
            "num_test_images": len(test.labels),
            "num_test_patients": len(set(test.patient_ids)),
            "test_images_of_each_label": dict(zip(problem.info.label_names, positives, strict=True)),
            "pre_training": pretraining,
            "methods": method_rows(results),
            "differences": differences_of(results, Resampled(scores_in(self.folder), test) if over_patients else None),
            "test_macro_auroc_of_each_draw": {
                METHODS[name].title: {str(draw): each["test"]["macro_auroc"] for draw, each in by_draw.items()}
                for name, by_draw in results.items()
            },
            "test_auroc_of_each_label": label_rows(results),
            "denoising_loss_over_the_pre_trained": denoising_rows(pretraining["denoising_losses"], results),
            "learning_rates": {METHODS[name].title: rate for name, rate in tuning["chosen"].items()},
            "trials": {METHODS[name].title: trials for name, trials in tuning["trials"].items() if trials},
            "splits": {str(draw): problem.split_facts(self.share, draw) for draw in draws},
        }

    def _setting(self, draw: int, folder: Path, rates: dict[str, float], suffix: str = "") -> Setting:
        return Setting(self.problem, self.share, draw, rates, folder, self.pretrained, suffix, **self.steps)

    def _run(self, name: str, setting: Setting, file: str, is_test: bool = True) -> dict[str, Any]:
        """Train and score one method, unless that is done."""
        record = setting.folder / file
        if record.is_file():
            return read_json(record)
        started = time.process_time()
        outcome = METHODS[name].train(setting)
        facts: dict[str, Any] = {"cpu_seconds": round(time.process_time() - started, 1)}
        held_out = {"validation": self.problem.validation}
        if is_test:
            held_out["test"] = self.problem.test
        for split, images in held_out.items():
            scores = self.problem.scores(outcome.logits, images)
            facts[split] = self.problem.record(scores, images)
            if split == "test":
                setting.folder.mkdir(parents=True, exist_ok=True)
                with new_file(record.with_suffix(".safetensors")) as path:
                    save_file({"scores": scores}, path)
        if outcome.task is not None and METHODS[name].is_pretrained:
            facts["denoising_losses"] = denoising_losses(outcome.task, self.problem.validation.images)
        write_json(record, facts)
        return facts


def chosen_before(path: Path, methods: Sequence[str]) -> dict[str, Any]:
    """The learning rates in the table of another share, without trials.

    Raises:
        ValueError: for a method that it does not have.
    """
    found = read_json(path)["learning_rates"]
    missing = [name for name in methods if METHODS[name].title not in found]
    if missing:
        raise ValueError(f"`tuned_by` must have every method's learning rate, but {path} lacks {', '.join(missing)}.")
    return {"chosen": {name: found[METHODS[name].title] for name in methods}, "trials": {}}


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is left, and write the table."""
    args = parse(argv)
    problem = Problem(args.dataset_dir, args.preset, args.work_dir, args.num_views)
    steps = {"class_steps": args.class_steps, "pool_steps": args.pool_steps}
    study = Study(problem, args.share, args.methods, **steps)
    pretraining = study.pretrain()
    tuning = study.tune() if args.tuned_by is None else chosen_before(args.tuned_by, args.methods)
    print("learning rates:", tuning, flush=True)
    for draw in range(args.num_draws):
        study.run_draw(draw, tuning["chosen"])
        is_last = draw + 1 == args.num_draws
        table = study.table(pretraining, tuning, over_patients=is_last)
        write_json(args.output, table)
    save_picture(draw_table(table), args.output.with_suffix(".png"))


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n\n")[0])
    parser.add_argument("--dataset_dir", type=Path, required=True, help="Prepared dataset with all three splits.")
    parser.add_argument("--preset", required=True, help="Row of the training presets whose recipe is on trial.")
    parser.add_argument("--share", type=float, required=True, help="Percent of the labels.")
    parser.add_argument("--num_draws", type=int, default=10, help="Draws of the labelled images.")
    parser.add_argument("--num_views", type=int, choices=(1, 2), default=1, help="2: mirrored at test time too.")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="Which, in this order.")
    parser.add_argument("--tuned_by", type=Path, help="JSON of another share, whose learning rates are taken.")
    parser.add_argument("--class_steps", type=int, default=Setting.class_steps, help="Steps on labels alone.")
    parser.add_argument("--pool_steps", type=int, default=Setting.pool_steps, help="Steps on all images.")
    parser.add_argument("--work_dir", type=Path, required=True, help="What is finished is kept here.")
    parser.add_argument("--output", type=Path, required=True, help="JSON to write.")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
