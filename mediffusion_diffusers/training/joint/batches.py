"""The batches of joint training: streams of clean latents, with noise, timesteps and labels.

Everything random is drawn for the global batch, of which each process and accumulation part takes its slice, so that
their number changes nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ...data.schema import parquet_files
from ...data.transforms import ImageTransform
from ...device import memory_format_for
from ...latents import encode_pixels
from ..classification import count_known
from ..data.image_rows import stream_batches
from ..data.label_balance import BalancedIndexStream, SquareRootIndexStream
from ..data.latent_cache import CachePlan, LatentCache, open_latent_cache, stream_latents
from ..data.streams import IndexStream, slice_bounds
from ..data.training_data import TrainingData, num_workers, train_transform
from ..run.randomness import keyed_generator, keyed_rng
from ..run.run import TrainingRun
from ..stages import stage_at
from .config import DiffusionOptions, JointConfig
from .consolidation import SoftAnswers
from .loss_weights import snr_weights
from .objectives import DiffusionBatch, LabelledBatch
from .stages import joint_stages


class JointImages(NamedTuple):
    """Images, or cached latents, of each stream; `None` where a step has no such loss.

    Args:
        diffusion: of the diffusion stream.
        labelled: of the labelled stream.
        answered: of the consolidation stream.
    """

    diffusion: torch.Tensor | None
    labelled: torch.Tensor | None
    answered: torch.Tensor | None


class JointBatches:
    """Makes the slices of the streams that the objective is called with.

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
        self.classifier_transform = replace(self.transform, color_jitter=config.labels.classifier_color_jitter)
        self.stages = joint_stages(config)
        self.plain_transform = ImageTransform(config.data.image_size, data.info.channels)
        self.labelled_stream: IndexStream | None = None
        self.answered_stream = IndexStream(
            data.train_indices, config.consolidation.consolidation_batch_size, config.run.seed, "consolidation"
        )

    def images(self) -> Iterator[JointImages]:
        """What each accumulation part of each step that is left sees of each stream."""
        config, first_step = self.config, self.run.first_step
        seed = config.run.seed
        train_stream = IndexStream(self.data.train_indices, config.data.train_batch_size, seed, "diffusion")
        train_images: Iterator[torch.Tensor] = iter(())
        labelled_images: Iterator[torch.Tensor] = iter(())
        if config.labels.classifier_loss_weight > 0:
            self.labelled_stream = self._labelled_stream()
            labelled_images = self._stream(
                self.labelled_stream, config.labelled_steps_before(first_step), self.classifier_transform
            )
        answered_images: Iterator[torch.Tensor] = iter(())
        for step in itertools.count(first_step):
            stage = stage_at(self.stages, step)
            if step in (stage.first_step, first_step):
                train_images = self._stream(train_stream, step, self.transform)
                answered_images = self._stream(
                    self.answered_stream, step - stage.first_step, self.classifier_transform
                )
            for _ in range(self.run.num_parts):
                yield JointImages(
                    next(train_images) if stage.diffusion_loss_weight > 0 else None,
                    next(labelled_images) if stage.is_labelled and config.labels.is_due(step) else None,
                    next(answered_images) if stage.is_consolidating else None,
                )

    def diffusion(self, images: torch.Tensor, step: int, part: int) -> DiffusionBatch:
        """One slice of the diffusion batch: clean latents, noise and timesteps."""
        options, size = self.config.diffusion, self.config.data.train_batch_size
        latents = self._latents(images)
        generator = keyed_generator(self.config.run.seed, "diffusion noise", step)
        timesteps = draw_timesteps(size, options, generator)
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
        rows = [item.row for item in self.labelled_stream.batch(self.config.labelled_steps_before(step))]
        labels = torch.from_numpy(self.data.labels[rows])
        num_known = count_known(labels, self.data.info.problem_type)
        own = self.slice_of(size, part)
        labels, latents, own = self._at_least_one(labels[own], images, own)
        latents, timesteps = self.noise_some(latents, size, own, "classifier noise", step)
        return LabelledBatch(latents, timesteps, self.run.to_device(labels), num_known)

    def answered(self, images: torch.Tensor, step: int, part: int, answers: SoftAnswers) -> LabelledBatch:
        """One slice of the consolidation batch, with the model's soft answers for labels; a share is noised."""
        options = self.config.consolidation
        size, own = options.consolidation_batch_size, self.slice_of(options.consolidation_batch_size, part)
        first_step = stage_at(self.stages, step).first_step
        labels = answers.of([item.row for item in self.answered_stream.batch(step - first_step)])
        num_known = count_known(labels, self.data.info.problem_type)
        labels, latents, own = self._at_least_one(labels[own], images, own)
        latents, timesteps = self.noise_some(
            *(latents, size, own, "consolidation noise", step),
            noise_prob=options.consolidation_noise_prob,
            max_timestep=options.consolidation_max_timestep,
        )
        return LabelledBatch(latents, timesteps, self.run.to_device(labels), num_known)

    def clean_latents(self, rows: np.ndarray, view: int) -> torch.Tensor:
        """Clean latents of some training images: plain in view 0, in others augmented, the same way every time."""
        if self.latent_cache is not None:
            number = view % self.latent_cache.num_variants
            return self._latents(torch.stack([self.latent_cache.latents(int(row), number) for row in rows]))
        if view == 0:
            return self._latents(self.data.rows.batch(rows, self.plain_transform))
        seed = self.config.run.seed
        pictures = [
            self.transform(self.data.rows.picture(int(row)), keyed_rng(seed, "view", view, int(row))) for row in rows
        ]
        return self._latents(torch.stack(pictures))

    def noise_some(
        self,
        latents: torch.Tensor,
        size: int,
        own: slice,
        purpose: str,
        step: int,
        noise_prob: float | None = None,
        max_timestep: int | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Noise a share of the classifier's inputs; drawn for the global batch of `size`, of which `own` is here."""
        options = self.config.labels
        noise_prob = options.classifier_noise_prob if noise_prob is None else noise_prob
        max_timestep = options.classifier_max_timestep if max_timestep is None else max_timestep
        generator = keyed_generator(self.config.run.seed, purpose, step)
        is_noised = torch.rand(size, generator=generator) < noise_prob
        timesteps = torch.randint(0, max_timestep, (size,), generator=generator)
        timesteps = self.run.to_device(torch.where(is_noised, timesteps, torch.zeros_like(timesteps))[own])
        if noise_prob > 0:
            noise = self.run.to_device(torch.randn((size, *latents.shape[1:]), generator=generator)[own])
            noisy_latents = self.noise_scheduler.add_noise(latents, noise, timesteps)
            noised = self.run.to_device(is_noised[own]).view(-1, 1, 1, 1)
            latents = torch.where(noised, noisy_latents, latents).contiguous(memory_format=self.memory_format)
        return latents, timesteps

    def slice_of(self, length: int, part: int) -> slice:
        """This process's slice of a global batch."""
        return slice(*slice_bounds(length, self.run.place(part), self.run.num_processes * self.run.num_parts))

    def _at_least_one(
        self, labels: torch.Tensor, images: torch.Tensor, own: slice
    ) -> tuple[torch.Tensor, torch.Tensor, slice]:
        """Labels and clean latents of a slice; of an empty one, of more processes than images, one that counts 0."""
        if len(labels) > 0:
            return labels, self._latents(images), own
        nothing = images.new_zeros(1, *images.shape[1:])
        return torch.full((1, labels.shape[1]), torch.nan), self._latents(nothing), slice(0, 1)

    def _labelled_stream(self) -> IndexStream:
        """The labelled images, as often as they are or by class."""
        rows, size, seed = self.data.labelled_indices, self.config.labels.labelled_batch_size, self.config.run.seed
        options = self.config.semi_supervised
        if options.balanced_labelled_sampling:
            return BalancedIndexStream(rows, self.data.labels[rows], size, seed, "labelled")
        if options.square_root_labelled_sampling:
            return SquareRootIndexStream(rows, self.data.labels[rows], size, seed, "labelled")
        return IndexStream(rows, size, seed, "labelled")

    def _stream(self, stream: IndexStream, first_step: int, transform: ImageTransform) -> Iterator[torch.Tensor]:
        run, rows = self.run, self.data.rows
        places = (first_step, run.accelerator.process_index, run.num_processes, run.num_parts)
        if self.latent_cache is not None:
            return stream_latents(self.latent_cache, stream, *places)
        workers = num_workers(self.config.data, rows)
        return stream_batches(rows, transform, stream, *places, workers, run.device.type == "cuda")

    @torch.no_grad()
    def _latents(self, images: torch.Tensor) -> torch.Tensor:
        latents = self.run.to_device(images)
        if self.latent_cache is None:
            with self.run.frozen_autocast(self.vae):
                latents = encode_pixels(self.vae, latents).float()
        return latents.contiguous(memory_format=self.memory_format)


def draw_timesteps(num: int, options: DiffusionOptions, generator: torch.Generator) -> torch.Tensor:
    """Uniform random timesteps, int64 `(num,)`; stratified, each of `num` equal parts of the schedule gives one."""
    if not options.stratified_timesteps:
        return torch.randint(0, options.num_train_timesteps, (num,), generator=generator)
    parts = torch.randperm(num, generator=generator) + torch.rand(num, generator=generator, dtype=torch.float64)
    return (parts / num * options.num_train_timesteps).long()


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
