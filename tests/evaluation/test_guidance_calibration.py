"""Strength and scale of a checkpoint, by rule, from the validation split."""

import math
import shutil

import numpy as np
import pytest
import torch
from support.components import tiny_scheduler, tiny_unet, tiny_vae

from mediffusion_diffusers import MediffusionCounterfactualPipeline
from mediffusion_diffusers.data.phantom import PHANTOM_LABELS, prepare_phantoms
from mediffusion_diffusers.evaluation import guidance_calibration
from mediffusion_diffusers.evaluation.counterfactual_selection import Selection
from mediffusion_diffusers.evaluation.counterfactual_study import CounterfactualStudyRunner
from mediffusion_diffusers.evaluation.guidance_calibration import (
    GuidanceCalibration,
    GuidanceChoice,
    GuidanceTrial,
    best_choice,
    clipped_share,
    wanted_probabilities,
    write_guidance_defaults,
)
from mediffusion_diffusers.evaluation.scale_search import Reading, search_scale


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A pipeline that sees every finding but one everywhere, and phantoms."""
    root = tmp_path_factory.mktemp("calibration")
    prepare_phantoms(root / "data", 0, 30, 10, image_size=16, seed=2, show_progress=False)
    unet = tiny_unet(
        id2label=dict(enumerate(PHANTOM_LABELS)),
        label_thresholds=[1e-6] * 4 + [1 - 1e-6],
        guidance_defaults={"start": "inversion", "guidance_scale": {"away": 40.0, "towards": 10.0}},
    )
    MediffusionCounterfactualPipeline(tiny_vae(), unet, tiny_scheduler()).save_pretrained(root / "pipeline")
    return root


@pytest.fixture
def calibration_of(folders):
    def make(**arguments):
        settings = {"num_inference_steps": 2}
        runner = CounterfactualStudyRunner(folders / "pipeline", folders / "data", "validation", settings=settings)
        return GuidanceCalibration(runner, num_images_per_label=2, **arguments)

    return make


def trial(scale, probability, l1=0.01, direction="remove", strength=0.3, mask="everywhere", refused=None):
    place = (direction, strength, mask, scale)
    return GuidanceTrial(*place, probability, 0.2, 0.9, l1, 0.0, 10, {}, refused)


@pytest.mark.parametrize("wanted", [0.03, 1.0, 37.0, 4000.0])
@pytest.mark.parametrize("shape", [lambda ratio: math.log(ratio), lambda ratio: math.tanh(3 * math.log(ratio))])
def test_a_scale_is_found_wherever_it_is(wanted, shape):
    """Effects that grow with the log of the scale, straight or bent, from a first guess far away."""
    read = []

    def effect(scale):
        read.append(scale)
        return Reading(-0.3 * shape(scale / wanted))

    found = search_scale(effect, 10.0, tolerance=0.02, max_readings=16)
    assert abs(effect(found).missing) <= 0.02 and len(read) <= 14


def test_refused_scales_bound_the_search():
    """All from 20 on are refused, and what is wanted lies beyond: the largest sound scale is taken."""
    found = search_scale(lambda scale: Reading(1 - scale / 100, scale >= 20), 10.0, 0.02, 12)
    assert 18 < found < 20
    assert search_scale(lambda scale: Reading(0.0, True), 10.0, 0.02, 3) is None


def test_of_settings_that_look_alike_the_smallest_change_is_chosen():
    choices = [
        GuidanceChoice((trial(1, 0.21, 0.02), trial(2, 0.19, 0.02))),
        GuidanceChoice((trial(3, 0.19, 0.01), trial(4, 0.21, 0.02))),
        GuidanceChoice((trial(5, 0.2, 0.001), trial(6, 0.5, 0.001))),  # one direction is far from real images
    ]
    assert best_choice(choices, 0.02) is choices[1]
    assert best_choice(choices[2:], 0.02) is choices[2]
    assert best_choice([choices[2], GuidanceChoice((trial(7, 0.3),))], 0.02).trials[0].guidance_scale == 7


def test_wanted_is_what_the_model_says_of_real_images_of_the_same_other_findings():
    labels = np.array([[1, 0]] * 6 + [[1, 1]] * 6 + [[0, 0]] * 6 + [[0, 1]] * 3, dtype=float)
    scores = np.repeat([[0.9, 0], [0.7, 0], [0.1, 0], [0.4, 0]], [6, 6, 6, 3], axis=0)
    chosen = Selection(np.array([0, 6]), np.array([0, 0]))
    wanted = wanted_probabilities(scores, labels, chosen, "remove")
    # Six images lack both findings; three lack the first alone, too few, so that the others count as well.
    np.testing.assert_allclose(wanted, [0.1, (6 * 0.1 + 3 * 0.4) / 9])
    none = Selection(np.array([12, 18]), np.array([0, 0]))
    np.testing.assert_allclose(wanted_probabilities(scores, labels, none, "add"), [0.9, 0.7])
    labels[:, 0] = np.where(labels[:, 0] == 0, np.nan, 1)
    assert np.isnan(wanted_probabilities(scores, labels, chosen, "remove")).all()


def test_each_direction_gets_the_scale_that_reaches_its_own_goal(calibration_of, monkeypatch):
    calibration = calibration_of()
    goal = {"remove": 50.0, "add": 12.0}

    def edit(direction, scale, place, earlier):
        missing = 0.3 * math.log(goal[direction] / scale)
        probability = 0.2 + (missing if direction == "remove" else -missing)
        l1 = 0.01 if place["mask"] == "auto" else 0.02
        return trial(scale, probability, l1, direction, place["strength"], place["mask"])

    monkeypatch.setattr(calibration, "_try", edit)
    settings = calibration.choose([0.2], ["everywhere", "auto"], guidance_scale=3.0).settings()
    assert settings["strength"] == 0.2 and settings["mask"] == "auto" and "stop_probability" not in settings
    assert settings["guidance_scale"] == {"away": pytest.approx(50, rel=0.08), "towards": pytest.approx(12, rel=0.08)}


def test_the_search_begins_where_the_checkpoint_stands(calibration_of):
    """And one trial's figures are those of the study with its settings."""
    calibration = calibration_of(max_trials=1, max_l1=1.0)
    runner, settings = calibration.runner, calibration.runner.settings
    choice = calibration.choose()
    assert [one.guidance_scale for one in choice.trials] == [40.0, 10.0]
    assert runner.settings == settings == {"num_inference_steps": 2}
    runner.settings = {**settings, **choice.settings()}
    for measured in choice.trials:
        made = runner.explain(runner.select(measured.direction, 2), measured.direction)
        after = made.own.after[np.arange(len(made)), made.targets]
        assert measured.probability == pytest.approx(after.mean()) and measured.num_images == len(made)
        assert measured.l1 == pytest.approx(np.abs(made.images - made.null_images).mean(), rel=1e-5)
        assert measured.clipped == clipped_share(made) and measured.refused is None
    targets = calibration.selections["remove"].targets.tolist()
    medians = [np.median(runner.own_probabilities[runner.labels[:, each] == 0, each]) for each in targets]
    assert calibration.defaults(choice)["stop_probability"] == {"away": pytest.approx(np.mean(medians))}
    results = calibration.to_dict(choice)
    assert set(results["wanted"]) == {"remove", "add"} and len(results["trials"]) == 2


def test_scales_that_break_images_apart_are_refused(calibration_of):
    with pytest.raises(ValueError, match="Every scale that was tried is refused: it changes a pixel by more than"):
        calibration_of(max_l1=1e-9, max_trials=2).choose()
    calibration = calibration_of()
    weak, strong = trial(10, 0.3), trial(20, 0.5)
    assert "less than a smaller scale" in calibration._reason_against(strong, [weak])
    assert calibration._reason_against(weak, [strong]) is None
    assert calibration._reason_against(trial(20, 0.33), [weak]) is None  # within the noise


def test_any_editor_can_be_calibrated(calibration_of):
    calibration = calibration_of(directions=["remove"], max_trials=2, max_l1=1.0)
    paths = {"start": "noised_paths", "num_noises": 2, "strength": 0.5}
    calibration.runner.settings = {**calibration.runner.settings, **paths}
    chosen = calibration.choose().trials[0]
    assert chosen.strength == 0.5 and torch.isfinite(torch.tensor(chosen.probability))


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


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strenght": 0.3}, "can store strength, .* but got strenght"),
        ({"strength": 3.0}, "`strength` must be a number"),
    ],
)
def test_what_a_checkpoint_cannot_store_is_refused(settings, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        write_guidance_defaults(tmp_path, settings)


def test_nothing_to_calibrate_by_is_said(calibration_of, monkeypatch):
    monkeypatch.setattr(guidance_calibration, "wanted_probabilities", lambda *_: np.full(2, np.nan))
    with pytest.raises(ValueError, match=r"No image of split 'validation' looks as an edit \(remove\) should"):
        calibration_of()
