"""Several explanations of one image."""

import numpy as np
import pytest
from support.components import random_pil, tiny_pipeline

from mediffusion_diffusers import MediffusionCounterfactualPipeline
from mediffusion_diffusers.evaluation.agreement import repeat_counterfactual


FAST = {"away": "Mass", "num_inference_steps": 3, "guidance_scale": 100.0}


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline(MediffusionCounterfactualPipeline)


def test_equal_runs_agree(pipe):
    same = repeat_counterfactual(pipe, random_pil(1), strengths=[0.2, 0.2], **FAST)
    np.testing.assert_allclose(same.spread, 0, atol=1e-7)
    changed = np.abs(same.mean_difference).mean(0) >= 0.01
    assert changed.any() and (same.agreement[changed] == 1).all()


def test_figures_against_their_formulas(pipe):
    runs = repeat_counterfactual(pipe, random_pil(1), seeds=[0, 1, 2], threshold=0.02, strength=0.2, **FAST)
    assert runs.differences.shape == (3, 1, 16, 16) and runs.probabilities_after.shape == (3, 3)
    np.testing.assert_allclose(runs.mean_difference, sum(runs.differences) / 3, atol=1e-6)
    for row, column in ((0, 0), (7, 9), (15, 3)):
        changes, mean = runs.differences[:, 0, row, column], runs.mean_difference[0, row, column]
        expected = sum(abs(change) >= 0.02 and change * mean > 0 for change in changes) / 3
        assert runs.agreement[row, column] == pytest.approx(expected)
    assert runs.spread.max() > 0


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({}, "either `strengths`"),
        ({"strengths": [0.1, 0.2], "seeds": [0, 1]}, "either `strengths`"),
        ({"strengths": [0.1]}, "At least two runs"),
        ({"strengths": [0.1, 0.2], "image": random_pil(2)}, "makes 2"),
    ],
)
def test_mistakes(pipe, arguments, message):
    with pytest.raises(ValueError, match=message):
        repeat_counterfactual(**{"pipe": pipe, "image": random_pil(1), **FAST, **arguments})
