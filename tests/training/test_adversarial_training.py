"""Training the autoencoder with everything: perceptual network, discriminator, a pretrained start."""

import json
import shutil

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file
from support.components import tiny_vae
from support.training import TINY_AUTOENCODER, autoencoder_config
from transformers import ResNetConfig, ResNetModel

from mediffusion_diffusers.metrics_log import read_metrics
from mediffusion_diffusers.training.autoencoder.dry_run import describe_autoencoder_run
from mediffusion_diffusers.training.autoencoder.models import adapt_to_grey
from mediffusion_diffusers.training.autoencoder.reconstruction import reconstruction_quality, structural_similarity
from mediffusion_diffusers.training.autoencoder.task import AutoencoderTask, train_autoencoder


GROUPS = ("objective", "optimizer", "ema", "discriminator", "discriminator_optimizer")


@pytest.fixture(scope="module")
def line(phantoms, tmp_path_factory):
    """Six steps: the perceptual network from step 1 on, the discriminator from step 3 on."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("backbone")
    config = ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic")
    ResNetModel(config).save_pretrained(folder)
    return (
        *(*TINY_AUTOENCODER, "--dataset_dir", phantoms, "--max_train_steps", 6, "--logging_steps", 1),
        *("--perceptual", folder, "--perceptual_start", 1, "--checkpointing_steps", 2),
        *("--disc_start", 3, "--disc_num_layers", 2, "--disc_channels", 4),
    )


def run(line, output_dir, *arguments):
    train_autoencoder(autoencoder_config(*line, "--output_dir", output_dir, *arguments))
    return output_dir


@pytest.fixture(scope="module")
def finished(line, tmp_path_factory):
    return run(line, tmp_path_factory.mktemp("adversarial") / "run")


def tensors_of(folder, step, group):
    return load_file(folder / f"checkpoint-{step}" / f"{group}.safetensors")


def assert_equal(one, other):
    assert one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_the_discriminator_is_untouched_before_its_start(finished, line, tmp_path):
    task = AutoencoderTask(autoencoder_config(*line, "--output_dir", tmp_path / "run"))
    initial = task.discriminator.state_dict()
    assert_equal(tensors_of(finished, 2, "discriminator"), initial)
    assert tensors_of(finished, 2, "discriminator_optimizer") == {}
    after = tensors_of(finished, 4, "discriminator")
    # The last bias stays while no logit is beyond the hinge: real and fake pull it apart equally.
    assert not any(torch.equal(tensor, initial[name]) for name, tensor in after.items() if tensor.ndim > 1)
    steps = {
        value.item()
        for name, value in tensors_of(finished, 6, "discriminator_optimizer").items()
        if name.endswith("step")
    }
    assert steps == {3.0}


def test_the_losses_begin_at_their_steps(finished):
    records = [record for record in read_metrics(finished / "metrics.jsonl") if record["kind"] == "train"]
    assert ["perceptual_loss" in record for record in records] == [False] + [True] * 5
    for name in ("generator_loss", "discriminator_loss", "adaptive_weight"):
        assert [name in record for record in records] == [False] * 3 + [True] * 3
    assert all(0 < record["adaptive_weight"] <= 1e4 for record in records[3:])


def test_the_reconstruction_is_measured_before_and_after(finished):
    records = [record for record in read_metrics(finished / "metrics.jsonl") if record["kind"] == "validation"]
    assert [(record["step"], record["adversarial"]) for record in records] == [
        *((2, False), (3, False), (4, True), (6, True))
    ]
    card = (finished / "README.md").read_text()
    assert "| before the adversarial loss, step 3 |" in card and "| saved, step 6 |" in card


def test_the_saved_autoencoder_holds_no_discriminator(finished):
    vae = AutoencoderKL.from_pretrained(finished)
    assert_equal(vae.state_dict(), tensors_of(finished, 6, "ema"))


@pytest.mark.parametrize("step", [2, 4])
def test_resuming_is_as_if_nothing_had_happened(finished, line, tmp_path, step):
    """Before the adversarial start and in the middle of it."""
    resumed = tmp_path / "run"
    later = [f"checkpoint-{other}" for other in range(step + 1, 7)]
    shutil.copytree(finished, resumed, ignore=shutil.ignore_patterns(*later, "config.json", "diffusion_*"))
    run(line, resumed, "--resume_from_checkpoint", "latest")
    for group in GROUPS:
        assert_equal(tensors_of(resumed, 6, group), tensors_of(finished, 6, group))
    assert (resumed / "README.md").read_bytes() == (finished / "README.md").read_bytes()


def test_a_longer_run_adds_the_discriminator(finished, line, tmp_path):
    """A run that ended before `disc_start` stored none; the one that goes on begins with the same."""
    folder = run(line, tmp_path / "run", "--max_train_steps", 2)
    assert not (folder / "checkpoint-2" / "discriminator.safetensors").exists()
    run(line, folder, "--resume_from_checkpoint", "latest")
    for group in GROUPS:
        assert_equal(tensors_of(folder, 6, group), tensors_of(finished, 6, group))
    (folder / "checkpoint-6" / "discriminator.safetensors").unlink()


def test_accumulation_changes_nothing_but_rounding_and_the_adaptive_weight(finished, line, tmp_path):
    """Each part measures its own adaptive weight; everything up to the adversarial start is the same."""
    split = run(line, tmp_path / "run", "--gradient_accumulation_steps", 2)
    pairs = zip(read_metrics(finished / "metrics.jsonl"), read_metrics(split / "metrics.jsonl"), strict=True)
    for one, other in pairs:
        if one["kind"] == "train" and one["step"] <= 4:
            for name in ("l1_loss", "kl_loss"):
                assert one[name] == pytest.approx(other[name], rel=1e-3)


def test_a_grey_image_has_the_latents_of_its_colour_version():
    vae, grey = tiny_vae("kl", channels=3), tiny_vae("kl", channels=3)
    adapt_to_grey(grey)
    images = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        expected = vae.encode(images.repeat(1, 3, 1, 1)).latent_dist
        posterior = grey.encode(images).latent_dist
        assert torch.allclose(posterior.parameters, expected.parameters, atol=1e-5)
        decoded = vae.decode(expected.mode()).sample.mean(dim=1, keepdim=True)
        assert torch.allclose(grey.decode(expected.mode()).sample, decoded, atol=1e-5)
    assert grey.config.in_channels == grey.config.out_channels == 1


def test_training_starts_from_a_pretrained_autoencoder(line, tmp_path):
    """Of colour images, with a scale of its own, as Stable Diffusion's."""
    source = tiny_vae("kl", channels=3)
    source.register_to_config(scaling_factor=0.18215)
    source.save_pretrained(tmp_path / "pipe" / "vae")
    options = ("--pretrained_vae", tmp_path / "pipe", "--pretrained_vae_subfolder", "vae", "--output_dir")
    task = AutoencoderTask(autoencoder_config(*line, *options, tmp_path / "unused"))
    assert torch.equal(task.vae.decoder.conv_in.weight, source.decoder.conv_in.weight)
    folder = run(line, tmp_path / "run", *options[:-1], "--max_train_steps", 1)
    vae = AutoencoderKL.from_pretrained(folder)
    latents = next(record for record in read_metrics(folder / "metrics.jsonl") if record["kind"] == "latents")
    assert vae.config.in_channels == 1 and vae.config.scaling_factor == pytest.approx(1 / latents["std"])


def test_a_pretrained_autoencoder_of_other_channels_is_refused(tmp_path, line):
    tiny_vae("kl", channels=2).save_pretrained(tmp_path / "two")
    with pytest.raises(ValueError, match="`pretrained_vae` reads images of 2 channels, but the dataset has 1"):
        AutoencoderTask(
            autoencoder_config(*line, "--pretrained_vae", tmp_path / "two", "--output_dir", tmp_path / "run")
        )


def test_ssim_is_its_formula():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.rand(2, 1, 1, 11, 11, generator=generator, dtype=torch.float64).unbind()
    weights = torch.tensor(
        [
            [2.718281828459045 ** (-(((i - 5) ** 2 + (j - 5) ** 2) / (2 * 1.5**2))) for j in range(11)]
            for i in range(11)
        ],
        dtype=torch.float64,
    )
    weights /= weights.sum()
    mean_a, mean_b = (weights * a).sum(), (weights * b).sum()
    var_a, var_b = (weights * (a - mean_a) ** 2).sum(), (weights * (b - mean_b) ** 2).sum()
    cov = (weights * (a - mean_a) * (b - mean_b)).sum()
    expected = (2 * mean_a * mean_b + 1e-4) * (2 * cov + 9e-4)
    expected /= (mean_a**2 + mean_b**2 + 1e-4) * (var_a + var_b + 9e-4)
    assert structural_similarity(a, b).item() == pytest.approx(expected.item(), rel=1e-9)


def test_a_perfect_reconstruction():
    images = torch.rand(2, 3, 16, 16)
    quality = reconstruction_quality(images, images)
    assert quality["l1"].tolist() == [0, 0] and torch.allclose(quality["ssim"], torch.ones(2))
    assert quality["psnr"].tolist() == [100, 100]
    darker = reconstruction_quality(images, images - 0.1)
    assert torch.allclose(darker["psnr"], torch.full((2,), 20.0), atol=1e-3)


def test_a_dry_run_describes_the_training(line, tmp_path):
    facts = describe_autoencoder_run(autoencoder_config(*line, "--dry_run"))
    task = AutoencoderTask(autoencoder_config(*line, "--output_dir", tmp_path))
    for name in ("num_vae_parameters", "num_discriminator_parameters", "latent_shape"):
        assert facts[name] == task.facts()[name]
    assert facts["num_adversarial_steps"] == 3 and facts["dataset"]["num_rows"]["train"] == 24
    assert facts["memory_with_one_process"]["activations_gib"] >= 0
    json.dumps(facts)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--disc_start", -1), "`disc_start` must be a whole number at least 0, but got -1"),
        (("--disc_num_layers", 3), "`resolution` must be at least 24 for a discriminator of 3 layers, but got 16"),
        (("--disc_channels", 0), "`disc_channels` must be a whole number at least 1"),
        (("--perceptual_weight", -1), "`perceptual_weight` must be a number at least 0"),
        (("--perceptual", "nowhere"), "`perceptual` must be 'none', 'lpips', or the folder"),
        (("--push_to_hub",), "`push_to_hub` needs `hub_model_id`"),
    ],
)
def test_bad_arguments_are_refused(line, tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        train_autoencoder(autoencoder_config(*line, "--output_dir", tmp_path / "run", *arguments))
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
