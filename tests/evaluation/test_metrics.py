import doctest
import threading

import numpy as np
import pytest

from mediffusion_diffusers.evaluation import metrics
from mediffusion_diffusers.evaluation.classification import evaluate_classification, per_label_auroc
from mediffusion_diffusers.evaluation.counterfactuals import Scores, other_change, summarize_scores, target_change
from mediffusion_diffusers.evaluation.localisation import (
    LocalisationCase,
    measure_localisation,
    summarize_localisation,
)


NAMES = ["a", "b", "c"]
PARTS = (slice(0, 20), slice(20, 50))


@pytest.fixture
def rng():
    return np.random.default_rng(4)


@pytest.fixture
def scored(rng):
    """Fifty images of thirty patients, some labels unknown."""
    labels, scores = (rng.random((50, 3)) < 0.4).astype(float), rng.random((50, 3))
    labels[::7, 1] = np.nan
    return {"references": labels, "predictions": scores, "patient_ids": [f"p{row % 30}" for row in range(50)]}


def in_parts(metric, columns):
    for part in PARTS:
        metric.add_batch(**{name: values[part] for name, values in columns.items()})
    return metric


def test_batches_add_up_to_the_whole(scored):
    labels, scores = scored["references"], scored["predictions"]
    result = in_parts(metrics.MacroAuroc(), {"references": labels, "predictions": scores}).compute()
    assert result["auroc"] == pytest.approx(per_label_auroc(labels, scores))
    assert result["macro_auroc"] == pytest.approx(np.mean(per_label_auroc(labels, scores)))
    assert result["left_out"] == []


def test_classification_is_the_function_in_batches_and_at_once(scored):
    at_once = metrics.Classification().compute(**scored, label_names=NAMES, num_resamples=20)
    batched = in_parts(metrics.Classification(keep_in_memory=True), scored).compute(
        label_names=NAMES, num_resamples=20
    )
    assert batched == at_once
    report = evaluate_classification(scored["references"], scored["predictions"], NAMES).to_dict()
    assert {name: at_once[name] for name in report} == report
    assert at_once["num_patients"] == at_once["macro_auroc_interval"]["num_patients"] == 30
    assert at_once["macro_auroc_interval"]["estimate"] == at_once["macro_auroc"]


def test_two_processes_add_up_to_one(scored, tmp_path):
    results = {}

    def work(process):
        metric = metrics.Classification(
            num_process=2, process_id=process, experiment_id="both", cache_dir=str(tmp_path), timeout=60
        )
        metric.add_batch(**{name: values[PARTS[process]] for name, values in scored.items()})
        results[process] = metric.compute(label_names=NAMES, num_resamples=20)

    threads = [threading.Thread(target=work, args=(process,)) for process in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results[1] is None
    assert results[0] == metrics.Classification().compute(**scored, label_names=NAMES, num_resamples=20)


def test_score_changes(rng):
    before, after, targets = rng.random((20, 4)), rng.random((20, 4)), np.arange(20) % 4
    result = metrics.CounterfactualScoreChange().compute(predictions=after, references=before, targets=targets)
    assert result["diff"] == pytest.approx(target_change(before, after, targets).mean())
    assert result["other_diff"] == pytest.approx(other_change(before, after, targets).mean())


@pytest.mark.parametrize("direction", ["remove", "add"])
@pytest.mark.parametrize("thresholds", [None, np.full(4, 0.5)])
def test_score_changes_of_a_study_are_the_function(rng, direction, thresholds):
    before, after, null = rng.random((3, 50, 4))
    targets, patients = np.arange(50) % 4, [f"p{row % 9}" for row in range(50)]
    columns = {
        "predictions": after, "references": before, "null_scores": null, "targets": targets, "patient_ids": patients,
    }  # fmt: skip
    metric = in_parts(metrics.CounterfactualScoreChange("study"), columns)
    expected = summarize_scores(Scores(before, after, null, thresholds), targets, direction, patients)
    assert metric.compute(direction=direction, thresholds=thresholds) == expected


def test_localisation_is_the_function(rng):
    masks = rng.random((50, 8, 8)) < 0.3
    masks[3] = False  # no box
    wrong = rng.random((50, 2, 8, 8)) < 0.3
    patients = [f"p{row % 9}" for row in range(50)]
    figures = measure_localisation(LocalisationCase(rng.normal(size=(50, 1, 8, 8)), masks, np.arange(50) % 3, wrong))
    metric = in_parts(metrics.Localisation(), {**figures, "patient_ids": patients})
    assert metric.compute() == summarize_localisation(figures, patients)


def test_examples_run():
    results = doctest.testmod(metrics)
    assert results.attempted >= 10 and results.failed == 0


def test_accuracy_is_of_the_images_whose_class_is_known():
    columns = {"predictions": [[0.9, 0.1], [0.2, 0.8], [0.9, 0.1]], "patient_ids": ["a", "b", "c"]}
    references = [[1, 0], [1, 0], [np.nan, np.nan]]
    figures = metrics.Classification().compute(
        **columns, references=references, label_names=["a", "b"], single_label=True, num_resamples=2
    )
    assert figures["accuracy"] == 0.5
