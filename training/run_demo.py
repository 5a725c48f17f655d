"""The whole road in minutes: phantoms, oracle, joint training, classification, counterfactuals, a report.

Every step calls the script that a user would call; a finished step is not repeated when the demo is run again.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mediffusion_diffusers.reports.demo_report import check_demo, write_demo_report


SCRIPTS = Path(__file__).parent
SEED = 0  # of the training population, the labelled draw and the joint model
ORACLE_SEED = 1000  # another population: the oracle shares no patient with the model it judges


@dataclass(frozen=True)
class Step:
    """One command of the demo.

    Args:
        title: what it does, for the user.
        output: the file or folder that exists once it is done.
        command: arguments of the Python interpreter.
    """

    title: str
    output: Path
    command: Sequence[str]


def demo_steps(folder: Path) -> list[Step]:
    """The commands of the demo, in order."""
    phantoms, oracle_phantoms = folder / "phantoms", folder / "oracle-phantoms"
    split, oracle, model = folder / "labelled-10pct.json", folder / "oracle", folder / "mediffusion-phantom"

    def script(name: str, *arguments: str | Path) -> list[str]:
        return [str(SCRIPTS / name), *map(str, arguments)]

    def prepare(output: Path, train: int, validation: int, test: int, seed: int) -> list[str]:
        sizes = ("--num_train", train, "--num_validation", validation, "--num_test", test)
        options = ("phantom", "--output_dir", output, "--image_size", 32, "--seed", seed, *sizes)
        return script("prepare_dataset.py", *map(str, options))

    pretrained = ("--pretrained_model_name_or_path", model, "--dataset_dir", phantoms)
    return [
        Step(
            "Draw phantoms: 6,000 to train on, 300 to validate, 800 to test",
            phantoms / "dataset_info.json",
            prepare(phantoms, 6000, 300, 800, SEED),
        ),
        Step(
            "Draw the 10 % that keep their labels",
            split,
            script(
                "prepare_dataset.py",
                *("split", "--dataset_dir", phantoms, "--share", "10", "--by", "patient"),
                *("--seed", str(SEED), "--output", split),
            ),
        ),
        Step(
            "Draw other phantoms for the oracle",
            oracle_phantoms / "dataset_info.json",
            prepare(oracle_phantoms, 4000, 500, 0, ORACLE_SEED),
        ),
        Step(
            "Train the oracle: an independent, noise-robust classifier that will judge the counterfactuals",
            oracle / "config.json",
            script(
                "train_oracle.py",
                *("--dataset_dir", oracle_phantoms, "--output_dir", oracle, "--resolution", "32"),
                *("--seed", str(ORACLE_SEED)),
            ),
        ),
        Step(
            "Train the diffusion model on all images, then jointly with the classifier on the labelled 10 %",
            model / "model_index.json",
            [
                *("-m", "accelerate.commands.launch", "--num_processes", "1", "--cpu"),
                *script(
                    "train_joint.py",
                    *("--preset", "phantom-demo", "--dataset_dir", phantoms, "--labelled_split", split),
                    *("--output_dir", model, "--seed", str(SEED), "--resume_from_checkpoint", "latest"),
                ),
            ],
        ),
        Step(
            "Classify the held-out phantoms",
            folder / "classification.json",
            script("evaluate_classification.py", *pretrained, "--output_dir", folder),
        ),
        Step(
            "Explain held-out phantoms: remove and add findings, and let the oracle judge",
            folder / "counterfactuals" / "counterfactuals.json",
            script(
                "evaluate_counterfactuals.py",
                *pretrained,
                *("--oracle_path", oracle, "--output_dir", folder / "counterfactuals"),
                *("--direction", "both", "--num_images_per_label", "16"),
            ),
        ),
    ]


def run_step(step: Step, number: int, total: int) -> float:
    """Run one command in a process of its own; returns its seconds.

    Raises:
        SystemExit: if the command fails.
    """
    print(f"\n[{number}/{total}] {step.title}", flush=True)
    if step.output.exists():
        print(f"      done before: {step.output}", flush=True)
        return 0.0
    start = time.perf_counter()
    done = subprocess.run([sys.executable, *step.command], env={**os.environ, "PYTHONUNBUFFERED": "1"}, check=False)
    if done.returncode:
        raise SystemExit(f"The demo stopped: step {number}, {' '.join(step.command)}, failed ({done.returncode}).")
    return time.perf_counter() - start


def main() -> None:
    """Run the demo, write its report and check its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("demo"), help="Folder for everything the demo makes.")
    parser.add_argument("--overwrite", action="store_true", help="Begin anew instead of keeping finished steps.")
    args = parser.parse_args()
    if args.overwrite and (args.output_dir / "phantoms").exists():
        shutil.rmtree(args.output_dir)
    args.output_dir.mkdir(parents=True, exist_ok=True)

    steps = demo_steps(args.output_dir)
    seconds = {step.title: run_step(step, number, len(steps)) for number, step in enumerate(steps, start=1)}
    report = write_demo_report(args.output_dir, seconds)
    checks = check_demo(args.output_dir)

    print("\nWhat the demo promises, and what it measured:")
    for check in checks:
        print(f"  {'ok  ' if check.passed else 'FAIL'} {check.sentence}")
    model = args.output_dir / "mediffusion-phantom"
    print(f"\nReport: {report}\nThe checkpoint loads with\n")
    print("    from mediffusion_diffusers import MediffusionCounterfactualPipeline")
    print(f'    pipe = MediffusionCounterfactualPipeline.from_pretrained("{model}")')
    print('    output = pipe(image, away="Cardiomegaly")  # a PIL image\n')
    if not all(check.passed for check in checks):
        raise SystemExit("The demo's own check failed: see above.")


if __name__ == "__main__":
    main()
