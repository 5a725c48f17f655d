import json

import numpy as np
import pytest

from mediffusion_diffusers.evaluation import classification as cls


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def _example(rng, num=400, ties=False):
    labels = (rng.random(num) < 0.3).astype(float)
    scores = 1 / (1 + np.exp(-(rng.normal(size=num) + 1.2 * labels - 1)))
    return labels, np.round(scores, 1) if ties else scores


@pytest.mark.parametrize("ties", [False, True])
def test_auroc_and_auprc_agree_with_sklearn(rng, ties):
    metrics = pytest.importorskip("sklearn.metrics")
    labels, scores = _example(rng, ties=ties)
    assert cls.auroc(labels, scores) == pytest.approx(metrics.roc_auc_score(labels, scores), abs=1e-12)
    assert cls.average_precision(labels, scores) == pytest.approx(
        metrics.average_precision_score(labels, scores), abs=1e-12
    )
    assert cls.brier_score(labels, scores) == pytest.approx(metrics.brier_score_loss(labels, scores))


def test_auroc_is_the_share_of_ordered_pairs(rng):
    labels, scores = _example(rng, num=60, ties=True)
    pairs = [(p > n) + 0.5 * (p == n) for p in scores[labels == 1] for n in scores[labels == 0]]
    assert cls.auroc(labels, scores) == pytest.approx(np.mean(pairs))


def test_weights_are_repetitions(rng):
    labels, scores = _example(rng, num=80, ties=True)
    weights = rng.integers(0, 4, size=80)
    repeated = np.repeat(np.arange(80), weights)
    assert cls.auroc(labels, scores, weights) == pytest.approx(cls.auroc(labels[repeated], scores[repeated]))


def test_limits(rng):
    labels, scores = _example(rng, num=20000)
    assert cls.auroc(labels, rng.random(20000)) == pytest.approx(0.5, abs=0.02)
    assert cls.auroc(labels, np.ones(20000)) == 0.5
    assert cls.auroc(labels, labels) == 1.0
    assert cls.auroc(labels, -scores) == pytest.approx(1 - cls.auroc(labels, scores))
    assert cls.average_precision(labels, np.ones(20000)) == pytest.approx(labels.mean())
    assert np.isnan(cls.auroc(np.zeros(3), np.arange(3.0)))


def test_unknown_labels_are_masked(rng):
    labels, scores = _example(rng)
    unknown = labels.copy()
    unknown[::3] = np.nan
    kept = ~np.isnan(unknown)
    for metric in (cls.auroc, cls.average_precision, cls.brier_score, cls.expected_calibration_error):
        assert metric(unknown, scores) == metric(labels[kept], scores[kept])


@pytest.mark.parametrize("level", [0.5, 0.9, 0.95])
def test_threshold_at_specificity_is_the_lowest(rng, level):
    labels, scores = _example(rng, ties=True)
    threshold = cls.threshold_at_specificity(labels, scores, level)
    assert cls.specificity(labels, scores, threshold) >= level
    lower = np.unique(scores)[np.unique(scores) < threshold][-1]
    assert cls.specificity(labels, scores, lower) < level


def test_youden_beats_every_other_threshold(rng):
    labels, scores = _example(rng, ties=True)

    def youden(threshold):
        return cls.sensitivity(labels, scores, threshold) + cls.specificity(labels, scores, threshold) - 1

    best = youden(cls.youden_threshold(labels, scores))
    assert best == pytest.approx(max(youden(threshold) for threshold in np.linspace(0, 1, 201)))


def test_calibration_of_calibrated_and_overconfident_probabilities(rng):
    logits = rng.normal(size=40000)
    probabilities = 1 / (1 + np.exp(-logits))
    labels = (rng.random(40000) < probabilities).astype(float)
    slope, intercept = cls.calibration_line(labels, probabilities)
    assert (slope, intercept) == pytest.approx((1, 0), abs=0.06)
    assert cls.expected_calibration_error(labels, probabilities) < 0.02
    overconfident = 1 / (1 + np.exp(-2 * logits))
    assert cls.calibration_line(labels, overconfident)[0] == pytest.approx(0.5, abs=0.03)
    assert cls.expected_calibration_error(labels, overconfident) > 0.05


def test_report_names_the_classes_it_leaves_out(rng):
    labels, scores = _example(rng)
    matrix = np.stack([labels, np.zeros(400), np.ones(400), np.full(400, np.nan)], axis=1)
    report = cls.evaluate_classification(matrix, np.stack([scores] * 4, axis=1), ["a", "b", "c", "d"])
    assert report.macro_auroc == cls.auroc(labels, scores)
    assert report.left_out == {
        "b": "no positive in this split",
        "c": "no negative in this split",
        "d": "no known label in this split",
    }
    assert "NaN" not in json.dumps(report.to_dict(), allow_nan=False)


def test_thresholds_come_from_validation(rng):
    labels, scores = _example(rng)
    validation_labels, validation_scores = _example(rng)
    report = cls.evaluate_classification(
        labels[:, None], scores[:, None], ["a"], validation_labels[:, None], validation_scores[:, None]
    ).per_label["a"]
    threshold = cls.threshold_at_specificity(validation_labels, validation_scores, 0.9)
    assert report.sensitivity_at_specificity["0.90"] == cls.sensitivity(labels, scores, threshold)
    assert report.specificity_reached["0.90"] == cls.specificity(labels, scores, threshold)
    assert report.threshold == cls.youden_threshold(validation_labels, validation_scores)


@pytest.mark.parametrize(
    ("labels", "probabilities", "message"),
    [
        (np.zeros((3, 2)), np.zeros((3, 1)), "shape"),
        (np.zeros((3, 1)), np.full((3, 1), 1.5), r"\[0, 1\]"),
        (np.zeros((3, 1)), np.full((3, 1), np.nan), "finite"),
        (np.full((3, 1), 2.0), np.zeros((3, 1)), "1, 0 or NaN"),
    ],
)
def test_errors(labels, probabilities, message):
    with pytest.raises(ValueError, match=message):
        cls.evaluate_classification(labels, probabilities, ["a"])
