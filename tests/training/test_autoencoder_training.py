import shutil

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file
from support.components import tiny_vae
from support.training import TINY_AUTOENCODER, TINY_JOINT, autoencoder_config, joint_config

from mediffusion_diffusers import MediffusionClassifyPipeline
from mediffusion_diffusers.data.schema import load_prepared
from mediffusion_diffusers.data.transforms import ImageTransform
from mediffusion_diffusers.metrics_log import read_metrics
from mediffusion_diffusers.training.autoencoder.objective import AutoencoderObjective
from mediffusion_diffusers.training.autoencoder.task import AutoencoderTask, train_autoencoder
from mediffusion_diffusers.training.data.image_rows import ImageRows
from mediffusion_diffusers.training.data.latent_statistics import measure_latent_std
from mediffusion_diffusers.training.joint.task import train_joint
from mediffusion_diffusers.training.loop import TrainingLoop
from mediffusion_diffusers.training.run.run import training_run


def run(phantoms, output_dir, *arguments):
    train_autoencoder(
        autoencoder_config(*TINY_AUTOENCODER, "--dataset_dir", phantoms, "--output_dir", output_dir, *arguments)
    )
    return output_dir


@pytest.fixture(scope="module")
def finished(phantoms, tmp_path_factory):
    """An uninterrupted run of 4 steps."""
    return run(phantoms, tmp_path_factory.mktemp("autoencoder") / "run")


def test_the_loss_is_its_formula_written_out():
    generator = torch.Generator().manual_seed(0)
    vae = tiny_vae("kl")
    objective = AutoencoderObjective(vae, 0.5, lambda images, others: (images - others).square().mean((1, 2, 3)), 3.0)
    torch.nn.init.constant_(objective.log_variance, 0.7)
    images = torch.rand(2, 1, 16, 16, generator=generator) * 2 - 1
    noise = torch.randn(2, 4, 8, 8, generator=generator)
    losses = objective(images, noise)

    posterior = vae.encode(images).latent_dist
    mean, log_variance = posterior.mean, posterior.logvar
    reconstruction = vae.decode(mean + (log_variance / 2).exp() * noise).sample
    total = kl = 0.0
    for image in range(2):
        error = (images[image] - reconstruction[image]).abs()
        error = error + 3.0 * (images[image] - reconstruction[image]).square().mean()
        total += (error / torch.tensor(0.7).exp() + 0.7).sum() / 2
        m, lv = mean[image], log_variance[image]
        kl += 0.5 * (m.square() + lv.exp() - 1 - lv).sum() / 2
    assert losses["kl_loss"].item() == pytest.approx(kl.item(), rel=1e-5)
    assert losses["loss"].item() == pytest.approx((total + 0.5 * kl).item(), rel=1e-5)
    assert losses["l1_loss"].item() == pytest.approx((images - reconstruction).abs().mean().item() / 2, rel=1e-5)


def test_slices_add_up():
    objective = AutoencoderObjective(tiny_vae("kl"))
    images, noise = torch.rand(3, 1, 16, 16), torch.randn(3, 4, 8, 8)
    whole = objective(images, noise)
    parts = [objective(images[own], noise[own], 3) for own in ([0], [1, 2])]
    for name in whole.keys() - {"reconstructions"}:
        assert torch.allclose(parts[0][name] + parts[1][name], whole[name], rtol=1e-4)


def test_every_parameter_moves(phantoms, tmp_path):
    config = autoencoder_config(*TINY_AUTOENCODER, "--dataset_dir", phantoms, "--output_dir", tmp_path / "run")
    task = AutoencoderTask(config)
    before = {f"vae.{name}": tensor.clone() for name, tensor in task.vae.state_dict().items()}
    before["log_variance"] = torch.zeros(())
    with training_run(config) as run:
        TrainingLoop(run, task, config.optimizer).train()
    after = task.objective.state_dict()
    assert before.keys() == after.keys() and not [name for name in before if torch.equal(before[name], after[name])]


def test_the_saved_autoencoder_is_the_average_with_latents_of_unit_scale(finished, phantoms):
    vae = AutoencoderKL.from_pretrained(finished)
    average = load_file(finished / "checkpoint-4" / "ema.safetensors")
    assert all(torch.equal(tensor, average[name]) for name, tensor in vae.state_dict().items())
    rows = ImageRows(load_prepared(phantoms, "train"))
    assert measure_latent_std(vae, rows, ImageTransform(16, 1)) == pytest.approx(1.0, rel=1e-5)


def test_the_records(finished):
    records = read_metrics(finished / "metrics.jsonl")
    validation = [record for record in records if record["kind"] == "validation"]
    assert [record["step"] for record in validation] == [2, 4]
    assert all(0 < record["l1"] < 1 and record["psnr"] > 0 for record in validation)
    assert all(-1 < record["ssim"] < 1 and record["adversarial"] is False for record in validation)
    assert [path.name for path in sorted((finished / "samples").iterdir())] == ["step-0000002.png", "step-0000004.png"]


def test_resuming_is_as_if_nothing_had_happened(finished, phantoms, tmp_path):
    resumed = tmp_path / "run"
    shutil.copytree(finished, resumed, ignore=shutil.ignore_patterns("checkpoint-4", "config.json", "diffusion_*"))
    run(phantoms, resumed, "--resume_from_checkpoint", "latest")
    for name in ("objective", "ema", "optimizer"):
        expected = load_file(finished / "checkpoint-4" / f"{name}.safetensors")
        tensors = load_file(resumed / "checkpoint-4" / f"{name}.safetensors")
        assert tensors.keys() == expected.keys()
        assert all(torch.equal(tensor, expected[key]) for key, tensor in tensors.items()), name
    for name in ("config.json", "diffusion_pytorch_model.safetensors"):
        assert (resumed / name).read_bytes() == (finished / name).read_bytes()


def test_joint_training_takes_it(finished, phantoms, tmp_path):
    line = [each for each in TINY_JOINT if each not in ("--vae", "space_to_depth")]
    common = ("--vae_path", finished, "--dataset_dir", phantoms, "--max_train_steps", 1)
    train_joint(joint_config(*line, *common, "--output_dir", tmp_path / "run"))
    pipe = MediffusionClassifyPipeline.from_pretrained(tmp_path / "run")
    assert pipe.vae.config.scaling_factor == AutoencoderKL.load_config(finished)["scaling_factor"]
