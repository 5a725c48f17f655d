"""Probabilities are calibrated by their definitions, stored with the checkpoint, and used only when asked for."""

import numpy as np
import pytest
import torch
from scipy.special import expit, softmax
from support.components import tiny_pipeline
from support.studies import prepare_world

from mediffusion_diffusers import MediffusionClassifyPipeline
from mediffusion_diffusers.atomic_files import read_json
from mediffusion_diffusers.commands import calibrate_probabilities, evaluate_classification
from mediffusion_diffusers.evaluation import probability_calibration as calibration
from mediffusion_diffusers.evaluation.classification import nan_to_none, sensitivity, threshold_at_sensitivity
from mediffusion_diffusers.evaluation.classification_study import study_classification
from mediffusion_diffusers.models.label_calibration import check_label_calibration
from mediffusion_diffusers.reports.pictures.calibration import decision_curves, reliability_plot
from mediffusion_diffusers.reports.tables import calibrated_table


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def overconfident(rng, num=4000, slope=0.5, intercept=-0.4):
    """Labels drawn from sigmoid(slope * logit + intercept), two of them."""
    logits = rng.normal(0, 3, size=(num, 2))
    return (rng.random((num, 2)) < expit(slope * logits + intercept)).astype(float), logits


def test_platt_finds_the_line_that_labels_were_drawn_from(rng):
    labels, logits = overconfident(rng)
    found = calibration.fit_calibration(labels, logits, "platt")
    np.testing.assert_allclose(found["slope"], 0.5, atol=0.05)
    np.testing.assert_allclose(found["intercept"], -0.4, atol=0.12)
    probabilities = calibration.calibrate_probabilities(expit(logits), found)
    for k in range(2):
        figures = calibration.calibration_figures(labels[:, k], probabilities[:, k])
        assert figures["slope"] == pytest.approx(1, abs=1e-4) and figures["intercept"] == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("single_label", [False, True])
def test_the_temperature_is_that_of_the_largest_likelihood(rng, single_label):
    logits = rng.normal(0, 3, size=(3000, 3))
    if single_label:
        chosen = [rng.choice(3, p=row) for row in softmax(0.4 * logits, axis=1)]
        labels = np.eye(3)[chosen]
    else:
        labels = (rng.random(logits.shape) < expit(0.4 * logits)).astype(float)
        labels[::5, 0] = np.nan
    found = calibration.fit_calibration(labels, logits, "temperature", single_label)
    assert found["slope"] == [pytest.approx(0.4, abs=0.03)] * 3 and found["intercept"] == [0, 0, 0]


def test_lines_that_do_not_exist_or_turn_ranks_round_are_none(rng):
    labels, logits = overconfident(rng, 400)
    labels[:, 0], logits[:, 1] = 1, -logits[:, 1]
    assert calibration.fit_calibration(labels, logits, "platt") == {"slope": [1.0, 1.0], "intercept": [0.0, 0.0]}
    assert calibration.fit_calibration(np.ones_like(labels), logits, "temperature")["slope"] == [1, 1]
    with pytest.raises(ValueError, match="take 'temperature'"):
        calibration.fit_calibration(labels, logits, "platt", single_label=True)


def test_no_image_is_judged_by_a_line_that_was_fitted_to_it(rng):
    """A line has the largest likelihood on the images that it was fitted to; told is that on others, which is less."""
    labels, logits = overconfident(rng, 40)
    after = calibration.cross_validated(labels, logits, np.arange(40), "platt")
    itself = calibration.calibrate_probabilities(expit(logits), calibration.fit_calibration(labels, logits, "platt"))
    likelihood = [np.log(np.where(labels == 1, each, 1 - each)).mean() for each in (after, itself)]
    assert likelihood[0] < likelihood[1]
    one_patient = calibration.cross_validated(labels, logits, np.zeros(40, dtype=int), "platt")
    np.testing.assert_array_equal(one_patient, expit(logits))


def test_reliability_and_net_benefit_by_hand():
    labels = np.array([1, 0, 1, 0, np.nan])
    probabilities = np.array([0.9, 0.85, 0.2, 0.1, 0.5])
    found = calibration.reliability(labels, probabilities, num_bins=2)
    assert found == {"predicted": pytest.approx([0.15, 0.875]), "observed": [0.5, 0.5], "num_images": [2, 2]}
    curves = calibration.net_benefit(labels, probabilities, [0.2, 0.5])
    assert curves["model"] == pytest.approx([2 / 4 - 1 / 4 * 0.25, 1 / 4 - 1 / 4])
    assert curves["treat_all"] == pytest.approx([0.5 - 0.5 * 0.25, 0.0])


def test_the_threshold_at_a_sensitivity_is_the_highest(rng):
    labels, logits = (each[:, 0] for each in overconfident(rng, 500))
    threshold = threshold_at_sensitivity(labels, logits, 0.9)
    assert sensitivity(labels, logits, threshold) >= 0.9 > sensitivity(labels, logits, np.nextafter(threshold, np.inf))
    assert np.isnan(threshold_at_sensitivity(np.zeros(3), np.arange(3.0), 0.9))


def test_the_pipeline_calibrates_only_where_it_is_asked_to():
    stored = {"slope": [0.5, 2.0, 1.0], "intercept": [0.3, -0.2, 0.0]}
    images = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    plain = tiny_pipeline(MediffusionClassifyPipeline, label_thresholds=[0.2, 0.5, 0.6])
    pipe = tiny_pipeline(MediffusionClassifyPipeline, label_thresholds=[0.2, 0.5, 0.6], label_calibration=stored)
    off, expected = pipe(images), plain(images)
    np.testing.assert_array_equal(off.probabilities, expected.probabilities)
    on = pipe(images, calibrated=True)
    np.testing.assert_allclose(on.logits, off.logits * stored["slope"] + stored["intercept"], rtol=1e-5)
    np.testing.assert_allclose(on.probabilities, expit(on.logits), rtol=1e-5)
    assert on.labels == off.labels and off.thresholds == [0.2, 0.5, 0.6]
    assert on.thresholds == pytest.approx(expit([0.5 * np.log(0.25) + 0.3, -0.2, np.log(1.5)]))
    assert pipe(images, calibrated=True, thresholds=0.7).thresholds == [0.7] * 3
    with pytest.raises(ValueError, match="calibrate-probabilities"):
        plain(images, calibrated=True)


@pytest.mark.parametrize(
    ("stored", "problem_type", "message"),
    [
        ({"slope": [1, 1]}, "multi_label_classification", "`label_calibration` must hold"),
        ({"slope": [1, -1], "intercept": [0, 0]}, "multi_label_classification", "above 0"),
        ({"slope": [1, float("nan")], "intercept": [0, 0]}, "multi_label_classification", "2 numbers each"),
        ([1, 1], "multi_label_classification", "`label_calibration` must hold"),
        ({"slope": [1, 2], "intercept": [0, 0]}, "single_label_classification", "one slope for all"),
    ],
)
def test_what_is_no_calibration_is_refused(stored, problem_type, message):
    with pytest.raises(ValueError, match=message):
        check_label_calibration(stored, 2, problem_type)


def test_the_command_stores_it_and_the_evaluation_shows_both(tmp_path, capsys):
    world = prepare_world(tmp_path)
    line = [f"--model={world / 'pipeline'}", f"--dataset_dir={world / 'data'}", "--device=cpu"]
    config = world / "pipeline" / "unet" / "config.json"
    before = config.read_text()
    calibrate_probabilities.main([*line, "--dry_run", "--method=temperature"])
    assert config.read_text() == before and "temperature, 12 images of 12 patients" in capsys.readouterr().out
    calibrate_probabilities.main(line)
    found = read_json(world / "pipeline" / "probability_calibration.json")
    assert found["method"] == "platt" and read_json(config)["label_calibration"] == found["label_calibration"]
    assert (world / "pipeline" / "reliability.png").is_file()
    out = world / "out"
    evaluate_classification.main([*line, f"--output_dir={out}", "--num_resamples=2"])
    results = read_json(out / "classification.json")
    assert set(results["calibrated"]["per_label"]) == set(results["per_label"])
    columns, rows = calibrated_table(results)
    assert columns[:3] == ["finding", "Brier", "calibrated"] and len(rows) == len(results["per_label"])
    assert rows[0][2] == results["calibrated"]["per_label"][rows[0][0]]["brier"]
    assert {path.name for path in out.glob("*.png")} == {"reliability.png", "decision-curves.png"}
    plain = study_classification(world / "pipeline", world / "data", num_resamples=2)
    assert plain["macro_auroc"] == results["macro_auroc"]
    with pytest.raises(ValueError, match="must not be calibrated on the test split"):
        calibrate_probabilities.main([*line, "--split=test"])


def test_a_label_that_nobody_knows_has_an_empty_plot():
    labels = np.array([[1, np.nan], [0, np.nan]])
    curves = nan_to_none(calibration.curves_of(labels, np.array([[0.8, 0.5], [0.3, 0.5]]), ["known", "unknown"]))
    assert decision_curves(curves).size == reliability_plot(curves).size
