"""Strength and scale of a checkpoint, by rule, from the validation split."""

import shutil

import numpy as np
import pytest
from support.components import tiny_scheduler, tiny_unet, tiny_vae

from mediffusion_diffusers import MediffusionCounterfactualPipeline
from mediffusion_diffusers.data.phantom import PHANTOM_LABELS, prepare_phantoms
from mediffusion_diffusers.evaluation.counterfactual_study import CounterfactualStudyRunner
from mediffusion_diffusers.evaluation.counterfactuals import flips
from mediffusion_diffusers.evaluation.guidance_calibration import (
    GuidanceCalibration,
    GuidanceChoice,
    GuidanceTrial,
    best_guidance,
    write_guidance_defaults,
)


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


def trial(scale, flip_rate, l1, direction="remove", strength=0.3, mask="everywhere"):
    return GuidanceTrial(direction, strength, mask, scale, flip_rate, l1, 10)


def calibration_of(folders, trials=(), **arguments):
    settings = {"num_inference_steps": 2}
    runner = CounterfactualStudyRunner(folders / "pipeline", folders / "data", "validation", settings=settings)
    calibration = GuidanceCalibration(runner, num_images_per_label=2, **arguments)
    calibration.trials = list(trials)
    return calibration


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
    choice = best_guidance([GuidanceChoice((one,)) for one in trials])
    assert choice.trials[0].guidance_scale == chosen


def test_each_direction_has_its_scale_and_both_share_strength_and_mask(folders):
    everywhere = [trial(40, 1.0, 0.02), trial(20, 0.99, 0.01, "add")]
    region = [trial(80, 1.0, 0.01, mask="auto"), trial(20, 0.99, 0.012, "add", mask="auto")]
    weak = [trial(80, 0.5, 0.001, strength=0.1), trial(20, 1.0, 0.001, "add", strength=0.1)]  # one does not flip
    settings = calibration_of(folders, everywhere + region + weak).choose().settings()
    assert settings == {"strength": 0.3, "mask": "auto", "guidance_scale": {"away": 80, "towards": 20}}
    settings = calibration_of(folders, everywhere, directions=["add"]).choose().settings()
    assert settings == {"strength": 0.3, "mask": "everywhere", "guidance_scale": 20}


def test_refinement_closes_in_on_the_smallest_scale_that_flips(folders, monkeypatch):
    calibration = calibration_of(folders)
    least = {"remove": 50.0, "add": 12.0}

    def flips_from_there_on(direction, strength, mask, scale):
        return trial(scale, float(scale >= least[direction]), scale / 1e4, direction, strength, mask)

    monkeypatch.setattr(calibration, "_try", flips_from_there_on)
    calibration.measure([0.3], [1.0, 10.0, 100.0], ["auto"])
    coarse = calibration.choose().settings()["guidance_scale"]
    calibration.refine(5)
    fine = calibration.choose().settings()["guidance_scale"]
    assert coarse == {"away": 100.0, "towards": 100.0}
    assert 50 <= fine["away"] < 55 and 12 <= fine["towards"] < 13.2
    assert len(calibration.trials) == 6 + 2 * 5


@pytest.mark.parametrize("largest, expected", [(35.0, (32, 35)), (500.0, (38, 41))])
def test_refinement_goes_up_where_too_little_flips(folders, monkeypatch, largest, expected):
    """The grid's 10 flips too little and its 100, if there is one, changes too much."""
    calibration = calibration_of(folders, directions=["add"], max_l1=largest / 1e3)

    def flips_from_40_on(direction, strength, mask, scale):
        return trial(scale, min(1.0, scale / 40), scale / 1e3, direction, strength, mask)

    monkeypatch.setattr(calibration, "_try", flips_from_40_on)
    calibration.measure([0.3], [1.0, 10.0] + [100.0] * (largest < 100), ["auto"])
    calibration.refine(8)
    assert expected[0] <= calibration.choose().settings()["guidance_scale"] <= expected[1]


def test_figures_are_those_of_the_study(folders):
    calibration = calibration_of(folders)
    runner, settings = calibration.runner, calibration.runner.settings
    calibration.measure([0.2], [5.0, 500.0], ["auto"])
    assert runner.settings == settings == {"num_inference_steps": 2}
    places = [(one.guidance_scale, one.direction) for one in calibration.trials]
    assert places == [(5.0, "remove"), (5.0, "add"), (500.0, "remove"), (500.0, "add")]
    assert calibration.trials[0].l1 < calibration.trials[2].l1
    runner.settings = {**settings, "strength": 0.2, "guidance_scale": 500.0, "mask": "auto"}
    for measured in calibration.trials[2:]:
        made = runner.explain(runner.select(measured.direction, 2), measured.direction)
        flip_rate = np.nanmean(flips(made.own, made.targets, measured.direction))
        assert measured.flip_rate == pytest.approx(flip_rate) and measured.num_images == len(made)
        assert measured.l1 == pytest.approx(np.abs(made.images - made.null_images).mean(), rel=1e-5)


def test_never_on_the_test_split(folders):
    runner = CounterfactualStudyRunner(folders / "pipeline", folders / "data", "test")
    with pytest.raises(ValueError, match="must not be chosen on the test split"):
        GuidanceCalibration(runner)


def test_defaults_are_stored_and_used(folders, tmp_path):
    shutil.copytree(folders / "pipeline", tmp_path / "pipeline")
    stored = {"strength": 0.17, "guidance_scale": {"away": 9.0, "towards": 4.0}, "mask": "auto"}
    write_guidance_defaults(tmp_path / "pipeline", stored)
    pipe = MediffusionCounterfactualPipeline.from_pretrained(tmp_path / "pipeline")
    settings = pipe.resolve_settings().to_dict()
    assert {name: settings[name] for name in stored} == stored and settings["start"] == "inversion"
