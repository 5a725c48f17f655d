"""Training of the autoencoder (paper App. C)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import nn
from torch.optim import Optimizer

from ...data.transforms import ImageTransform
from ...device import memory_format_for
from ...image_processor import denormalize
from ...latents import vae_scale_factor
from ..data.image_rows import stream_batches
from ..data.latent_statistics import measure_latent_std
from ..data.streams import IndexStream, slice_bounds
from ..data.training_data import (
    TrainingData,
    check_publishable,
    load_training_data,
    num_workers,
    train_transform,
)
from ..loop import Task, Trained, TrainingLoop
from ..run.ema import EMAWeights, validation_weights
from ..run.image_grid import save_image_grid
from ..run.optimizer import build_adamw, count_parameters
from ..run.randomness import keyed_generator, keyed_seed, seed_step
from ..run.run import TrainingRun, training_run
from .adversarial import DiscriminatorObjective
from .config import AutoencoderConfig
from .dry_run import describe_autoencoder_run
from .final_model import save_autoencoder
from .models import build_autoencoder
from .objective import AutoencoderObjective
from .patch_discriminator import PatchDiscriminator
from .perceptual_loss import load_perceptual_loss
from .reconstruction import QUALITY_MEASURES, reconstruction_quality


def train_autoencoder(config: AutoencoderConfig) -> None:
    """Train as a configuration says, or print what would be trained (`dry_run`).

    Raises:
        ValueError: for options, data or models that do not fit together.
    """
    config.check()
    if config.run.dry_run:
        print(json.dumps(describe_autoencoder_run(config), indent=2))
        return
    with training_run(config, config.hub) as run:
        TrainingLoop(run, AutoencoderTask(config), config.optimizer).train()


class AutoencoderTask(Task):
    """Reconstruction, KL divergence and an adversary; a `Task` of the training loop.

    Args:
        config: all options, checked.

    Raises:
        ValueError: for data or models that do not fit together.
    """

    config: AutoencoderConfig

    def __init__(self, config: AutoencoderConfig):
        self.config = config
        resolution = config.data.image_size
        self.data: TrainingData = load_training_data(config.data, config.run.seed, needs_labels=False)
        info = self.data.info
        if config.hub.push_to_hub:
            check_publishable(info)
        self.transform = train_transform(config.data, resolution, info.channels)
        self.plain_transform = ImageTransform(resolution, info.channels)
        torch.manual_seed(keyed_seed(config.run.seed, "initial weights"))
        self.vae = build_autoencoder(config.autoencoder, resolution, info.channels)
        if config.run.gradient_checkpointing:
            self.vae.enable_gradient_checkpointing()
        self.perceptual_loss = load_perceptual_loss(config.loss.perceptual)
        self.discriminator: PatchDiscriminator | None = None
        if config.has_discriminator:
            torch.manual_seed(keyed_seed(config.run.seed, "initial weights of the discriminator"))
            self.discriminator = PatchDiscriminator(
                info.channels, config.loss.disc_channels, config.loss.disc_num_layers
            )
        size = resolution // vae_scale_factor(self.vae)
        self.latent_shape = (self.vae.config.latent_channels, size, size)

    def facts(self) -> dict[str, Any]:
        """Data and sizes."""
        info = self.data.info
        return {
            "dataset": {"name": info.name, "source": info.source, "licence": info.licence},
            "num_train_images": len(self.data.train_indices),
            "num_validation_images": len(self.data.validation_indices),
            "num_vae_parameters": count_parameters(self.vae),
            "num_discriminator_parameters": 0 if self.discriminator is None else count_parameters(self.discriminator),
            "latent_shape": list(self.latent_shape),
        }

    def start(self, run: TrainingRun) -> None:
        """Autoencoder, discriminator, optimizers and average on the run's device."""
        self.run, loss, options = run, self.config.loss, self.config.optimizer
        self.memory_format: Any = memory_format_for(run.device)
        self.vae.to(memory_format=self.memory_format)  # type: ignore[call-overload]
        if self.discriminator is not None:
            self.discriminator.to(run.device).to(memory_format=self.memory_format)  # type: ignore[call-overload]
        self.objective = AutoencoderObjective(
            self.vae,
            loss.kl_weight,
            None if self.perceptual_loss is None else self.perceptual_loss.to(run.device),
            loss.perceptual_weight,
            self.discriminator,
            loss.disc_weight,
            None if run.num_processes == 1 else partial(run.accelerator.reduce, reduction="sum"),
        ).to(run.device)
        self.trained = [Trained("objective", self.objective, self._adamw(self.objective), self.objective)]
        if self.discriminator is not None:
            self.trained.append(
                Trained(
                    "discriminator",
                    self.discriminator,
                    self._adamw(self.discriminator),
                    DiscriminatorObjective(self.discriminator),
                    "discriminator_optimizer",
                    "disc_start",
                    loss.disc_start or 0,
                )
            )
        self.ema: EMAWeights[AutoencoderKL] | None = None
        if options.use_ema:
            self.ema = EMAWeights(self.vae, options.ema_decay)

    def batches(self) -> Iterator[torch.Tensor]:
        """Augmented images."""
        run, rows = self.run, self.data.rows
        return stream_batches(
            rows,
            self.transform,
            IndexStream(
                self.data.train_indices, self.config.data.train_batch_size, self.config.run.seed, "autoencoder"
            ),
            run.first_step,
            run.accelerator.process_index,
            run.num_processes,
            run.num_parts,
            num_workers=num_workers(self.config.data, rows),
            pin_memory=run.device.type == "cuda",
        )

    def losses(self, batch: torch.Tensor, step: int, part: int) -> dict[str, torch.Tensor]:
        """The losses of this process's slice, differentiated; each is a sum over the global batch."""
        run, loss, size = self.run, self.config.loss, self.config.data.train_batch_size
        objective, *adversary = (each.objective for each in self.trained)
        # 1. The autoencoder against the frozen discriminator.
        images = run.to_device(batch).contiguous(memory_format=self.memory_format)
        noise = run.to_device(self._noise(step, part))
        seed_step(self.config.run.seed, "dropout", step, part, run.accelerator.process_index)
        losses = objective(
            images,
            noise,
            size,
            is_perceptual=step >= loss.perceptual_start,
            is_adversarial=loss.is_adversarial(step),
        )
        run.backward(losses["loss"])
        reconstructions = losses.pop("reconstructions")
        # 2. The discriminator against these reconstructions. Before `disc_start` it gets no gradient.
        if loss.is_adversarial(step):
            judged = adversary[0](images, reconstructions, size)
            run.backward(judged.pop("loss"))
            losses.update(judged)
        return losses

    def measures(self, factor: float) -> dict[str, float]:
        """The learning rate, and the learned variance of the pixels."""
        rate = self.config.optimizer.learning_rate * factor
        return {"learning_rate": rate, "log_variance": self.objective.log_variance.item()}

    def report_is_due(self, done: int) -> bool:
        """Whether to validate: also right before the adversary takes part."""
        return self.run.is_due(done, self.config.run.validation_steps) or (
            self.discriminator is not None and done == self.config.loss.disc_start
        )

    @torch.no_grad()
    def report(self, done: int) -> None:
        """L1, PSNR and SSIM of the posterior's mode on the validation images, and a panel of some of them."""
        data, run = self.data, self.run
        if data.validation_rows is None or len(data.validation_indices) == 0:
            return
        size = self.config.run.validation_batch_size
        chunks = []
        with validation_weights(self.vae, self.ema) as vae:
            for number, start in enumerate(range(0, len(data.validation_indices), size)):
                if number % run.num_processes != run.accelerator.process_index:
                    continue
                indices = data.validation_indices[start : start + size]
                images = run.to_device(data.validation_rows.batch(indices, self.plain_transform))
                reconstructions = vae.decode(vae.encode(images).latent_dist.mode()).sample.float()
                quality = reconstruction_quality(denormalize(images), denormalize(reconstructions))
                chunks.append((number, torch.stack(list(quality.values())).cpu().double()))
                if number == 0:
                    self._save_panel(images, reconstructions, done)
        means = torch.cat(run.gather_chunks(chunks), dim=1).mean(dim=1).tolist()
        measures = dict(zip(QUALITY_MEASURES, means, strict=True))
        # With the step before, not with the next one.
        is_adversarial = self.discriminator is not None and self.config.loss.is_adversarial(done - 1)
        run.log({"kind": "validation", "step": done, **measures, "adversarial": is_adversarial})
        run.say(
            f"step {done}: validation L1 {measures['l1']:.4f}, PSNR {measures['psnr']:.2f} dB, "
            f"SSIM {measures['ssim']:.3f}"
        )

    def finish(self) -> None:
        """Save the autoencoder with `scaling_factor = 1 / std` of the training latents, and publish it if asked."""
        run, done = self.run, self.config.run.max_train_steps
        if not run.is_main:
            return
        with validation_weights(self.vae, self.ema) as vae:
            vae.register_to_config(scaling_factor=1.0)
            std = measure_latent_std(vae, self.data.rows, self.plain_transform)
            vae.register_to_config(scaling_factor=1.0 / max(std, 1e-6))
            if run.first_step < done:
                run.log({"kind": "latents", "step": done, "std": std, "scaling_factor": vae.config.scaling_factor})
            save_autoencoder(run, vae, self.data.info)

    def _adamw(self, module: nn.Module) -> Optimizer:
        """The optimizer of the autoencoder or of the discriminator, with the same settings."""
        options, rate = self.config.optimizer, self.config.optimizer.learning_rate
        group = {"params": list(module.parameters()), "lr": rate, "initial_lr": rate}
        return build_adamw(
            [group], betas=options.adam_betas, weight_decay=options.adam_weight_decay, eps=options.adam_epsilon
        )

    def _noise(self, step: int, part: int) -> torch.Tensor:
        """This process's slice of the noise of the global batch."""
        run, size = self.run, self.config.data.train_batch_size
        generator = keyed_generator(self.config.run.seed, "posterior noise", step)
        start, stop = slice_bounds(size, run.place(part), run.num_processes * run.num_parts)
        return torch.randn((size, *self.latent_shape), generator=generator)[start:stop]

    def _save_panel(self, images: torch.Tensor, reconstructions: torch.Tensor, done: int) -> None:
        """Originals above, reconstructions below."""
        count = min(self.config.autoencoder.num_panel_images, len(images))
        panel = torch.cat([images[:count], reconstructions[:count]]).float().clamp(-1, 1).cpu()
        path = self.run.output_dir / "samples" / f"step-{done:07d}.png"
        save_image_grid(panel, path, num_columns=count)
