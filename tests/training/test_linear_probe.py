"""A class stage that begins from a linear probe of the frozen features."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression
from support.components import MULTI_LABEL, SINGLE_LABEL, tiny_unet
from support.training import TINY_JOINT, joint_config

from mediffusion_diffusers.training.joint.linear_probe import begin_with_linear_probe, linear_probe
from mediffusion_diffusers.training.joint.task import train_joint


@pytest.mark.parametrize("norm_type", [None, "batch_norm"])
def test_the_head_answers_as_the_probe(norm_type):
    unet = tiny_unet(classifier_hidden_size=0, classifier_norm_type=norm_type).train()
    latents = torch.randn(12, unet.config.in_channels, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = np.random.default_rng(0).integers(0, 2, (12, 3)).astype(np.float32)
    labels[3, 1] = np.nan
    begin_with_linear_probe(unet, lambda rows: latents[torch.from_numpy(rows)], np.arange(12), labels, batch_size=5)
    assert unet.training
    unet.eval()
    with torch.no_grad():
        features = unet.pool_features(unet.encode(latents, 0))
        logits = unet(latents, 0, return_sample=False).logits
    standardised = (features - features.mean(0)) / features.std(0, correction=0).clamp_min(1e-3)
    probe = linear_probe(standardised, torch.from_numpy(labels), MULTI_LABEL)
    torch.testing.assert_close(logits, probe(standardised), atol=1e-2, rtol=1e-2)
    known = torch.from_numpy(labels[:, 0])
    assert logits[known == 1, 0].min() > logits[known == 0, 0].max()  # more features than images: it can tell them


@pytest.mark.parametrize("problem_type", [MULTI_LABEL, SINGLE_LABEL])
def test_the_probe_is_the_logistic_regression_of_scikit_learn(problem_type):
    generator = torch.Generator().manual_seed(0)
    features, classes = torch.randn(40, 5, generator=generator), torch.randint(3, (40,), generator=generator)
    labels = torch.nn.functional.one_hot(classes, 3).float()
    found = linear_probe(features, labels, problem_type)(features).detach()
    mean_over = labels.numel() if problem_type == MULTI_LABEL else len(labels)
    own = {"C": 1 / (2 * 3e-2 * mean_over), "max_iter": 2000, "tol": 1e-8}
    if problem_type == MULTI_LABEL:
        for number in range(3):
            expected = LogisticRegression(**own).fit(features, labels[:, number]).decision_function(features)
            np.testing.assert_allclose(found[:, number], expected, atol=5e-3)
    else:
        expected = LogisticRegression(**own).fit(features, classes).predict_proba(features)
        np.testing.assert_allclose(found.softmax(1), expected, atol=2e-3)


LINE = ("--linear_probe_first", "--classifier_hidden_size", 0, "--classifier_start_step", 2, "--max_train_steps", 3)


def run(phantoms, folder, *arguments):
    train_joint(joint_config(*TINY_JOINT, "--dataset_dir", phantoms, *LINE, "--output_dir", folder, *arguments))
    return folder


def test_the_class_stage_begins_from_it(phantoms, tmp_path):
    """At a learning rate of nothing the probe is what stays, in the model and in its average; so too when resumed."""
    still = ("--lr_restart_at_classifier_start", "--joint_learning_rate", 1e-30, "--checkpointing_steps", 1)
    whole = run(phantoms, tmp_path / "whole", *still)
    unet, ema = (load_file(whole / "checkpoint-3" / f"{name}.safetensors") for name in ("unet", "ema"))
    heads = [name for name in ema if name.startswith("classifier") and ema[name].is_floating_point()]
    assert any(ema[name].any() for name in heads)
    assert all(torch.equal(unet[name], ema[name]) for name in ema)
    before = load_file(whole / "checkpoint-2" / "unet.safetensors")
    assert not any(before[name].any() for name in heads)  # a linear head starts at zero
    resumed = run(phantoms, tmp_path / "resumed", *still, "--resume_from_checkpoint", whole / "checkpoint-2")
    again = load_file(resumed / "checkpoint-3" / "ema.safetensors")
    assert all(torch.equal(again[name], ema[name]) for name in ema)


def test_without_a_class_loss_there_is_nothing_to_begin(phantoms, tmp_path):
    with pytest.raises(ValueError, match="`linear_probe_first` needs a classifier"):
        run(phantoms, tmp_path / "run", "--classifier_loss_weight", 0)


def test_a_head_with_a_hidden_layer_is_refused(phantoms, tmp_path):
    with pytest.raises(ValueError, match=r"`linear_probe_first` needs .* `classifier_hidden_size=0`, but .* has 8"):
        run(phantoms, tmp_path / "run", "--classifier_hidden_size", 8)
