import json

import numpy as np
import pytest
import torch

from mediffusion_diffusers.data.pictures import encode_png
from mediffusion_diffusers.data.schema import DatasetInfo, make_row
from mediffusion_diffusers.data.writer import write_prepared
from mediffusion_diffusers.image_processor import numpy_to_pil
from mediffusion_diffusers.models.oracle_classifier import OracleClassifier, load_oracle, resize_for_oracle
from mediffusion_diffusers.training.oracle import trainer as training


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


def _arguments(dataset_dir, output_dir, *more):
    tiny = "--hidden_sizes 8 16 --depths 1 1 --train_batch_size 32 --learning_rate 0.01 --lr_warmup_steps 5"
    tiny += " --max_train_steps 40 --no-horizontal_flip"
    return training.oracle_parser().parse_args(
        ["--dataset_dir", str(dataset_dir), "--output_dir", str(output_dir), "--device", "cpu", *tiny.split(), *more]
    )


@pytest.fixture(scope="module")
def trained(dataset_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("oracle") / "trained"
    return folder, training.train_oracle(_arguments(dataset_dir, folder))


def test_training_learns_something_and_says_how_well(trained):
    folder, metrics = trained
    assert metrics["validation"]["clean"]["macro_auroc"] > 0.95
    assert set(metrics["validation"]) >= {"clean", "noised", "blurred"}
    assert json.loads((folder / training.METRICS_FILE).read_text()) == metrics
    losses = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1]["step"] == 40
    assert not list(folder.glob("*.bin")) + list(folder.glob(".*"))


def test_the_same_seed_gives_the_same_oracle(dataset_dir, trained, tmp_path):
    again = training.train_oracle(_arguments(dataset_dir, tmp_path))
    assert again["validation"] == trained[1]["validation"]
    other = training.train_oracle(_arguments(dataset_dir, tmp_path, "--seed", "3"))
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
    digests = json.loads((trained[0] / training.PATIENTS_FILE).read_text())
    assert training.patient_digest("spots", "patient-train-0") in digests
    assert len(digests) == 64
    assert "patient" not in (trained[0] / training.PATIENTS_FILE).read_text()


def test_oracle_of_one_class_per_image_is_a_softmax():
    info = DatasetInfo("skin", "", "", "", "single_label_classification", ["a", "b", "c"], channels=3)
    oracle = OracleClassifier(training.build_oracle(info, 32, [8, 8], [1, 1]))
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
    assert torch.allclose(training.blur(constant, torch.tensor([0.3, 1.0])), constant, atol=1e-6)
    noise = torch.randn(2, 1, 64, 64)
    weak, strong = training.blur(noise, torch.tensor([0.01, 1.0]))
    assert torch.allclose(weak, noise[0], atol=1e-5)
    assert strong.std() < 0.5
    images = torch.zeros(400, 1, 8, 8)
    disturbed = training.disturb(images, torch.Generator().manual_seed(0))
    touched = disturbed.flatten(1).std(1) > 0
    assert touched.float().mean() == pytest.approx(training.NOISE_SHARE, abs=0.1)
    assert disturbed.flatten(1).std(1).max() < 1.4 * training.MAX_NOISE_SIGMA


def test_robustness_is_measured_at_the_named_strength():
    images = torch.zeros(50, 1, 32, 32)
    noised = training.disturbed_variants(images, seed=0)["noised"]
    assert (noised - images).abs().mean() / 2 == pytest.approx(training.TEST_NOISE_L1, rel=0.02)
    assert torch.equal(noised, training.disturbed_variants(images, seed=0)["noised"])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--resolution", "4"], "`resolution`"),
        (["--hidden_sizes", "8"], "equally long"),
        (["--max_train_steps", "0"], "`max_train_steps`"),
    ],
)
def test_errors(dataset_dir, tmp_path, more, message):
    with pytest.raises(ValueError, match=message):
        training.train_oracle(_arguments(dataset_dir, tmp_path, *more))
    with pytest.raises(ValueError, match="`oracle_path` must be"):
        load_oracle(tmp_path)
