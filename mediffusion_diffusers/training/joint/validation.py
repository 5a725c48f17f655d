"""Validation of the joint model with the weights that will be saved: AUROC, losses, thresholds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ...data.transforms import ImageTransform
from ...latents import encode_pixels
from ...models import JointUNet2DModel
from ..classification import auroc_record, classification_loss, probabilities
from ..data.latent_cache import LatentCache
from ..data.training_data import TrainingData
from ..run.randomness import keyed_generator
from ..run.run import TrainingRun
from .objectives import diffusion_target


# Shares of the noise schedule at which the classifier is asked as well.
NOISY_SHARES = (0.3, 0.5)


@dataclass
class ValidationResult:
    """What one validation found.

    Args:
        probabilities: `(num_images, num_labels)`.
        labels: `(num_images, num_labels)`, NaN = unknown.
        diffusion_loss: mean squared error on the same noise and timesteps every time.
        classification_loss: on clean latents at t = 0.
        auroc: per label; labels without positives or negatives are left out.
        macro_auroc: mean over the labels that have an AUROC; `None` if there is none.
        noisy_macro_auroc: the same on noised latents, by timestep: whether the classifier can guide.
    """

    probabilities: np.ndarray
    labels: np.ndarray
    diffusion_loss: float
    classification_loss: float
    auroc: dict[str, float]
    macro_auroc: float | None
    noisy_macro_auroc: dict[int, float | None]

    def sentence(self) -> str:
        """AUROC on clean and noised latents, for the user."""
        macro_auroc = math.nan if self.macro_auroc is None else self.macro_auroc
        noisy = [f"{value:.3f} at t = {t}" for t, value in self.noisy_macro_auroc.items() if value is not None]
        return ", ".join([f"validation macro AUROC {macro_auroc:.3f}", *noisy])

    def record(self, step: int) -> dict[str, Any]:
        """The line for metrics.jsonl."""
        return {
            "kind": "validation",
            "step": step,
            "macro_auroc": self.macro_auroc,
            "auroc": self.auroc,
            **{f"macro_auroc_at_{t}": value for t, value in self.noisy_macro_auroc.items()},
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
    num_timesteps = noise_scheduler.config.num_train_timesteps
    noisy_timesteps = [int(share * num_timesteps) for share in NOISY_SHARES]
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
        timesteps, noise = validation_noise(run.options.seed, number, latents.shape, num_timesteps)
        timesteps, noise = run.to_device(timesteps), run.to_device(noise)
        noisy_latents = noise_scheduler.add_noise(latents, noise, timesteps)
        with run.accelerator.autocast():
            logits = [unet(latents, 0, return_sample=False).logits]
            for t in noisy_timesteps:
                noised = noise_scheduler.add_noise(latents, noise, torch.full_like(timesteps, t))
                logits.append(unet(noised, t, return_sample=False).logits)
            output = unet(noisy_latents, timesteps, return_logits=False).sample
        target = diffusion_target(latents, noise, timesteps, noise_scheduler)
        errors = (output.float() - target).square().flatten(1).mean(dim=1)
        chunks.append((number, (torch.stack(logits, dim=1).float().cpu(), errors.cpu().double().numpy())))
    gathered = run.gather_chunks(chunks)
    all_logits = torch.cat([pair[0] for pair in gathered])
    errors = np.concatenate([pair[1] for pair in gathered])
    labels = data.validation_labels[data.validation_indices]
    problem_type = data.info.problem_type
    loss = classification_loss(all_logits[:, 0], torch.from_numpy(labels), problem_type)
    clean, *noisy = (
        auroc_record(labels, probabilities(each, problem_type).numpy(), data.info.label_names)
        for each in all_logits.unbind(dim=1)
    )
    return ValidationResult(
        probabilities=probabilities(all_logits[:, 0], problem_type).numpy(),
        labels=labels,
        diffusion_loss=float(errors.mean()),
        classification_loss=float(loss),
        auroc=clean["auroc"],
        macro_auroc=clean["macro_auroc"],
        noisy_macro_auroc={t: each["macro_auroc"] for t, each in zip(noisy_timesteps, noisy, strict=True)},
    )


def validation_noise(
    seed: int, chunk: int, shape: torch.Size, num_train_timesteps: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Timesteps and noise of one validation batch: the same at every validation."""
    generator = keyed_generator(seed, "validation", chunk)
    timesteps = torch.randint(0, num_train_timesteps, (shape[0],), generator=generator)
    return timesteps, torch.randn(shape, generator=generator)
