import doctest

import numpy as np
import pytest

from mediffusion_diffusers.evaluation import metrics
from mediffusion_diffusers.evaluation.classification import per_label_auroc
from mediffusion_diffusers.evaluation.counterfactuals import other_change, target_change


@pytest.fixture
def rng():
    return np.random.default_rng(4)


def test_batches_add_up_to_the_whole(rng):
    labels, scores = (rng.random((50, 3)) < 0.4).astype(float), rng.random((50, 3))
    labels[::7, 1] = np.nan
    metric = metrics.MacroAuroc()
    for part in (slice(0, 20), slice(20, 50)):
        metric.add_batch(predictions=scores[part].tolist(), references=labels[part].tolist())
    result = metric.compute()
    assert result["auroc"] == pytest.approx(per_label_auroc(labels, scores))
    assert result["macro_auroc"] == pytest.approx(np.mean(per_label_auroc(labels, scores)))
    assert result["left_out"] == []


def test_score_changes(rng):
    before, after, targets = rng.random((20, 4)), rng.random((20, 4)), np.arange(20) % 4
    result = metrics.CounterfactualScoreChange().compute(
        predictions=after.tolist(), references=before.tolist(), targets=targets.tolist()
    )
    assert result["diff"] == pytest.approx(target_change(before, after, targets).mean())
    assert result["other_diff"] == pytest.approx(other_change(before, after, targets).mean())


def test_examples_run():
    results = doctest.testmod(metrics)
    assert results.attempted >= 6 and results.failed == 0
