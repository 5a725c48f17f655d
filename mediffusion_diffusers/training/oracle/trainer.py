"""Train the outside classifier that judges counterfactuals, robust to noise and blur.

An ordinary classifier cannot tell a counterfactual from adversarial noise: its scores move under random noise of the
same size. This one sees noised, blurred and shifted images while it learns, and how far random noise still moves its
scores is measured and saved with it. It shares neither architecture nor seed with the model that it judges, and
should be trained on other patients.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tqdm.auto import tqdm

from ...atomic_files import write_json
from ...data.schema import DatasetInfo, label_matrix, load_info, load_prepared, parquet_files
from ...data.transforms import ImageTransform
from ...evaluation.classification import per_label_auroc, youden_threshold
from ...metrics_log import MetricsLog
from ...models.oracle_classifier import PATIENTS_FILE, OracleClassifier, patient_digest, resize_for_oracle
from ...version import __version__
from ..data.image_rows import ImageRows, stream_batches
from ..data.streams import IndexStream
from ..joint.objectives import classification_loss
from ..run.learning_rate import lr_factor
from ..run.randomness import keyed_generator


# Augmentation of the training images, in units of the model's range [-1, 1] and in pixels.
NOISE_SHARE, MAX_NOISE_SIGMA = 0.5, 0.2
BLUR_SHARE, BLUR_SIGMAS = 0.2, (0.2, 1.2)
_BLUR_RADIUS = 2

# The disturbances that robustness is measured under.
TEST_NOISE_L1 = 0.03  # mean absolute change in units of the full intensity range, as a counterfactual's
TEST_BLUR_SIGMA = 0.7

METRICS_FILE = "oracle_metrics.json"


def oracle_parser() -> argparse.ArgumentParser:
    """The command line of `train_oracle.py`."""
    parser = argparse.ArgumentParser(
        prog="train_oracle.py", description="Train an outside classifier, from scratch, on patients of its own."
    )
    parser.add_argument("--dataset_dir", required=True, help="Prepared dataset folder, fully labelled.")
    parser.add_argument("--output_dir", required=True, help="Folder of the trained classifier.")
    parser.add_argument("--resolution", type=int, default=None, help="Side of the images; default: the dataset's.")
    parser.add_argument("--max_train_steps", type=int, default=1800)
    parser.add_argument("--train_batch_size", type=int, default=64)
    parser.add_argument("--learning_rate", type=float, default=3e-3)
    parser.add_argument("--lr_scheduler", default="cosine")
    parser.add_argument("--lr_warmup_steps", type=int, default=50)
    parser.add_argument("--adam_weight_decay", type=float, default=2e-2)
    parser.add_argument("--hidden_sizes", type=int, nargs="+", default=[32, 64, 128], help="Widths of the stages.")
    parser.add_argument("--depths", type=int, nargs="+", default=[1, 1, 1], help="Blocks of the stages.")
    parser.add_argument("--horizontal_flip", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--random_shift", type=int, default=1, help="Largest random shift in pixels.")
    parser.add_argument("--intensity_jitter", type=float, default=0.1, help="Random contrast and brightness.")
    parser.add_argument("--validation_steps", type=int, default=600)
    parser.add_argument("--logging_steps", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1000, help="Another seed than the judged model's.")
    parser.add_argument("--device", default=None, help="cpu, cuda, ...; default: an accelerator if there is one.")
    return parser


def build_oracle(info: DatasetInfo, resolution: int, hidden_sizes: list[int], depths: list[int]) -> Any:
    """A small residual network from transformers, with random weights."""
    from transformers import ResNetConfig, ResNetForImageClassification

    settings: dict[str, Any] = {
        "num_channels": info.channels,
        "embedding_size": hidden_sizes[0],
        "hidden_sizes": hidden_sizes,
        "depths": depths,
        "layer_type": "basic",
        "id2label": info.id2label,
        "label2id": info.label2id,
        "problem_type": info.problem_type,
        "image_size": resolution,
    }
    return ResNetForImageClassification(ResNetConfig(**settings))


def train_oracle(args: argparse.Namespace) -> dict[str, Any]:
    """Train, measure and save the classifier.

    Args:
        args: of `oracle_parser`.

    Returns:
        What is saved as `oracle_metrics.json`.

    Raises:
        ValueError: for arguments or data that cannot work.
    """
    info = load_info(args.dataset_dir)
    resolution = args.resolution or info.image_size
    if resolution is None or resolution < 8:
        raise ValueError(f"`resolution` must be given and at least 8 pixels, but got {resolution}.")
    if args.max_train_steps < 1 or args.train_batch_size < 2:
        raise ValueError("`max_train_steps` must be at least 1 and `train_batch_size` at least 2.")
    if len(args.hidden_sizes) != len(args.depths):
        raise ValueError("`hidden_sizes` and `depths` must be equally long: one entry per stage.")
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    output_dir = Path(args.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)

    rows, labels, patients = _load_split(args.dataset_dir, info, "train")
    torch.manual_seed(args.seed)
    model = build_oracle(info, resolution, args.hidden_sizes, args.depths)
    model = model.to(device=device, memory_format=torch.channels_last)
    transform = ImageTransform(
        resolution,
        info.channels,
        horizontal_flip=args.horizontal_flip,
        shift=args.random_shift,
        intensity=args.intensity_jitter,
    )
    validation = None
    if parquet_files(args.dataset_dir, "validation"):
        held_out_rows, held_out_labels, _ = _load_split(args.dataset_dir, info, "validation")
        plain = ImageTransform(resolution, info.channels)
        validation = held_out_rows.batch(held_out_rows.indices, plain), held_out_labels[held_out_rows.indices]

    started = time.perf_counter()
    _train(args, model, rows, labels, transform, info, validation, MetricsLog(output_dir / "metrics.jsonl"))
    oracle = OracleClassifier(model)
    metrics: dict[str, Any] = {
        "data": info.name,
        "notes": info.notes,
        "num_train_images": len(rows.indices),
        "resolution": resolution,
        "seed": args.seed,
        "steps": args.max_train_steps,
        "training_seconds": round(time.perf_counter() - started, 1),
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "version": __version__,
    }
    if validation is not None:
        metrics["validation"] = measure_oracle(oracle, *validation, seed=args.seed)
        if info.is_multi_label:
            model.config.label_thresholds = _choose_thresholds(oracle, *validation)
    oracle.save_pretrained(output_dir)
    write_json(output_dir / PATIENTS_FILE, sorted({patient_digest(info.name, patient) for patient in patients}))
    write_json(output_dir / METRICS_FILE, metrics)
    return metrics


def disturb(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Blur some of the training images and add noise to some, each with its own strength.

    Args:
        images: shape `(batch, channels, height, width)` in [-1, 1].
        generator: on the CPU.
    """

    def uniform(low: float, high: float) -> torch.Tensor:
        return low + (high - low) * torch.rand(len(images), generator=generator)

    sigma = uniform(*BLUR_SIGMAS)
    is_blurred = uniform(0, 1) < BLUR_SHARE
    images = torch.where(is_blurred[:, None, None, None], blur(images, sigma), images)
    strength = torch.where(uniform(0, 1) < NOISE_SHARE, uniform(0, MAX_NOISE_SIGMA), torch.zeros(len(images)))
    return images + strength[:, None, None, None] * torch.randn(images.shape, generator=generator)


def blur(images: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Blur each image with a Gaussian of its own `sigma` in pixels, shape `(batch,)`."""
    num, channels, height, width = images.shape
    offsets = torch.arange(-_BLUR_RADIUS, _BLUR_RADIUS + 1)
    kernel = torch.exp(-(offsets**2) / (2 * sigma[:, None] ** 2))
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(channels, 0)
    stacked = F.pad(images.reshape(1, num * channels, height, width), (_BLUR_RADIUS,) * 4, mode="replicate")
    stacked = F.conv2d(stacked, kernel[:, None, None, :], groups=num * channels)
    stacked = F.conv2d(stacked, kernel[:, None, :, None], groups=num * channels)
    return stacked.reshape(images.shape)


def disturbed_variants(images: torch.Tensor, seed: int) -> dict[str, torch.Tensor]:
    """The disturbances that robustness is measured under.

    Args:
        images: in [-1, 1].
        seed: of the noise.

    Returns:
        `noised`: white noise that changes a pixel by `TEST_NOISE_L1` of the intensity range on average (a little less
        where it leaves the range); `blurred`: a Gaussian of `TEST_BLUR_SIGMA` pixels.
    """
    sigma = 2 * TEST_NOISE_L1 * math.sqrt(math.pi / 2)  # E|n| = sigma sqrt(2 / pi); [-1, 1] is two units wide
    noise = torch.randn(images.shape, generator=keyed_generator(seed, "oracle robustness"))
    return {
        "noised": (images + sigma * noise).clamp(-1, 1),
        "blurred": blur(images, torch.full((len(images),), TEST_BLUR_SIGMA)),
    }


def measure_oracle(
    oracle: OracleClassifier, images: torch.Tensor, labels: np.ndarray, seed: int = 0
) -> dict[str, Any]:
    """How good and how steady an oracle is.

    Args:
        oracle: the classifier.
        images: held-out images, shape `(num, channels, height, width)` in [-1, 1].
        labels: their labels, shape `(num, num_labels)`, NaN = unknown.
        seed: of the noise.

    Returns:
        `auroc` per label and `macro_auroc` on clean, noised and blurred images, and how much noise and blur move the
        scores: mean absolute and mean signed change.
    """
    clean_scores = oracle(images)
    result: dict[str, Any] = {"num_images": len(images), "noise_l1": TEST_NOISE_L1, "blur_sigma": TEST_BLUR_SIGMA}
    result["clean"] = _auroc(labels, clean_scores, oracle.label_names)
    for name, pictures in disturbed_variants(images, seed).items():
        scores = oracle(pictures)
        change = scores - clean_scores
        result[name] = {
            **_auroc(labels, scores, oracle.label_names),
            "mean_absolute_score_change": float(change.abs().mean()),
            "mean_score_change": float(change.mean()),
        }
    return result


def _load_split(folder: str, info: DatasetInfo, split: str) -> tuple[ImageRows, np.ndarray, list[str]]:
    """Pictures, labels and patients of a split; rows without any known label are left out of `indices`."""
    dataset = load_prepared(folder, split)
    rows, labels = ImageRows(dataset, description=f"{split} images"), label_matrix(dataset, info)
    rows.indices = rows.indices[~np.isnan(labels[rows.indices]).all(axis=1)]
    if len(rows.indices) == 0:
        raise ValueError(f"The {split} split of {folder!r} has no labelled image: an oracle needs labels.")
    patients = dataset["patient_id"]
    return rows, labels, [patients[index] for index in rows.indices.tolist()]


def _train(
    args: argparse.Namespace,
    model: Any,
    rows: ImageRows,
    labels: np.ndarray,
    transform: ImageTransform,
    info: DatasetInfo,
    validation: tuple[torch.Tensor, np.ndarray] | None,
    log: MetricsLog,
) -> None:
    """The training loop."""
    stream = IndexStream(rows.indices, args.train_batch_size, args.seed, "oracle")
    batches = stream_batches(rows, transform, stream)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate, weight_decay=args.adam_weight_decay)
    device = next(model.parameters()).device
    model.train()
    progress = tqdm(range(args.max_train_steps), desc="Training the oracle", unit="step")
    for step, images in zip(progress, batches, strict=False):
        factor = lr_factor(step, args.lr_scheduler, args.lr_warmup_steps, args.max_train_steps)
        for group in optimizer.param_groups:
            group["lr"] = args.learning_rate * factor
        images = disturb(images, keyed_generator(args.seed, "oracle noise", step))
        targets = torch.from_numpy(labels[[item.row for item in stream.batch(step)]]).to(device)
        pixels = resize_for_oracle(images.to(device), transform.resolution).contiguous(
            memory_format=torch.channels_last
        )
        loss = classification_loss(model(pixel_values=pixels).logits, targets, info.problem_type)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        done = step + 1
        if done % args.logging_steps == 0 or done == args.max_train_steps:
            log.append({"kind": "train", "step": done, "classification_loss": loss.item()})
            progress.set_postfix({"loss": f"{loss.item():.3f}"})
        if validation is not None and (done % args.validation_steps == 0 or done == args.max_train_steps):
            figures = _auroc(validation[1], OracleClassifier(model)(validation[0]), info.label_names)
            log.append({"kind": "validation", "step": done, **figures})
            model.train()
    model.eval()


def _auroc(labels: np.ndarray, scores: torch.Tensor, label_names: list[str]) -> dict[str, Any]:
    """`macro_auroc`, and `auroc` of every label that has one."""
    values = dict(zip(label_names, per_label_auroc(labels, scores.numpy()).tolist(), strict=True))
    auroc = {name: value for name, value in values.items() if not math.isnan(value)}
    return {"macro_auroc": float(np.mean(list(auroc.values()))) if auroc else None, "auroc": auroc}


def _choose_thresholds(oracle: OracleClassifier, images: torch.Tensor, labels: np.ndarray) -> list[float]:
    """Youden's threshold of each label on the validation images; 0.5 where none exists."""
    scores = oracle(images).numpy()
    thresholds = [youden_threshold(labels[:, k], scores[:, k]) for k in range(labels.shape[1])]
    return [0.5 if math.isnan(threshold) else threshold for threshold in thresholds]
