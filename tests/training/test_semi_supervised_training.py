"""The options beyond the paper, in whole tiny runs."""

import shutil

import pytest
import torch
from diffusers import DDIMScheduler
from diffusers.utils import logging
from safetensors.torch import load_file
from support.components import tiny_vae
from support.training import TINY_JOINT, joint_config

from mediffusion_diffusers import (
    MediffusionCounterfactualPipeline,
    MediffusionGuidedPipeline,
    SpaceToDepthAutoencoder,
)
from mediffusion_diffusers.data.schema import load_info, load_prepared
from mediffusion_diffusers.data.splits import draw_labelled_split
from mediffusion_diffusers.guidance import OWN_GUIDANCE_MODES
from mediffusion_diffusers.metrics_log import read_metrics
from mediffusion_diffusers.training.joint.components import build_noise_scheduler, sampling_scheduler
from mediffusion_diffusers.training.joint.config import DiffusionOptions
from mediffusion_diffusers.training.joint.task import train_joint


PSEUDO = (
    *("--pseudo_label_start_step", 3, "--pseudo_label_threshold", 0.51, "--classifier_dropout", 0.3),
    *("--balanced_labelled_sampling", "--pos_weight", "balanced", "--max_train_steps", 6, "--logging_steps", 1),
)


def run(phantoms, output_dir, *arguments):
    line = (*TINY_JOINT, "--dataset_dir", phantoms, "--labelled_split", phantoms / "labelled-50.json")
    train_joint(joint_config(*line, "--output_dir", output_dir, *arguments))
    return output_dir


@pytest.fixture(scope="module")
def finished(phantoms, tmp_path_factory):
    return run(phantoms, tmp_path_factory.mktemp("pseudo") / "run", *PSEUDO)


def tensors_of(folder, step, name):
    return load_file(folder / f"checkpoint-{step}" / f"{name}.safetensors")


def assert_equal(one, other):
    assert one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_pseudo_labels_begin_at_their_step(finished, phantoms, tmp_path):
    records = [record for record in read_metrics(finished / "metrics.jsonl") if record["kind"] == "train"]
    assert ["pseudo_label_loss" in record for record in records] == [False] * 3 + [True] * 3
    assert all(0 < record["pseudo_label_share"] <= 1 for record in records[3:])
    without = run(phantoms, tmp_path / "run", *PSEUDO, "--pseudo_label_start_step", 6)
    assert_equal(tensors_of(finished, 3, "unet"), tensors_of(without, 3, "unet"))
    one, other = (tensors_of(folder, 6, "unet") for folder in (finished, without))
    assert not any(torch.equal(one[name], other[name]) for name in one if name.startswith("classifier"))


def test_an_unsure_teacher_changes_nothing(phantoms, tmp_path):
    """Dropout is off, because the pseudo-labelled images take their part of its draws."""
    common = (*PSEUDO, "--classifier_dropout", 0)
    one = run(phantoms, tmp_path / "one", *common, "--pseudo_label_threshold", 0.999999)
    records = [record for record in read_metrics(one / "metrics.jsonl") if record["kind"] == "train"]
    assert records[-1]["pseudo_label_share"] == records[-1]["pseudo_label_loss"] == 0
    other = run(phantoms, tmp_path / "other", *common, "--pseudo_label_start_step", 6)
    for with_teacher, without in zip(
        *(read_metrics(folder / "metrics.jsonl") for folder in (one, other)), strict=True
    ):
        for name in ("diffusion_loss", "classification_loss"):
            assert with_teacher[name] == pytest.approx(without[name], rel=1e-3)


def test_resuming_with_a_teacher_is_as_if_nothing_had_happened(finished, phantoms, tmp_path):
    resumed = tmp_path / "run"
    shutil.copytree(finished, resumed, ignore=shutil.ignore_patterns("checkpoint-6", "unet"))
    run(phantoms, resumed, *PSEUDO, "--resume_from_checkpoint", "latest")
    for name in ("unet", "ema", "optimizer"):
        assert_equal(tensors_of(resumed, 6, name), tensors_of(finished, 6, name))


def test_accumulation_changes_nothing_but_rounding(finished, phantoms, tmp_path):
    """Dropout draws anew for every part, so it is off."""
    common = (*PSEUDO, "--classifier_dropout", 0)
    one, other = run(phantoms, tmp_path / "one", *common), tmp_path / "other"
    run(phantoms, other, *common, "--gradient_accumulation_steps", 2)
    for whole, split in zip(read_metrics(one / "metrics.jsonl"), read_metrics(other / "metrics.jsonl"), strict=True):
        for name in ("classification_loss", "pseudo_label_loss", "pseudo_label_share"):
            assert (name in whole) == (name in split)
            assert whole.get(name, 0) == pytest.approx(split.get(name, 0), rel=1e-3)


def test_zero_terminal_snr_samples_from_pure_noise(phantoms, tmp_path):
    options = ("--prediction_type", "v_prediction", "--rescale_betas_zero_snr", "--snr_gamma", 5)
    folder = run(phantoms, tmp_path / "run", *options, "--max_train_steps", 2)
    scheduler = DDIMScheduler.from_pretrained(folder, subfolder="scheduler")
    assert scheduler.alphas_cumprod[-1] == 0 and scheduler.config.prediction_type == "v_prediction"
    scheduler.set_timesteps(10)
    assert scheduler.timesteps[0] == 999
    pipe = MediffusionCounterfactualPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    image = load_prepared(phantoms, "validation")[0]["image"]
    output = pipe(image, away="Mass", num_inference_steps=2, guidance_scale=1.0, output_type="np")
    assert output.images.shape == (1, 16, 16, 1)
    guided = MediffusionGuidedPipeline(**pipe.components)
    guided.set_progress_bar_config(disable=True)
    for mode in OWN_GUIDANCE_MODES:
        options = {"num_inference_steps": 3, "num_images": 1, "guidance_mode": mode, "output_type": "latent"}
        latents = guided(towards="Mass", guidance_scale=2.0, **options).images
        assert torch.as_tensor(latents).isfinite().all()


def test_without_it_the_saved_scheduler_is_as_before():
    scheduler = sampling_scheduler(build_noise_scheduler(DiffusionOptions()), SpaceToDepthAutoencoder())
    assert scheduler.config.timestep_spacing == "leading" and scheduler.alphas_cumprod[-1] > 0


def test_generation_clips_latents_that_are_pixels_and_no_others():
    noise_scheduler = build_noise_scheduler(DiffusionOptions())
    pixels = sampling_scheduler(noise_scheduler, SpaceToDepthAutoencoder(scaling_factor=2.5)).config
    assert (pixels.clip_sample, pixels.clip_sample_range) == (True, 2.5)
    assert not sampling_scheduler(noise_scheduler, tiny_vae("kl")).config.clip_sample


@pytest.mark.filterwarnings("ignore:The labelled split")  # drawing it warns as well
def test_a_split_without_a_class_warns_by_name(phantoms, tmp_path, caplog):
    split = draw_labelled_split(load_prepared(phantoms, "train"), load_info(phantoms), 9, seed=0)
    split.save(tmp_path / "few.json")
    logging.enable_propagation()
    try:
        run(phantoms, tmp_path / "run", "--labelled_split", tmp_path / "few.json", "--max_train_steps", 1)
    finally:
        logging.disable_propagation()
    assert "No labelled training image shows Effusion, Pneumothorax" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--snr_gamma", 0), "`snr_gamma` must be a number above 0"),
        (("--rescale_betas_zero_snr",), "set `prediction_type` to 'v_prediction' or 'sample'"),
        (("--pseudo_label_start_step", 1, "--classifier_start_step", 2), "must not be below `classifier_start_step`"),
        (
            ("--pseudo_label_start_step", 1, "--pseudo_label_threshold", 1),
            r"a number in \(0.5, 1\), but got 1",
        ),
        (
            ("--pseudo_label_start_step", 1, "--pseudo_label_weight", 0),
            "must be a number above 0, but got 0",
        ),
        (("--pseudo_label_start_step", 1, "--no-use_ema"), "needs `use_ema`"),
        (("--pseudo_label_start_step", 1, "--diffusion_loss_weight", 0), "needs both losses"),
        (("--pos_weight", "balanced", "1"), None),
    ],
)
def test_bad_arguments_are_refused(arguments, message, phantoms, tmp_path):
    line = (*TINY_JOINT, "--dataset_dir", phantoms, "--output_dir", tmp_path / "run", *arguments)
    with pytest.raises(ValueError, match=message or "`pos_weight` must be 'none', 'balanced' or 5 numbers"):
        joint_config(*line).check() if message else train_joint(joint_config(*line))
