import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.training import oracle_config

from mediffusion_diffusers.data.pictures import encode_png
from mediffusion_diffusers.data.schema import DatasetInfo, make_row
from mediffusion_diffusers.data.writer import write_prepared
from mediffusion_diffusers.image_processor import numpy_to_pil
from mediffusion_diffusers.metrics_log import read_metrics
from mediffusion_diffusers.models.oracle_classifier import (
    PATIENTS_FILE,
    OracleClassifier,
    load_oracle,
    patient_digest,
    resize_for_oracle,
)
from mediffusion_diffusers.training.oracle import disturbances, task
from mediffusion_diffusers.training.oracle.config import NetworkOptions


LABELS = ["Left", "Right"]


@pytest.fixture(scope="module")
def dataset_dir(tmp_path_factory):
    """Pictures with a bright spot on the left, on the right, on both sides or on none."""
    folder = tmp_path_factory.mktemp("oracle") / "spots"
    info = DatasetInfo("spots", "", "", "", "multi_label_classification", LABELS, channels=1, image_size=32)
    rng = np.random.default_rng(0)

    def rows(split, num):
        for number in range(num):
            labels = rng.integers(0, 2, size=2).astype(float)
            picture = 0.3 + 0.02 * rng.normal(size=(1, 32, 32, 1))
            picture[:, 10:20, 4:12] += 0.3 * labels[0]
            picture[:, 10:20, 20:28] += 0.3 * labels[1]
            png = encode_png(numpy_to_pil(picture)[0])
            yield make_row(info, png, f"{split}-{number}", f"patient-{split}-{number}", labels=labels.tolist())

    splits = {"train": rows("train", 64), "validation": rows("validation", 40)}
    write_prepared(folder, splits, info, show_progress=False)
    return folder


TINY_ORACLE = (
    *("--device", "cpu", "--hidden_sizes", 8, 16, "--depths", 1, 1, "--train_batch_size", 32, "--learning_rate", 0.01),
    *("--lr_warmup_steps", 5, "--max_train_steps", 40, "--no-horizontal_flip", "--checkpointing_steps", 20),
)


def train(dataset_dir, output_dir, *arguments):
    line = (*TINY_ORACLE, "--dataset_dir", dataset_dir, "--output_dir", output_dir, *arguments)
    return task.train_oracle(oracle_config(*line))


@pytest.fixture(scope="module")
def trained(dataset_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("oracle") / "trained"
    return folder, train(dataset_dir, folder)


def test_training_learns_something_and_says_how_well(trained):
    folder, metrics = trained
    assert metrics["validation"]["clean"]["macro_auroc"] > 0.95
    assert set(metrics["validation"]) >= {"clean", "noised", "blurred"}
    assert json.loads((folder / task.METRICS_FILE).read_text()) == metrics
    losses = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1]["step"] == 40
    assert not list(folder.glob("*.bin")) + list(folder.glob(".*.partial"))


def test_the_same_seed_gives_the_same_oracle(dataset_dir, trained, tmp_path):
    again = train(dataset_dir, tmp_path / "one")
    assert again["validation"] == trained[1]["validation"]
    other = train(dataset_dir, tmp_path / "other", "--seed", 3)
    assert other["validation"] != trained[1]["validation"]


def test_loading_gives_the_same_scores(trained):
    oracle = load_oracle(trained[0])
    images = torch.rand(7, 1, 32, 32) * 2 - 1
    scores = oracle(images)
    assert scores.shape == (7, 2)
    assert oracle.label_names == LABELS
    assert len(oracle.thresholds) == 2
    assert torch.allclose(oracle(images, batch_size=2), scores, atol=1e-6)  # BatchNorm must not see the batch
    assert torch.equal(load_oracle(trained[0])(images), scores)


def test_patients_are_saved_as_digests(trained):
    digests = json.loads((trained[0] / PATIENTS_FILE).read_text())
    assert patient_digest("spots", "patient-train-0") in digests
    assert len(digests) == 64
    assert "patient" not in (trained[0] / PATIENTS_FILE).read_text()


def test_oracle_of_one_class_per_image_is_a_softmax():
    info = DatasetInfo("skin", "", "", "", "single_label_classification", ["a", "b", "c"], channels=3)
    oracle = OracleClassifier(task.build_oracle(info, 32, NetworkOptions([8, 8], [1, 1])))
    assert oracle.thresholds is None
    assert torch.allclose(oracle(torch.rand(3, 3, 32, 32)).sum(1), torch.ones(3))
    with pytest.raises(ValueError, match=r"\(batch, 3, height, width\)"):
        oracle(torch.rand(3, 1, 32, 32))


def test_images_pass_through_the_training_resolution():
    fine = torch.rand(2, 1, 128, 128)
    coarse = torch.nn.functional.interpolate(fine, size=(32, 32), mode="bilinear", antialias=True)
    assert torch.equal(resize_for_oracle(fine, 32), resize_for_oracle(coarse, 32))
    assert resize_for_oracle(coarse, 32).shape[-1] == 64
    assert torch.equal(resize_for_oracle(fine, 128), fine)


def test_blur_keeps_the_mean_and_noise_is_as_large_as_said():
    constant = torch.full((2, 3, 16, 16), 0.3)
    assert torch.allclose(disturbances.blur(constant, torch.tensor([0.3, 1.0])), constant, atol=1e-6)
    noise = torch.randn(2, 1, 64, 64)
    weak, strong = disturbances.blur(noise, torch.tensor([0.01, 1.0]))
    assert torch.allclose(weak, noise[0], atol=1e-5)
    assert strong.std() < 0.5
    images = torch.zeros(400, 1, 8, 8)
    disturbed = disturbances.disturb(images, torch.Generator().manual_seed(0))
    touched = disturbed.flatten(1).std(1) > 0
    assert touched.float().mean() == pytest.approx(disturbances.NOISE_SHARE, abs=0.1)
    assert disturbed.flatten(1).std(1).max() < 1.4 * disturbances.MAX_NOISE_SIGMA


def test_robustness_is_measured_at_the_named_strength():
    images = torch.zeros(50, 1, 32, 32)
    noised = disturbances.disturbed_variants(images, seed=0)["noised"]
    assert (noised - images).abs().mean() / 2 == pytest.approx(disturbances.TEST_NOISE_L1, rel=0.02)
    assert torch.equal(noised, disturbances.disturbed_variants(images, seed=0)["noised"])


def test_a_slice_is_disturbed_as_in_the_whole_batch():
    images = torch.rand(6, 1, 8, 8)
    whole = disturbances.disturb(images, torch.Generator().manual_seed(0))
    own = slice(2, 5)
    assert torch.equal(disturbances.disturb(images[own], torch.Generator().manual_seed(0), 6, own), whole[own])


def test_resuming_is_as_if_nothing_had_happened(dataset_dir, trained, tmp_path):
    resumed = tmp_path / "run"
    shutil.copytree(trained[0], resumed, ignore=shutil.ignore_patterns("checkpoint-40", "model.safetensors"))
    metrics = train(dataset_dir, resumed, "--resume_from_checkpoint", "latest")
    assert metrics["validation"] == trained[1]["validation"]
    for name in ("checkpoint-40/oracle.safetensors", "checkpoint-40/optimizer.safetensors", "model.safetensors"):
        assert (resumed / name).read_bytes() == (trained[0] / name).read_bytes()


def test_an_oracle_is_not_overwritten_by_accident(dataset_dir, trained, tmp_path):
    """Nor one that was trained when oracles had no checkpoints."""
    folder = tmp_path / "run"
    shutil.copytree(trained[0], folder, ignore=shutil.ignore_patterns("checkpoint-*"))
    before = (folder / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match="holds another run"):
        train(dataset_dir, folder)
    with pytest.raises(ValueError, match="holds a finished model and no checkpoint to go on from"):
        train(dataset_dir, folder, "--resume_from_checkpoint", "latest")
    assert (folder / "model.safetensors").read_bytes() == before
    train(dataset_dir, folder, "--overwrite_output_dir", "--max_train_steps", 1)
    assert (folder / "model.safetensors").read_bytes() != before


def test_accumulation_sees_every_image_once(dataset_dir, tmp_path):
    """Batch normalisation takes the statistics of a part, so that the losses are alike and not the same."""
    losses = []
    for num_parts in (1, 2):
        folder = tmp_path / str(num_parts)
        line = ("--max_train_steps", 1, "--logging_steps", 1, "--gradient_accumulation_steps", num_parts)
        train(dataset_dir, folder, *line)
        losses.append(read_metrics(folder / "metrics.jsonl")[0]["classification_loss"])
    assert losses[0] == pytest.approx(losses[1], rel=0.1)


@pytest.mark.parametrize("steps", [1, 5])
def test_exploding_weights_leave_no_oracle(dataset_dir, tmp_path, steps):
    with pytest.raises(FloatingPointError, match=r"[Ll]ower `learning_rate`"):
        train(dataset_dir, tmp_path, "--learning_rate", 1e30, "--lr_warmup_steps", 0, "--max_train_steps", steps)
    assert not (tmp_path / "model.safetensors").exists()


def test_the_average_is_saved_if_there_is_one(dataset_dir, tmp_path):
    train(dataset_dir, tmp_path, "--use_ema", "--max_train_steps", 3)
    saved, average = load_file(tmp_path / "model.safetensors"), load_file(tmp_path / "checkpoint-3/ema.safetensors")
    own = load_file(tmp_path / "checkpoint-3/oracle.safetensors")
    assert all(torch.equal(saved[name], tensor) for name, tensor in average.items())
    buffers = saved.keys() - average.keys()
    assert buffers and all(torch.equal(saved[name], own[name]) for name in buffers)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--resolution", "4"], "`resolution` must be a whole number at least 8, but got 4"),
        (["--hidden_sizes", "8"], "equally long"),
        (["--max_train_steps", "0"], "`max_train_steps` must be a whole number at least 1"),
        (["--train_batch_size", "1"], "`train_batch_size` must be a whole number at least 2"),
        (["--learning_rate", "nan"], "`learning_rate` must be a number above 0, but got nan"),
        (["--adam_beta1", "1"], r"`adam_beta1` must be a number in \[0, 1\), but got 1"),
        (["--gradient_checkpointing"], "leave it out"),
    ],
)
def test_errors(dataset_dir, tmp_path, more, message):
    with pytest.raises(ValueError, match=message):
        train(dataset_dir, tmp_path, *more)
    with pytest.raises(ValueError, match="`oracle_path` must be"):
        load_oracle(tmp_path)


def test_a_dry_run_says_what_would_be_trained(dataset_dir):
    facts = task.train_oracle(oracle_config(*TINY_ORACLE, "--dataset_dir", dataset_dir, "--dry_run"))
    assert facts["num_train_steps"] == 40 and facts["dataset"]["name"] == "spots" and facts["num_parameters"] > 0
    assert facts["arguments"]["hidden_sizes"] == [8, 16]
