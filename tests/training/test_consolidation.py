"""Consolidation and the decoder's own steps, in whole tiny runs."""

import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.components import MULTI_LABEL, SINGLE_LABEL, tiny_scheduler, tiny_unet
from support.training import TINY_JOINT, joint_config

from mediffusion_diffusers import MediffusionCounterfactualPipeline
from mediffusion_diffusers.data.schema import load_prepared
from mediffusion_diffusers.metrics_log import read_metrics
from mediffusion_diffusers.training.classification import classification_loss, probabilities
from mediffusion_diffusers.training.joint.objectives import DiffusionBatch, JointObjective
from mediffusion_diffusers.training.joint.task import train_joint


# Steps 0 and 1 diffusion, 2 and 3 joint, 4 to 6 consolidation, 7 and 8 the decoder alone.
RECIPE = (
    *("--max_train_steps", 9, "--classifier_start_step", 2, "--consolidation_start_step", 4),
    *("--decoder_start_step", 7, "--checkpointing_steps", 2, "--logging_steps", 1, "--validation_steps", 9),
    *("--consolidation_batch_size", 6, "--consolidation_warmup_steps", 1, "--classifier_dropout", 0.1),
)


def run(phantoms, output_dir, *arguments):
    line = (*TINY_JOINT, "--dataset_dir", phantoms, "--labelled_split", phantoms / "labelled-50.json")
    train_joint(joint_config(*line, *RECIPE, "--output_dir", output_dir, *arguments))
    return output_dir


@pytest.fixture(scope="module")
def finished(phantoms, tmp_path_factory):
    return run(phantoms, tmp_path_factory.mktemp("consolidation") / "run")


def tensors_of(folder, step, name):
    return load_file(folder / f"checkpoint-{step}" / f"{name}.safetensors")


def records(folder, kind="train"):
    timing = ("seconds", "images_per_second", "data_wait_share")
    found = [record for record in read_metrics(folder / "metrics.jsonl") if record["kind"] == kind]
    return [{name: value for name, value in record.items() if name not in timing} for record in found]


def test_the_metrics_name_the_stage_and_its_losses(finished):
    found = records(finished)
    names = ["diffusion"] * 2 + ["joint"] * 2 + ["consolidation"] * 3 + ["decoder"] * 2
    assert [record["stage"] for record in found] == names
    assert all(record["diffusion_loss"] > 0 for record in found)
    assert ["classification_loss" in record for record in found] == [name == "joint" for name in names]
    assert ["consolidation_loss" in record for record in found] == [name == "consolidation" for name in names]
    (validation,) = records(finished, "validation")
    assert all(0 <= validation[f"macro_auroc_at_{t}"] <= 1 for t in (300, 500))


@pytest.mark.parametrize("step", [4, 6, 8])
def test_resuming_is_as_if_nothing_had_happened(finished, phantoms, tmp_path, step):
    resumed = tmp_path / "run"
    later = [f"checkpoint-{number}" for number in (4, 6, 8, 9) if number > step]
    shutil.copytree(finished, resumed, ignore=shutil.ignore_patterns(*later, "unet"))
    run(phantoms, resumed, "--resume_from_checkpoint", "latest")
    names = {path.name for path in (finished / "checkpoint-6").iterdir()}
    assert names - {path.name for path in (finished / "checkpoint-9").iterdir()} == {"soft_answers.safetensors"}
    for name in ("unet", "ema", "optimizer"):
        one, other = tensors_of(finished, 9, name), tensors_of(resumed, 9, name)
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one), name
    assert records(resumed) == records(finished)


def test_with_one_view_the_answers_are_what_the_model_of_that_moment_says(phantoms, tmp_path):
    folder = run(phantoms, tmp_path / "run", "--max_train_steps", 6, "--consolidation_num_views", 1)
    pipe = MediffusionCounterfactualPipeline.from_pretrained(folder)
    unet = pipe.unet
    average = tensors_of(folder, 4, "ema")
    unet.load_state_dict({**unet.state_dict(), **average})
    images = load_prepared(phantoms, "train")["image"][:]
    with torch.no_grad():
        logits = unet.eval()(pipe.encode_images(images), 0, return_sample=False).logits
    answers = tensors_of(folder, 6, "soft_answers")["probabilities"]
    torch.testing.assert_close(answers, probabilities(logits, MULTI_LABEL), atol=1e-5, rtol=0)


def test_consolidation_goes_on_from_the_average_with_a_fresh_optimizer(finished, phantoms, tmp_path):
    """With a rate of nothing the weights stay the average's."""
    still = run(phantoms, tmp_path / "run", "--max_train_steps", 6, "--consolidation_learning_rate", 1e-30)
    average, weights = tensors_of(still, 4, "ema"), tensors_of(still, 6, "unet")
    assert all(torch.equal(average[name], weights[name]) for name in average)
    state = tensors_of(still, 6, "optimizer")
    assert {int(value) for name, value in state.items() if name.endswith(":step")} == {2}


def test_the_decoders_own_steps_leave_the_classifier_as_it_was(finished):
    """Bit for bit, in the averaged weights too."""
    for name in ("unet", "ema"):
        before, after = tensors_of(finished, 8, name), tensors_of(finished, 9, name)
        moved = {key for key in before if not torch.equal(before[key], after[key])}
        assert moved and all(key.startswith(("up_blocks", "conv_norm_out", "conv_out")) for key in moved)
    consolidated, after = tensors_of(finished, 8, "ema"), tensors_of(finished, 9, "ema")
    assert all(torch.equal(consolidated[key], after[key]) for key in after if key.startswith("classifier"))


def test_the_decoder_gets_the_same_gradient_with_the_encoder_frozen():
    unet, scheduler = tiny_unet().train(), tiny_scheduler("ddpm")
    latents, noise = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    batch = DiffusionBatch(latents, noise, torch.tensor([10, 400, 900]), 3)
    gradients = []
    for trains_encoder in (True, False):
        objective = JointObjective(unet, scheduler)
        objective.trains_encoder = trains_encoder
        unet.zero_grad()
        objective(batch)["loss"].backward()
        gradients.append({name: p.grad for name, p in unet.named_parameters() if p.grad is not None})
    assert set(gradients[1]) < set(gradients[0])
    assert not [name for name in gradients[1] if name.startswith(("conv_in", "down_blocks", "mid_block", "time_emb"))]
    for name, gradient in gradients[1].items():
        torch.testing.assert_close(gradient, gradients[0][name])


@pytest.mark.parametrize("problem_type", [MULTI_LABEL, SINGLE_LABEL])
def test_ones_own_soft_answers_pull_nowhere(problem_type):
    """The cross-entropy to p(logits) is smallest at the logits themselves."""
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    answers = probabilities(logits.detach(), problem_type)
    classification_loss(logits, answers, problem_type).backward()
    assert logits.grad.abs().max() < 1e-6


def test_the_class_stage_leaves_the_decoder_alone(phantoms, tmp_path):
    folder = run(phantoms, tmp_path / "run", "--joint_diffusion_loss_weight", 0, "--max_train_steps", 4)
    assert [record["stage"] for record in records(folder)] == ["diffusion"] * 2 + ["classification"] * 2
    assert "diffusion_loss" not in records(folder)[-1]
    before, after = tensors_of(folder, 2, "unet"), tensors_of(folder, 4, "unet")
    moved = {key.split(".")[0] for key in before if not torch.equal(before[key], after[key])}
    assert "classifier" in moved and not moved & {"up_blocks", "conv_out"}


def test_accumulation_changes_nothing_but_rounding(phantoms, tmp_path):
    line = ("--classifier_dropout", 0, "--max_train_steps", 8)
    parts = run(phantoms, tmp_path / "parts", *line, "--gradient_accumulation_steps", 2)
    whole = run(phantoms, tmp_path / "whole", *line)
    for one, other in zip(records(parts), records(whole), strict=True):
        losses = {name for name in other if name.endswith("loss")}
        assert {name: one[name] for name in losses} == pytest.approx({name: other[name] for name in losses}, rel=1e-3)


def test_cached_latents_are_answered_as_well(phantoms, tmp_path):
    line = ("--cache_latents", "--cache_latents_variants", 2, "--latent_cache_dir", tmp_path / "latents")
    folder = run(phantoms, tmp_path / "run", *line, "--max_train_steps", 6)
    assert np.isfinite(records(folder)[-1]["consolidation_loss"])


def test_a_checkpoint_without_answers_says_what_to_do(finished, phantoms, tmp_path):
    resumed = tmp_path / "run"
    shutil.copytree(finished, resumed, ignore=shutil.ignore_patterns("checkpoint-[4-9]", "unet"))
    with pytest.raises(ValueError, match=r"holds no soft answers .* Set it to 2 or later"):
        run(
            *(phantoms, resumed, "--resume_from_checkpoint", "latest"),
            *("--classifier_start_step", 0, "--consolidation_start_step", 1),
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--consolidation_start_step", 2), r"`consolidation_start_step` must be above `classifier_start_step` \(2\)"),
        (
            ("--decoder_start_step", 4),
            r"must be above `consolidation_start_step` \(4\), but got 4",
        ),
        (("--no-use_ema",), "`consolidation_start_step` needs `use_ema`"),
        (("--classifier_loss_weight", 0), "`consolidation_start_step` needs a classifier"),
        (("--consolidation_max_timestep", 1001), r"`consolidation_max_timestep` must be in \[1, 1000\]"),
        (("--joint_diffusion_loss_weight", 0, "--classifier_every", 2), "leaves steps without any loss"),
    ],
)
def test_bad_arguments_are_refused(arguments, message, phantoms, tmp_path):
    with pytest.raises(ValueError, match=message):
        run(phantoms, tmp_path / "run", *arguments)


def test_without_a_diffusion_loss_the_classifier_consolidates_alone(phantoms, tmp_path):
    """A linear head on standardised features, whose statistics no longer move; nothing noised, nothing denoised."""
    line = (*TINY_JOINT, "--dataset_dir", phantoms, "--labelled_split", phantoms / "labelled-50.json")
    line = (*line, "--diffusion_loss_weight", 0, "--max_train_steps", 4, "--consolidation_start_step", 2)
    line = (*line, "--classifier_hidden_size", 0, "--classifier_norm_type", "batch_norm", "--logging_steps", 1)
    line = (*line, "--checkpointing_steps", 2, "--consolidation_noise_prob", 0, "--classifier_color_jitter", 0.2)
    folder = tmp_path / "run"
    train_joint(joint_config(*line, "--random_rotation", 90, "--output_dir", folder))
    assert [record["stage"] for record in records(folder)] == ["classification"] * 2 + ["consolidation"] * 2
    assert not any("diffusion_loss" in record for record in records(folder))
    before, after = tensors_of(folder, 2, "unet"), tensors_of(folder, 4, "unet")
    for name in ("classifier.0.running_mean", "classifier.0.running_var"):
        assert torch.equal(before[name], after[name]) and not torch.equal(after[name], torch.zeros_like(after[name]))
    assert not torch.equal(before["classifier.2.weight"], after["classifier.2.weight"])
    assert not torch.equal(before["conv_in.weight"], after["conv_in.weight"])


def test_statistics_need_more_than_one_labelled_image(phantoms, tmp_path):
    line = (*TINY_JOINT, "--dataset_dir", phantoms, "--labelled_split", phantoms / "labelled-50.json")
    line = (*line, "--classifier_norm_type", "batch_norm", "--labelled_batch_size", 3)
    with pytest.raises(ValueError, match="`labelled_batch_size` must be at least 4, but got 3"):
        train_joint(joint_config(*line, "--gradient_accumulation_steps", 2, "--output_dir", tmp_path / "run"))
