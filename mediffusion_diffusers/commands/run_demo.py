"""The whole road in minutes: phantoms, oracle, joint training, classification, counterfactuals, a report.

Every step calls the script that a user would call; a finished step is not repeated when the demo is run again.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..option_parser import OptionParser
from ..options import option
from ..output_folder import claimed_folder
from .command import Command, first_paragraph


LOCK_FILE = ".demo.lock"  # beside that of the steps which write into the same folder
SEED = 0  # of the training population, the labelled draw and the joint model
ORACLE_SEED = 1000  # another population: the oracle shares no patient with the model it judges


@dataclass(frozen=True)
class Options:
    """Where everything goes."""

    output_dir: Path = option(Path("demo"), "Folder for everything the demo makes.")
    overwrite: bool = option(False, "Begin anew instead of keeping finished steps.")


@dataclass(frozen=True)
class Step:
    """One command of the demo.

    Args:
        title: what it does, for the user.
        output: the file or folder that exists once it is done.
        command: arguments of the Python interpreter.
        log: of a step that runs beside the following ones, until the last: where its output goes.
    """

    title: str
    output: Path
    command: Sequence[str]
    log: Path | None = None


def demo_steps(folder: Path) -> list[Step]:
    """The commands of the demo, in order.

    Args:
        folder: the demo's output folder.
    """
    phantoms, oracle_phantoms = folder / "phantoms", folder / "oracle-phantoms"
    split, oracle, model = folder / "labelled-10pct.json", folder / "oracle", folder / "mediffusion-phantom"

    def script(name: str, *arguments: str | Path) -> list[str]:
        return ["-m", "mediffusion_diffusers", *name.split(), *map(str, arguments)]

    def prepare(output: Path, train: int, validation: int, test: int, seed: int) -> list[str]:
        sizes = ("--num_train", train, "--num_validation", validation, "--num_test", test)
        options = ("phantom", "--output_dir", output, "--image_size", 32, "--seed", seed, *sizes)
        return script("prepare", *map(str, options))

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
                "prepare",
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
                "train oracle",
                *("--dataset_dir", oracle_phantoms, "--output_dir", oracle, "--resolution", "32"),
                *("--seed", str(ORACLE_SEED)),
            ),
            log=folder / "train_oracle.log",
        ),
        Step(
            "Train the diffusion model on all images, then jointly with the classifier on the labelled 10 %",
            model / "model_index.json",
            [
                *("-m", "accelerate.commands.launch", "--num_processes", "1", "--cpu"),
                *script(
                    "train joint",
                    *("--preset", "phantom-demo", "--dataset_dir", phantoms, "--labelled_split", split),
                    *("--output_dir", model, "--seed", str(SEED), "--resume_from_checkpoint", "latest"),
                ),
            ],
        ),
        Step(
            "Choose strength, region and guidance scales on the validation phantoms",
            model / "guidance_calibration.json",
            script(
                "calibrate",
                *pretrained,
                *("--strengths", "0.2", "0.3", "--guidance_scales", "10", "30", "100"),
            ),
        ),
        Step(
            "Classify the held-out phantoms",
            folder / "classification.json",
            script("evaluate classification", *pretrained, "--output_dir", folder),
        ),
        Step(
            "Explain three phantoms in detail: a page with sliders, panels and animations",
            folder / "explanations" / "explanations.html",
            script(
                "explain",
                *pretrained,
                *("--away", "Cardiomegaly", "--output_dir", folder / "explanations"),
            ),
        ),
        Step(
            "Explain held-out phantoms: remove and add findings, and let the oracle judge",
            folder / "counterfactuals" / "counterfactuals.json",
            script(
                "evaluate counterfactuals",
                *pretrained,
                *("--oracle_path", oracle, "--output_dir", folder / "counterfactuals"),
                *("--direction", "both", "--num_images_per_label", "16"),
            ),
        ),
    ]


class DemoRun:
    """Runs steps in processes of their own, one after another but for those with a log, which run beside the others.

    Processes side by side share the cores; more threads than cores would wait for one another.

    Args:
        steps: all of them, in order.
    """

    def __init__(self, steps: Sequence[Step]):
        self.steps = steps
        self.seconds: dict[str, float] = {}
        self.beside: list[tuple[int, Step, subprocess.Popen, float]] = []
        num_threads = max(1, (os.cpu_count() or 1) // 2)
        self.environment = {"OMP_NUM_THREADS": str(num_threads), **os.environ, "PYTHONUNBUFFERED": "1"}

    def run(self) -> dict[str, float]:
        """Run all steps; returns the seconds of each, and of all together, by its title.

        Raises:
            SystemExit: if a command fails.
        """
        started = time.perf_counter()
        try:
            for number, step in enumerate(self.steps, start=1):
                if number == len(self.steps):  # the last step looks at what all others made
                    self.wait()
                self.start(number, step)
        finally:
            for _, _, process, _ in self.beside:
                process.terminate()
        self.seconds["all together, some side by side"] = time.perf_counter() - started
        return self.seconds

    def start(self, number: int, step: Step) -> None:
        """Run a step to its end, or start it beside the others."""
        print(f"\n[{number}/{len(self.steps)}] {step.title}", flush=True)
        self.seconds[step.title] = 0.0
        if step.output.exists():
            print(f"      done before: {step.output}", flush=True)
            return
        started = time.perf_counter()
        command = [sys.executable, *step.command]
        if step.log is None:
            done = subprocess.run(command, env=self.environment, check=False)
            self.finish(number, step, done.returncode, started)
            return
        print(f"      beside the next steps; its progress: {step.log}", flush=True)
        with step.log.open("w", encoding="utf-8") as log:
            process = subprocess.Popen(command, env=self.environment, stdout=log, stderr=subprocess.STDOUT)
        self.beside.append((number, step, process, started))

    def wait(self) -> None:
        """Wait for the steps that run beside."""
        while self.beside:
            number, step, process, started = self.beside[0]
            process.wait()
            self.beside.pop(0)
            self.finish(number, step, process.returncode, started)

    def finish(self, number: int, step: Step, returncode: int, started: float) -> None:
        """Note the time, or stop."""
        if returncode:
            where = "" if step.log is None else f"; see {step.log}"
            raise SystemExit(
                f"The demo stopped: step {number}, {' '.join(step.command)}, failed ({returncode}){where}."
            )
        self.seconds[step.title] = time.perf_counter() - started


def run(options: Options) -> int:
    """Run the demo, write its report and check its figures.

    Returns:
        1 if the demo's figures are not what it promises, else 0.

    Raises:
        ValueError: if `output_dir` cannot be used.
        SystemExit: if a step fails.
    """
    from ..reports.pages.demo import check_demo, write_demo_report

    with claimed_folder(options.output_dir, lock_file=LOCK_FILE) as folder:
        if options.overwrite and (folder / "phantoms").exists():
            _empty(folder)
        seconds = DemoRun(demo_steps(folder)).run()
        report = write_demo_report(folder, seconds)
        checks = check_demo(folder)

    print("\nWhat the demo promises, and what it measured:")
    for check in checks:
        print(f"  {'ok  ' if check.passed else 'FAIL'} {check.sentence}")
    page = folder / "explanations" / "explanations.html"
    print(f"\nReport: {report}\nThree explanations in detail: {page}\nThe checkpoint loads with\n")
    print("    from mediffusion_diffusers import MediffusionCounterfactualPipeline")
    print(f'    pipe = MediffusionCounterfactualPipeline.from_pretrained("{folder / "mediffusion-phantom"}")')
    print('    output = pipe(image, away="Cardiomegaly")  # a PIL image\n')
    if all(check.passed for check in checks):
        return 0
    print("The demo's own check failed: see above.", file=sys.stderr)
    return 1


def _empty(folder: Path) -> None:
    """Delete what an earlier demo made; the lock stays."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != LOCK_FILE:
            path.unlink()


COMMAND = Command(OptionParser(Options, description=first_paragraph(__doc__)), run)
main = COMMAND.main
