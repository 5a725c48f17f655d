"""Edited images against real ones: the detector of edits, and distances of distributions."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mediffusion_diffusers.data.phantom import render, sample_patients
from mediffusion_diffusers.evaluation.distributions import (
    feature_similarity,
    fid,
    kid,
    split_fid,
    summarize_distributions,
)
from mediffusion_diffusers.evaluation.realism import Realism, residual_features


NUM = 60


@pytest.fixture(scope="module")
def phantoms():
    return render(*sample_patients(NUM, seed=5), 32)


@pytest.fixture(scope="module")
def realism(phantoms):
    return Realism(phantoms.numpy(), range(NUM))


def test_what_cannot_be_told_and_what_shows(phantoms, realism):
    """The real images themselves cannot; a smooth change hardly; blur in one place and a hole can."""
    box = torch.zeros(1, 1, 32, 32)
    box[..., 10:18, 10:18] = 1
    smooth = F.interpolate(torch.randn(NUM, 1, 4, 4, generator=torch.Generator().manual_seed(0)), 32, mode="bicubic")
    blurred = phantoms + box * (F.avg_pool2d(phantoms, 3, 1, 1, count_include_pad=False) - phantoms)
    edits = {
        "real": phantoms,
        "smooth": (phantoms + 0.01 * smooth).clamp(0, 1),
        "blurred": blurred,
        "hole": (phantoms - 0.15 * box).clamp(0, 1),
    }
    auroc = {
        name: realism.summarize(name, edited.numpy(), range(NUM))["detector_auroc"] for name, edited in edits.items()
    }
    assert auroc["real"] == 0.5
    assert auroc["smooth"] < 0.6 < 0.75 < min(auroc["blurred"], auroc["hole"])
    minus = realism.difference("smooth", "blurred")
    assert minus["detector_auroc"] == pytest.approx(auroc["smooth"] - auroc["blurred"])
    assert minus["detector_auroc_interval_95"][1] < 0


def test_features_see_what_is_stored(phantoms):
    """Changes below half a grey level of 8 bits are not there."""
    pictures = (phantoms[:4].numpy() * 255).round() / 255
    np.testing.assert_array_equal(residual_features(pictures), residual_features(pictures + 0.4 / 255))
    colour = np.repeat(pictures, 3, axis=1)
    np.testing.assert_allclose(residual_features(colour), residual_features(pictures), atol=1e-6)


def test_few_patients_have_no_figure(phantoms):
    summary = Realism(phantoms[:8].numpy(), range(8)).summarize("few", phantoms[:8].numpy(), range(8))
    assert np.isnan(summary["detector_auroc"])


def test_distances_of_distributions():
    generator = np.random.default_rng(0)
    one, other = generator.normal(size=(2, 400, 6))
    shift = np.array([2.0, 0, 0, 0, 0, 0])
    assert fid(one, one) == pytest.approx(0, abs=1e-9) and fid(one, one + shift) == pytest.approx(4)
    assert fid(one, 2 * one) == pytest.approx((one.mean(0) ** 2).sum() + one.var(0, ddof=1).sum())  # sigma -> 2 sigma
    assert abs(kid(one, other)) < 0.05 < kid(one, other + shift)
    assert kid(one, other) == pytest.approx(kid(other, one))
    assert split_fid(one, other) == pytest.approx(split_fid(one, one), abs=0.1)
    np.testing.assert_allclose(feature_similarity(one, 3 * one), 1)


def test_floors_are_those_of_real_images():
    generator = np.random.default_rng(0)
    real, originals = generator.normal(size=(2, 40, 3))
    summary = summarize_distributions(real, real, originals, "a network")
    assert summary["fid"] == summary["fid_floor"] and summary["network"] == "a network"
    assert np.isnan(summarize_distributions(real[:3], real, originals[:3], "a network")["kid"])
