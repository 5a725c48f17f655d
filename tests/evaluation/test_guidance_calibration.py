"""Strength and scale of a checkpoint, by rule, from the validation split."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.components import tiny_scheduler, tiny_unet, tiny_vae

from mediffusion_diffusers import MediffusionCounterfactualPipeline
from mediffusion_diffusers.data.phantom import PHANTOM_LABELS, prepare_phantoms
from mediffusion_diffusers.evaluation.counterfactual_study import CounterfactualStudyRunner
from mediffusion_diffusers.evaluation.counterfactuals import flips
from mediffusion_diffusers.evaluation.guidance_calibration import (
    GuidanceTrial,
    calibrate_guidance,
    choose_guidance,
    write_guidance_defaults,
)


ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A pipeline that sees every finding everywhere, and phantoms."""
    root = tmp_path_factory.mktemp("calibration")
    prepare_phantoms(root / "data", 0, 30, 10, image_size=16, seed=2, show_progress=False)
    unet = tiny_unet(
        id2label=dict(enumerate(PHANTOM_LABELS)),
        label_thresholds=[1e-6] * 4 + [1 - 1e-6],
        guidance_defaults={"start": "inversion"},
    )
    MediffusionCounterfactualPipeline(tiny_vae(), unet, tiny_scheduler()).save_pretrained(root / "pipeline")
    return root


def trial(scale, flip_rate, l1):
    return GuidanceTrial(0.3, scale, flip_rate, l1, 10)


@pytest.mark.parametrize(
    "trials, chosen",
    [
        ([trial(1, 0.9, 0.01), trial(2, 0.96, 0.02), trial(3, 1.0, 0.03)], 2),  # the smallest that flips enough
        ([trial(1, 0.5, 0.01), trial(2, 0.7, 0.03), trial(3, 0.97, 0.09)], 2),  # none beyond recognition
        ([trial(1, 0.7, 0.02), trial(2, 0.7, 0.01)], 2),  # equal flips: the smaller change
        ([trial(1, 0.9, 0.2), trial(2, 0.8, 0.1)], 2),  # all beyond recognition: the smallest change
    ],
)
def test_rule(trials, chosen):
    assert choose_guidance(trials).guidance_scale == chosen


def test_figures_are_those_of_the_study(folders):
    settings = {"num_inference_steps": 2}
    runner = CounterfactualStudyRunner(folders / "pipeline", folders / "data", "validation", settings=settings)
    trials = calibrate_guidance(runner, [0.2], [5.0, 500.0], num_images_per_label=2)
    assert runner.settings == settings and [one.guidance_scale for one in trials] == [5.0, 500.0]
    assert trials[0].l1 < trials[1].l1
    runner.settings = {**settings, "strength": 0.2, "guidance_scale": 500.0}
    flipped, l1 = [], []
    for direction in ("remove", "add"):
        made = runner.explain(runner.select(direction, 2), direction)
        flipped.append(flips(made.own, made.targets, direction))
        l1.append(np.abs(made.images - made.null_images).mean((1, 2, 3)))
    assert trials[1].flip_rate == pytest.approx(np.nanmean(np.concatenate(flipped)))
    assert trials[1].l1 == pytest.approx(np.concatenate(l1).mean(), rel=1e-5)


def test_never_on_the_test_split(folders):
    runner = CounterfactualStudyRunner(folders / "pipeline", folders / "data", "test")
    with pytest.raises(ValueError, match="must not be chosen on the test split"):
        calibrate_guidance(runner, [0.2], [5.0])


def test_defaults_are_stored_and_used(folders, tmp_path):
    shutil.copytree(folders / "pipeline", tmp_path / "pipeline")
    write_guidance_defaults(tmp_path / "pipeline", {"strength": 0.17, "guidance_scale": 9.0})
    pipe = MediffusionCounterfactualPipeline.from_pretrained(tmp_path / "pipeline")
    settings = pipe.resolve_settings()
    assert settings["strength"] == 0.17 and settings["guidance_scale"] == 9.0 and settings["start"] == "inversion"


def test_script(folders, tmp_path):
    shutil.copytree(folders / "pipeline", tmp_path / "pipeline")
    command = [sys.executable, ROOT / "training/calibrate_guidance.py", "--dataset_dir", folders / "data"]
    model = ["--pretrained_model_name_or_path", tmp_path / "pipeline"]
    trials = ["--strengths", "0.2", "--guidance_scales", "5", "50", "--num_inference_steps", "2"]
    done = subprocess.run([*command, *model, *trials], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    chosen = json.loads((tmp_path / "pipeline/guidance_calibration.json").read_text())["chosen"]
    stored = json.loads((tmp_path / "pipeline/unet/config.json").read_text())["guidance_defaults"]
    assert stored["guidance_scale"] == chosen["guidance_scale"] and stored["follow_inversion"]
    assert "<- chosen" in done.stdout
    wrong = subprocess.run([*command, *model, "--split", "test"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 1 and "calibrate_guidance.py: Guidance must not be chosen" in wrong.stderr
