"""What goes beyond the paper: pseudo-labels, min-SNR weights, weighted and balanced classes."""

import math

import numpy as np
import pytest
import torch
from diffusers.utils import logging
from support.components import MULTI_LABEL, SINGLE_LABEL, tiny_scheduler, tiny_unet
from torch.nn import functional as F

from mediffusion_diffusers.training.classification import classification_loss
from mediffusion_diffusers.training.data.label_balance import (
    BalancedIndexStream,
    SquareRootIndexStream,
    resolve_pos_weight,
    warn_about_missing_labels,
)
from mediffusion_diffusers.training.data.streams import IndexStream, take_slice
from mediffusion_diffusers.training.joint.loss_weights import snr_weights
from mediffusion_diffusers.training.joint.objectives import (
    DiffusionBatch,
    JointObjective,
    LabelledBatch,
    diffusion_loss,
)
from mediffusion_diffusers.training.joint.pseudo_labels import confident_labels, num_pseudo_terms


NAN = float("nan")


def test_multi_label_pseudo_labels_are_a_loop():
    logits = torch.tensor([[3.0, -3.0, 0.1], [0.0, 2.0, -2.3]])
    labels = confident_labels(logits, 0.9, MULTI_LABEL)
    for row in range(2):
        for column in range(3):
            probability = 1 / (1 + math.exp(-logits[row, column].item()))
            expected = 1.0 if probability >= 0.9 else 0.0 if probability <= 0.1 else NAN
            assert labels[row, column].item() == pytest.approx(expected, nan_ok=True)
    assert labels.isnan().sum() == 3


def test_single_label_pseudo_labels_are_whole_rows():
    logits = torch.tensor([[0.0, 5.0, 0.0], [1.0, 1.2, 1.1]])
    labels = confident_labels(logits, 0.9, SINGLE_LABEL)
    assert labels[0].tolist() == [0, 1, 0] and labels[1].isnan().all()


def test_the_pseudo_label_loss_is_a_mean_over_all_images():
    """FixMatch Eq. 4: what the teacher is unsure about counts as zero, not as missing."""
    logits, targets = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[1, 0], [NAN, NAN]])
    loss = classification_loss(logits, targets, SINGLE_LABEL, num_pseudo_terms(2, 2, SINGLE_LABEL))
    assert loss.item() == pytest.approx(-math.log(math.exp(2) / (math.exp(2) + 1)) / 2, rel=1e-5)
    assert num_pseudo_terms(2, 2, MULTI_LABEL) == 4


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_min_snr_weighs_the_clean_image_alike(prediction_type):
    """The weighted error of every prediction type is min(snr, gamma) times the error of the clean image it implies."""
    scheduler = tiny_scheduler("ddpm", prediction_type=prediction_type)
    timesteps = torch.tensor([0, 30, 300, 999])
    weights = snr_weights(scheduler, timesteps, 5.0)
    for place, t in enumerate(timesteps.tolist()):
        abar = scheduler.alphas_cumprod[t].item()
        snr = abar / (1 - abar)
        # Errors of the prediction per unit error of z_0: eps sqrt(snr), v sqrt(1 / (1 - abar)), sample 1.
        squared = {"epsilon": snr, "v_prediction": 1 / (1 - abar), "sample": 1.0}[prediction_type]
        assert weights[place].item() * squared == pytest.approx(min(snr, 5.0), rel=1e-4)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_soft_min_snr_stays_below_min_snr_and_is_abar_for_gamma_1(prediction_type):
    scheduler, timesteps = tiny_scheduler("ddpm", prediction_type=prediction_type), torch.arange(1000)
    hard, soft = (snr_weights(scheduler, timesteps, 5.0, name) for name in ("min", "soft_min"))
    assert bool((soft < hard).all()) and bool((soft > 0.49 * hard).all())
    abar = scheduler.alphas_cumprod
    per_clean_image = {"epsilon": abar / (1 - abar), "v_prediction": 1 / (1 - abar), "sample": torch.ones(1000)}
    weights = snr_weights(scheduler, timesteps, 1.0, "soft_min") * per_clean_image[prediction_type]
    torch.testing.assert_close(weights, abar, rtol=1e-4, atol=0)


def test_a_very_large_gamma_changes_nothing_for_the_noise():
    weights = snr_weights(tiny_scheduler("ddpm"), torch.arange(1000), 1e9)
    assert torch.allclose(weights, torch.ones(1000), rtol=1e-6)


def test_weights_of_the_images_reach_the_loss():
    output, target = torch.randn(2, 3, 4, 4, 4).unbind()
    weights = torch.tensor([0.0, 1.0, 3.0])
    expected = sum(weight * (a - b).square().mean() for weight, a, b in zip(weights, output, target, strict=True)) / 3
    assert diffusion_loss(output, target, weights=weights).item() == pytest.approx(expected.item(), rel=1e-5)

    objective = JointObjective(tiny_unet(), tiny_scheduler("ddpm"))
    latents, noise = torch.randn(2, 3, 4, 8, 8).unbind()
    timesteps = torch.tensor([5, 400, 900])
    losses = [
        objective(DiffusionBatch(latents, noise, timesteps, 3, torch.eye(3)[place]))["loss"] for place in range(3)
    ]
    whole = objective(DiffusionBatch(latents, noise, timesteps, 3))["loss"]
    assert sum(losses).item() == pytest.approx(whole.item(), rel=1e-5)


def test_the_three_losses_are_one_sum():
    unet = tiny_unet()
    objective = JointObjective(unet, tiny_scheduler("ddpm"), 0.5, 2.0, pseudo_label_weight=3.0)
    latents, noise = torch.randn(2, 3, 4, 8, 8).unbind()
    diffusion = DiffusionBatch(latents, noise, torch.tensor([5, 400, 900]), 3)
    zeros = torch.zeros(3, dtype=torch.long)
    labelled = LabelledBatch(latents, zeros, torch.tensor([[1.0, 0, 1]] * 3))
    pseudo = LabelledBatch(noise, zeros, torch.tensor([[1.0, NAN, NAN]] * 3), 9)
    losses = objective(diffusion, labelled, pseudo)
    expected = 2 * losses["diffusion_loss"] + 0.5 * losses["classification_loss"] + 3 * losses["pseudo_label_loss"]
    assert losses["loss"].item() == pytest.approx(expected.item(), rel=1e-6)


def test_multi_label_weights_are_on_the_positives():
    logits, labels = torch.tensor([[0.3, -1.0]]), torch.tensor([[1.0, 0.0]])
    loss = classification_loss(logits, labels, MULTI_LABEL, pos_weight=torch.tensor([3.0, 7.0]))
    expected = (3 * math.log(1 + math.exp(-0.3)) + math.log(1 + math.exp(-1.0))) / 2
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_balanced_weights_make_the_classes_count_alike():
    labels = np.array([[1, 0], [0, 0], [0, NAN], [0, 1], [NAN, 0]], dtype=np.float32)
    weights = resolve_pos_weight(["balanced"], labels, MULTI_LABEL)
    assert weights.tolist() == [3.0, 3.0]
    for column in range(2):  # the weighted positives are as many as the negatives
        assert weights[column] * np.nansum(labels[:, column] == 1) == np.nansum(labels[:, column] == 0)
    one_hot = np.eye(3, dtype=np.float32)[[0, 0, 0, 1, 1, 2]]
    weights = resolve_pos_weight(["balanced"], one_hot, SINGLE_LABEL)
    assert weights.tolist() == pytest.approx([6 / 9, 1.0, 2.0])
    # With equal logits for all rows each class's rows then add up to a third of the loss.
    losses = F.cross_entropy(torch.zeros(6, 3), torch.tensor([0, 0, 0, 1, 1, 2]), weight=weights, reduction="none")
    assert losses[:3].sum().item() == pytest.approx(losses[5].item(), rel=1e-6)
    assert resolve_pos_weight(["none"], one_hot, SINGLE_LABEL) is None
    assert resolve_pos_weight(["2", "3", "4"], one_hot, SINGLE_LABEL).tolist() == [2, 3, 4]
    lacking = resolve_pos_weight(["balanced"], np.zeros((4, 2), dtype=np.float32), MULTI_LABEL)
    assert lacking.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("words", [["1", "2"], ["often"], ["1", "2", "-3"], ["1", "2", "nan"]])
def test_other_weights_are_refused(words):
    with pytest.raises(ValueError, match="`pos_weight` must be 'none', 'balanced' or 3 numbers above 0"):
        resolve_pos_weight(words, np.zeros((4, 3), dtype=np.float32), MULTI_LABEL)


def test_the_balanced_stream_shows_every_class_equally_often():
    labels = np.array([[1, 0]] * 90 + [[0, 1]] * 9 + [[0, 0]] * 30, dtype=np.float32)
    indices = np.arange(1000, 1000 + len(labels))
    stream = BalancedIndexStream(indices, labels, 6, seed=3, name="labelled")
    items = [item for step in range(30) for item in stream.batch(step)]
    assert [item.position for item in items] == list(range(180))
    rows = np.array([item.row for item in items])
    for members in (indices[:90], indices[90:99], indices[99:]):
        assert np.isin(rows, members).sum() == 60
    # 60 visits to 9 images: 6 or 7 each. 60 visits to 90 images: no repetition.
    counts = [(rows == row).sum() for row in indices[90:99]]
    assert sorted(set(counts)) == [6, 7] and len(set(rows[np.isin(rows, indices[:90])])) == 60


def test_the_square_root_stream_shows_a_class_as_often_as_the_root_of_its_images():
    labels = np.array([[1, 0]] * 81 + [[0, 1]] * 9 + [[0, 0]] * 36, dtype=np.float32)
    stream = SquareRootIndexStream(np.arange(len(labels)), labels, 3000, seed=3, name="labelled")
    rows = np.array([item.row for item in stream.batch(0)])
    shares = [np.mean(rows < 81), np.mean((rows >= 81) & (rows < 90)), np.mean(rows >= 90)]
    assert shares == pytest.approx([9 / 18, 3 / 18, 6 / 18], abs=0.03)
    assert set(rows) == set(range(len(labels)))


@pytest.mark.parametrize("kind", [BalancedIndexStream, SquareRootIndexStream])
def test_a_stream_by_class_has_no_state(kind):
    labels = np.eye(3, dtype=np.float32)[np.arange(20) % 3]
    fresh, used = (kind(np.arange(20), labels, 4, seed=1, name="labelled") for _ in range(2))
    for step in (0, 7, 3):
        used.batch(step)
    assert used.batch(5) == fresh.batch(5)
    assert [item for part in range(2) for item in take_slice(fresh.batch(5), part, 2)] == fresh.batch(5)
    assert isinstance(fresh, IndexStream) and fresh.batch(0) != fresh.batch(1)


def test_a_missing_class_is_named(caplog):
    labels = np.array([[1, 0, 1], [0, 0, 1]], dtype=np.float32)
    logging.enable_propagation()
    try:
        assert warn_about_missing_labels(labels, ["Mass", "Hernia", "Effusion"]) == ["Hernia", "Effusion"]
    finally:
        logging.disable_propagation()
    assert "No labelled training image shows Hernia" in caplog.text
    assert "shows Effusion: the classifier has nothing to tell it from" in caplog.text
    assert warn_about_missing_labels(np.array([[1, 0], [0, 1]]), ["a", "b"]) == []
