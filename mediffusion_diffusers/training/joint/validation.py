"""Validation of the joint model with the weights that will be saved: AUROC, losses, thresholds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ...data.transforms import ImageTransform
from ...evaluation.classification import per_label_auroc, youden_threshold
from ...latents import encode_pixels
from ...models import JointUNet2DModel
from ..data.latent_cache import LatentCache
from ..data.training_data import TrainingData
from ..run.randomness import keyed_generator
from ..run.run import TrainingRun
from .objectives import classification_loss, diffusion_target


@dataclass
class ValidationResult:
    """What one validation found.

    Args:
        logits: `(num_images, num_labels)`.
        labels: `(num_images, num_labels)`, NaN = unknown.
        diffusion_loss: mean squared error on the same noise and timesteps every time.
        classification_loss: on clean latents at t = 0.
        auroc: per label; labels without positives or negatives are left out.
    """

    logits: np.ndarray
    labels: np.ndarray
    diffusion_loss: float
    classification_loss: float
    auroc: dict[str, float]

    @property
    def macro_auroc(self) -> float | None:
        """Mean over the labels that have an AUROC; `None` if there is none."""
        return float(np.mean(list(self.auroc.values()))) if self.auroc else None

    def record(self, step: int) -> dict[str, Any]:
        """The line for metrics.jsonl."""
        return {
            "kind": "validation",
            "step": step,
            "macro_auroc": self.macro_auroc,
            "auroc": self.auroc,
            "diffusion_loss": self.diffusion_loss,
            "classification_loss": self.classification_loss,
            "num_images": len(self.labels),
        }


@torch.no_grad()
def validate(
    run: TrainingRun,
    unet: JointUNet2DModel,
    vae: Any,
    noise_scheduler: Any,
    data: TrainingData,
    transform: ImageTransform,
    latent_cache: LatentCache | None = None,
) -> ValidationResult:
    """Classify and denoise the validation images; every process takes a share of the batches.

    Args:
        run: the training run.
        unet: the model in evaluation mode, with the weights to validate.
        vae: the autoencoder.
        noise_scheduler: the noise schedule of training.
        data: must have validation rows.
        transform: decodes images, without augmentation.
        latent_cache: latents of the validation images, if they are cached.

    Returns:
        The same on all processes.
    """
    assert data.validation_rows is not None
    size = run.options.validation_batch_size
    starts = range(0, len(data.validation_indices), size)
    chunks = []
    for number, start in enumerate(starts):
        if number % run.num_processes != run.accelerator.process_index:
            continue
        indices = data.validation_indices[start : start + size]
        if latent_cache is None:
            with run.frozen_autocast(vae):
                latents = encode_pixels(vae, run.to_device(data.validation_rows.batch(indices, transform))).float()
        else:
            latents = run.to_device(latent_cache.batch(indices))
        timesteps, noise = validation_noise(
            run.options.seed, number, latents.shape, noise_scheduler.config.num_train_timesteps
        )
        timesteps, noise = run.to_device(timesteps), run.to_device(noise)
        noisy_latents = noise_scheduler.add_noise(latents, noise, timesteps)
        with run.accelerator.autocast():
            logits = unet(latents, 0, return_sample=False).logits
            output = unet(noisy_latents, timesteps, return_logits=False).sample
        target = diffusion_target(latents, noise, timesteps, noise_scheduler)
        errors = (output.float() - target).square().flatten(1).mean(dim=1)
        chunks.append((number, (logits.float().cpu().numpy(), errors.cpu().double().numpy())))
    gathered = run.gather_chunks(chunks)
    logits = np.concatenate([pair[0] for pair in gathered])
    errors = np.concatenate([pair[1] for pair in gathered])
    labels = data.validation_labels[data.validation_indices]
    loss = classification_loss(torch.from_numpy(logits), torch.from_numpy(labels), data.info.problem_type)
    return ValidationResult(
        logits=logits,
        labels=labels,
        diffusion_loss=float(errors.mean()),
        classification_loss=float(loss),
        auroc=auroc_per_label(labels, probabilities(logits, data.info.problem_type), data.info.label_names),
    )


def probabilities(logits: np.ndarray, problem_type: str) -> np.ndarray:
    """Sigmoid (multi-label) or softmax (single-label) of logits, `(num_images, num_labels)`."""
    tensor = torch.from_numpy(logits)
    return (tensor.sigmoid() if problem_type == "multi_label_classification" else tensor.softmax(dim=1)).numpy()


def validation_noise(
    seed: int, chunk: int, shape: torch.Size, num_train_timesteps: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Timesteps and noise of one validation batch: the same at every validation."""
    generator = keyed_generator(seed, "validation", chunk)
    timesteps = torch.randint(0, num_train_timesteps, (shape[0],), generator=generator)
    return timesteps, torch.randn(shape, generator=generator)


def auroc_per_label(labels: np.ndarray, scores: np.ndarray, names: list[str]) -> dict[str, float]:
    """AUROC of every label that has positives and negatives among its known entries, by name."""
    values = per_label_auroc(labels, scores).tolist()
    return {name: value for name, value in zip(names, values, strict=True) if not math.isnan(value)}


def label_thresholds(result: ValidationResult, problem_type: str) -> list[float]:
    """Per label the probability from which it counts as present: Youden's, 0.5 where there is none."""
    scores = probabilities(result.logits, problem_type)
    thresholds = [youden_threshold(result.labels[:, k], scores[:, k]) for k in range(scores.shape[1])]
    return [0.5 if math.isnan(value) else min(max(value, 1e-6), 1 - 1e-6) for value in thresholds]
