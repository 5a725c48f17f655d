"""What the demo does: steps, each a command line of `mediffusion` as a user would type it, and what each waits for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


SEED = 0  # of the training population, the labelled draw and the joint model
ORACLE_SEED = 1000  # another population: the oracle shares no patient with the model it judges
IMAGE_SIZE = 32
MODEL_FOLDER = "mediffusion-phantom"
# Where the search for the scales begins: between those that phantoms have taken so far.
CALIBRATION = ("--quality", "fast", "--strengths", "0.5", "--masks", "auto", "--guidance_scale", "8")
EXAMPLE_FOLDER, EXPLANATION_FOLDER, STUDY_FOLDER = "example", "explanations", "counterfactuals"


@dataclass(frozen=True)
class DemoSize:
    """How much of everything.

    Args:
        preset: of the joint training.
        num_phantoms: to train, validate and test on.
        num_oracle_phantoms: for the oracle to train and validate on.
        num_oracle_steps: of the oracle's training.
        num_explained: images that are explained in detail.
        num_images_per_label: for each finding and direction that the oracle judges.
        calibration: what calibration tries.
    """

    preset: str
    num_phantoms: tuple[int, int, int]
    num_oracle_phantoms: tuple[int, int]
    num_oracle_steps: int
    num_explained: int
    num_images_per_label: int
    calibration: tuple[str, ...]


SMALL = DemoSize(
    preset="phantom-short",
    num_phantoms=(6000, 300, 500),
    num_oracle_phantoms=(2500, 300),
    num_oracle_steps=600,
    num_explained=2,
    num_images_per_label=8,
    calibration=CALIBRATION,
)
FULL = DemoSize(
    preset="phantom-demo",
    num_phantoms=(6000, 300, 800),
    num_oracle_phantoms=(4000, 500),
    num_oracle_steps=1800,
    num_explained=3,
    num_images_per_label=16,
    calibration=CALIBRATION,
)


@dataclass(frozen=True)
class Step:
    """One command of the demo.

    Args:
        name: short, for logs and for what other steps wait for.
        title: what it does, for the user.
        words: the command line after `mediffusion`.
        output: the file that exists once it is done.
        after: names of the steps that must be done before.
        num_processes: that share it, on as many cores.
    """

    name: str
    title: str
    words: tuple[str, ...]
    output: Path
    after: tuple[str, ...] = ()
    num_processes: int = 1


def plan(folder: Path, size: DemoSize) -> list[Step]:
    """The steps, the more urgent of two that could run first.

    Args:
        folder: for everything that the demo makes.
        size: how much of everything.
    """
    return [_first_look(folder), *_data(folder, size), *_training(folder, size), *_results(folder, size)]


def _first_look(folder: Path) -> Step:
    """What the checkpoint that comes with the package says, within seconds."""
    place = folder / EXAMPLE_FOLDER
    words = ("explain", "--model", "example", "--away", "Cardiomegaly", "--num_images", "1", "--output_dir", place)
    return _step("example", "Explain a phantom with the checkpoint in the box", words, place / "explanations.html")


def _data(folder: Path, size: DemoSize) -> list[Step]:
    """Phantoms for the model, the labelled draw, and other phantoms for the oracle."""
    phantoms, others = folder / "phantoms", folder / "oracle-phantoms"
    train, validation, test = size.num_phantoms
    return [
        _step(
            "phantoms",
            f"Draw phantoms: {train:,} to train on, {validation} to validate, {test} to test",
            _draw(phantoms, train, validation, test, SEED),
            phantoms / "dataset_info.json",
        ),
        _step(
            "labels",
            "Draw the 10 % that keep their labels",
            (
                *("prepare", "split", "--dataset_dir", phantoms, "--share", "10", "--by", "patient"),
                *("--seed", SEED, "--output", _split(folder)),
            ),
            _split(folder),
            after=("phantoms",),
        ),
        _step(
            "oracle-phantoms",
            "Draw other phantoms for the oracle",
            _draw(others, *size.num_oracle_phantoms, 0, ORACLE_SEED),
            others / "dataset_info.json",
        ),
    ]


def _training(folder: Path, size: DemoSize) -> list[Step]:
    """The joint model, then the oracle beside it."""
    model, oracle = folder / MODEL_FOLDER, folder / "oracle"
    again = ("--resume_from_checkpoint", "latest", "--device", "cpu")
    return [
        _step(
            "model",
            "Train the diffusion model on all images, then jointly with the classifier on the labelled 10 %",
            (
                *("train", "joint", "--preset", size.preset, "--dataset_dir", folder / "phantoms"),
                *("--labelled_split", _split(folder), "--output_dir", model, "--seed", SEED, *again),
            ),
            model / "model_index.json",
            after=("labels",),
            num_processes=2,
        ),
        _step(
            "oracle",
            "Train the oracle: an independent, noise-robust classifier that will judge the counterfactuals",
            (
                *("train", "oracle", "--dataset_dir", folder / "oracle-phantoms", "--output_dir", oracle),
                *("--resolution", IMAGE_SIZE, "--max_train_steps", size.num_oracle_steps),
                *("--validation_steps", size.num_oracle_steps // 3, "--seed", ORACLE_SEED, *again),
            ),
            oracle / "config.json",
            after=("oracle-phantoms",),
        ),
    ]


def _results(folder: Path, size: DemoSize) -> list[Step]:
    """Calibration; then classification, explanations, and the oracle's judgement of them."""
    model, explanations, study = folder / MODEL_FOLDER, folder / EXPLANATION_FOLDER, folder / STUDY_FOLDER
    trained = ("--model", model, "--dataset_dir", folder / "phantoms")
    return [
        _step(
            "calibration",
            "Choose strength, region and guidance scales on the validation phantoms",
            ("calibrate", *trained, *size.calibration),
            model / "guidance_calibration.json",
            after=("model",),
        ),
        _step(
            "counterfactuals",
            "Explain held-out phantoms: remove and add findings, and let the oracle judge",
            (
                *("evaluate", "counterfactuals", *trained, "--oracle_path", folder / "oracle", "--output_dir", study),
                *("--direction", "both", "--num_images_per_label", size.num_images_per_label, "--num_true_ways", 40),
            ),
            study / "counterfactuals.json",
            after=("calibration", "oracle"),
        ),
        _step(
            "explanations",
            "Explain phantoms in detail: a page with sliders, panels and animations",
            (
                *("explain", *trained, "--away", "Cardiomegaly", "--num_images", size.num_explained),
                *("--output_dir", explanations),
            ),
            explanations / "explanations.html",
            after=("calibration",),
        ),
        _step(
            "classification",
            "Classify the held-out phantoms",
            ("evaluate", "classification", *trained, "--output_dir", folder),
            folder / "classification.json",
            after=("model",),
        ),
    ]


def _step(
    name: str,
    title: str,
    words: tuple[object, ...],
    output: Path,
    after: tuple[str, ...] = (),
    num_processes: int = 1,
) -> Step:
    return Step(name, title, tuple(map(str, words)), output, after, num_processes)


def _split(folder: Path) -> Path:
    return folder / "labelled-10pct.json"


def _draw(place: Path, train: int, validation: int, test: int, seed: int) -> tuple[object, ...]:
    sizes = ("--num_train", train, "--num_validation", validation, "--num_test", test)
    return ("prepare", "phantom", "--output_dir", place, "--image_size", IMAGE_SIZE, "--seed", seed, *sizes)
