"""The batches of joint training: two streams of clean latents, with noise, timesteps and labels.

Everything random is drawn for the global batch, of which each process and accumulation part takes its slice, so that
their number changes nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...data.schema import parquet_files
from ...data.transforms import ImageTransform
from ...device import memory_format_for
from ...latents import encode_pixels
from ..data.image_rows import stream_batches
from ..data.label_balance import BalancedIndexStream
from ..data.latent_cache import CachePlan, LatentCache, open_latent_cache, stream_latents
from ..data.streams import IndexStream, slice_bounds
from ..data.training_data import TrainingData, num_workers, train_transform
from ..run.randomness import keyed_generator
from ..run.run import TrainingRun
from .config import JointConfig
from .loss_weights import snr_weights
from .objectives import DiffusionBatch, LabelledBatch, count_known


# Images, or cached latents, of the diffusion and of the labelled stream; `None` where a step has no such loss.
JointImages = tuple[torch.Tensor | None, torch.Tensor | None]


class JointBatches:
    """Makes the slices of both streams that the objective is called with.

    Args:
        config: all options.
        run: the training run.
        data: images and labels.
        vae: the frozen autoencoder, on the run's device.
        noise_scheduler: the noise schedule of training.
        latent_cache: latents of the training images; without it images are augmented and encoded in every step.
    """

    def __init__(
        self,
        config: JointConfig,
        run: TrainingRun,
        data: TrainingData,
        vae: Any,
        noise_scheduler: Any,
        latent_cache: LatentCache | None = None,
    ):
        self.config, self.run, self.data, self.vae = config, run, data, vae
        self.noise_scheduler = noise_scheduler
        self.latent_cache = latent_cache
        self.memory_format = memory_format_for(run.device)
        self.transform = train_transform(config.data, config.data.image_size, data.info.channels)
        self.labelled_stream: IndexStream | None = None

    def images(self) -> Iterator[JointImages]:
        """What each accumulation part of each step that is left sees of both streams."""
        config, first_step = self.config, self.run.first_step
        seed = config.run.seed
        train_stream = IndexStream(self.data.train_indices, config.data.train_batch_size, seed, "diffusion")
        train_images = self._stream(train_stream, first_step)
        labelled_images: Iterator[torch.Tensor] = iter(())
        if config.labels.classifier_loss_weight > 0:
            self.labelled_stream = self._labelled_stream()
            labelled_images = self._stream(self.labelled_stream, config.labels.steps_before(first_step))
        for step in itertools.count(first_step):
            for _ in range(self.run.num_parts):
                yield (
                    next(train_images) if config.diffusion.diffusion_loss_weight > 0 else None,
                    next(labelled_images) if config.labels.is_due(step) else None,
                )

    def diffusion(self, images: torch.Tensor, step: int, part: int) -> DiffusionBatch:
        """One slice of the diffusion batch: clean latents, noise and timesteps."""
        options, size = self.config.diffusion, self.config.data.train_batch_size
        latents = self._latents(images)
        generator = keyed_generator(self.config.run.seed, "diffusion noise", step)
        timesteps = torch.randint(0, options.num_train_timesteps, (size,), generator=generator)
        noise = torch.randn((size, *latents.shape[1:]), generator=generator)
        own = self.slice_of(size, part)
        timesteps = self.run.to_device(timesteps[own])
        weights = None
        if options.snr_gamma is not None:
            weights = snr_weights(self.noise_scheduler, timesteps, options.snr_gamma, options.snr_weighting)
        return DiffusionBatch(
            latents=latents,
            noise=self.run.to_device(noise[own]).contiguous(memory_format=self.memory_format),
            timesteps=timesteps,
            num_images=size,
            weights=weights,
        )

    def labelled(self, images: torch.Tensor, step: int, part: int) -> LabelledBatch:
        """One slice of the labelled batch: clean latents at t = 0, except for a share that is noised to a random t."""
        assert self.labelled_stream is not None
        size = self.config.labels.labelled_batch_size
        rows = [item.row for item in self.labelled_stream.batch(self.config.labels.steps_before(step))]
        labels = torch.from_numpy(self.data.labels[rows])
        num_known = count_known(labels, self.data.info.problem_type)
        own = self.slice_of(size, part)
        labels = labels[own]
        if len(labels) == 0:  # more processes than labelled images: one image that counts for nothing
            images = images.new_zeros(1, *images.shape[1:])
            labels = torch.full((1, labels.shape[1]), torch.nan)
            own = slice(0, 1)
        latents = self._latents(images)
        latents, timesteps = self.noise_some(latents, size, own, "classifier noise", step)
        return LabelledBatch(latents, timesteps, self.run.to_device(labels), num_known)

    def noise_some(
        self, latents: torch.Tensor, size: int, own: slice, purpose: str, step: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Noise a share of the classifier's inputs; drawn for the global batch of `size`, of which `own` is here."""
        options = self.config.labels
        generator = keyed_generator(self.config.run.seed, purpose, step)
        is_noised = torch.rand(size, generator=generator) < options.classifier_noise_prob
        timesteps = torch.randint(0, options.classifier_max_timestep, (size,), generator=generator)
        timesteps = self.run.to_device(torch.where(is_noised, timesteps, torch.zeros_like(timesteps))[own])
        if options.classifier_noise_prob > 0:
            noise = self.run.to_device(torch.randn((size, *latents.shape[1:]), generator=generator)[own])
            noisy_latents = self.noise_scheduler.add_noise(latents, noise, timesteps)
            noised = self.run.to_device(is_noised[own]).view(-1, 1, 1, 1)
            latents = torch.where(noised, noisy_latents, latents).contiguous(memory_format=self.memory_format)
        return latents, timesteps

    def slice_of(self, length: int, part: int) -> slice:
        """This process's slice of a global batch."""
        return slice(*slice_bounds(length, self.run.place(part), self.run.num_processes * self.run.num_parts))

    def _labelled_stream(self) -> IndexStream:
        """The labelled images, as often as they are or every class equally often."""
        rows, size, seed = self.data.labelled_indices, self.config.labels.labelled_batch_size, self.config.run.seed
        if self.config.semi_supervised.balanced_labelled_sampling:
            return BalancedIndexStream(rows, self.data.labels[rows], size, seed, "labelled")
        return IndexStream(rows, size, seed, "labelled")

    def _stream(self, stream: IndexStream, first_step: int) -> Iterator[torch.Tensor]:
        run, rows = self.run, self.data.rows
        places = (first_step, run.accelerator.process_index, run.num_processes, run.num_parts)
        if self.latent_cache is not None:
            return stream_latents(self.latent_cache, stream, *places)
        workers = num_workers(self.config.data, rows)
        return stream_batches(rows, self.transform, stream, *places, workers, run.device.type == "cuda")

    @torch.no_grad()
    def _latents(self, images: torch.Tensor) -> torch.Tensor:
        latents = self.run.to_device(images)
        if self.latent_cache is None:
            with self.run.frozen_autocast(self.vae):
                latents = encode_pixels(self.vae, latents).float()
        return latents.contiguous(memory_format=self.memory_format)


def open_latent_caches(
    config: JointConfig, data: TrainingData, vae: Any
) -> tuple[LatentCache | None, LatentCache | None]:
    """The cached latents of the training images, augmented, and of the validation images, as `--cache_latents` asks.

    Returns:
        Both, or `None` where there is nothing to cache or it is not asked for.
    """
    options = config.speed
    if not options.cache_latents:
        return None, None
    workers, resolution = num_workers(config.data, data.rows), config.data.image_size
    transform = train_transform(config.data, resolution, data.info.channels)
    # Beside `output_dir` by default, so that runs in one folder share them.
    folder = Path(options.latent_cache_dir or Path(str(config.run.output_dir)).parent / "latents")
    used = np.union1d(data.train_indices, data.labelled_indices)
    plan = CachePlan(data.rows, used, transform, options.cache_latents_variants, "training images", workers)
    train_cache = open_latent_cache(folder, vae, plan, parquet_files(data.folder, "train"))
    if data.validation_rows is None or len(data.validation_indices) == 0:
        return train_cache, None
    files = parquet_files(data.folder, "train" if data.validation_rows is data.rows else "validation")
    plain = ImageTransform(resolution, data.info.channels)
    plan = CachePlan(data.validation_rows, np.sort(data.validation_indices), plain, 1, "validation images", workers)
    return train_cache, open_latent_cache(folder, vae, plan, files)
