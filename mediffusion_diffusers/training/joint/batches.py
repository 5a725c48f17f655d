"""The batches of joint training: two streams of clean latents, with noise, timesteps and labels.

Everything random is drawn for the global batch, of which each process and accumulation part takes its slice, so that
their number changes nothing.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from ...data.schema import parquet_files
from ...data.transforms import ImageTransform
from ...latents import encode_pixels
from ..data.image_rows import stream_batches
from ..data.label_balance import BalancedIndexStream
from ..data.latent_cache import CachePlan, LatentCache, open_latent_cache, stream_latents
from ..data.streams import IndexStream, slice_bounds
from ..data.training_data import TrainingData, latent_cache_folder, num_workers, train_transform
from ..run.randomness import keyed_generator
from ..run.run import TrainingRun
from .loss_weights import min_snr_weights
from .objectives import DiffusionBatch, LabelledBatch, classification_steps_before, count_known


class JointBatches:
    """Makes the slices of both streams that the objective is called with.

    Args:
        args: the parsed command line.
        run: the training run.
        data: images and labels.
        vae: the frozen autoencoder, on its device.
        noise_scheduler: the noise schedule of training.
        latent_cache: latents of the training images; without it images are augmented and encoded in every step.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        run: TrainingRun,
        data: TrainingData,
        vae: Any,
        noise_scheduler: Any,
        latent_cache: LatentCache | None = None,
    ):
        self.args, self.run, self.data, self.vae = args, run, data, vae
        self.noise_scheduler = noise_scheduler
        self.latent_cache = latent_cache
        self.transform = train_transform(args, data.info.channels)
        self.labelled_stream: IndexStream | None = None

    def streams(self) -> tuple[Iterator[torch.Tensor], Iterator[torch.Tensor]]:
        """Images (or cached latents) of the diffusion and of the labelled stream, from the first step left."""
        args, data = self.args, self.data
        train_stream = IndexStream(data.train_indices, args.train_batch_size, args.seed, "diffusion")
        train_batches = self._stream(train_stream, self.run.first_step)
        if args.classifier_loss_weight == 0:
            return train_batches, iter(())
        self.labelled_stream = self._labelled_stream()
        return train_batches, self._stream(self.labelled_stream, self._labelled_step(self.run.first_step))

    def diffusion(self, images: torch.Tensor, step: int, part: int) -> DiffusionBatch:
        """One slice of the diffusion batch: clean latents, noise and timesteps."""
        args = self.args
        latents = self._latents(images)
        generator = keyed_generator(args.seed, "diffusion noise", step)
        timesteps = torch.randint(0, args.num_train_timesteps, (args.train_batch_size,), generator=generator)
        noise = torch.randn((args.train_batch_size, *latents.shape[1:]), generator=generator)
        own = self.slice_of(args.train_batch_size, part)
        timesteps = timesteps[own].to(latents.device)
        return DiffusionBatch(
            latents=latents,
            noise=noise[own].to(latents.device).contiguous(memory_format=torch.channels_last),
            timesteps=timesteps,
            num_images=args.train_batch_size,
            weights=args.snr_gamma and min_snr_weights(self.noise_scheduler, timesteps, args.snr_gamma),
        )

    def labelled(self, images: torch.Tensor, step: int, part: int) -> LabelledBatch:
        """One slice of the labelled batch: clean latents at t = 0, except for a share that is noised to a random t."""
        assert self.labelled_stream is not None
        args = self.args
        indices = [item.row for item in self.labelled_stream.batch(self._labelled_step(step))]
        labels = torch.from_numpy(self.data.labels[indices])
        num_known = count_known(labels, self.data.info.problem_type)
        own = self.slice_of(args.labelled_batch_size, part)
        labels = labels[own]
        if len(labels) == 0:  # more processes than labelled images: one image that counts for nothing
            images = images.new_zeros(1, *images.shape[1:])
            labels = torch.full((1, labels.shape[1]), torch.nan)
            own = slice(0, 1)
        latents = self._latents(images)
        latents, timesteps = self.noise_some(latents, args.labelled_batch_size, own, "classifier noise", step)
        return LabelledBatch(latents, timesteps, labels.to(latents.device), num_known)

    def noise_some(
        self, latents: torch.Tensor, size: int, own: slice, purpose: str, step: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Noise a share of the classifier's inputs; drawn for the global batch of `size`, of which `own` is here."""
        args = self.args
        generator = keyed_generator(args.seed, purpose, step)
        is_noised = torch.rand(size, generator=generator) < args.classifier_noise_prob
        timesteps = torch.randint(0, args.classifier_max_timestep, (size,), generator=generator)
        timesteps = torch.where(is_noised, timesteps, torch.zeros_like(timesteps))[own].to(latents.device)
        if args.classifier_noise_prob > 0:
            noise = torch.randn((size, *latents.shape[1:]), generator=generator)[own].to(latents.device)
            noisy_latents = self.noise_scheduler.add_noise(latents, noise, timesteps)
            noised = is_noised[own].to(latents.device).view(-1, 1, 1, 1)
            latents = torch.where(noised, noisy_latents, latents).contiguous(memory_format=torch.channels_last)
        return latents, timesteps

    def slice_of(self, length: int, part: int) -> slice:
        """This process's slice of a global batch."""
        run = self.run
        place = part * run.num_processes + run.accelerator.process_index
        return slice(*slice_bounds(length, place, run.num_processes * run.num_parts))

    def _labelled_step(self, step: int) -> int:
        """Where the labelled stream stands."""
        return classification_steps_before(step, self.args.classifier_start_step, self.args.classifier_every)

    def _labelled_stream(self) -> IndexStream:
        """The labelled images, as often as they are or every class equally often."""
        args, rows = self.args, self.data.labelled_indices
        if args.balanced_labelled_sampling:
            return BalancedIndexStream(rows, self.data.labels[rows], args.labelled_batch_size, args.seed, "labelled")
        return IndexStream(rows, args.labelled_batch_size, args.seed, "labelled")

    def _stream(self, stream: IndexStream, first_step: int) -> Iterator[torch.Tensor]:
        run, rows = self.run, self.data.rows
        places = (first_step, run.accelerator.process_index, run.num_processes, run.num_parts)
        if self.latent_cache is not None:
            return stream_latents(self.latent_cache, stream, *places)
        pin_memory = run.accelerator.device.type == "cuda"
        return stream_batches(rows, self.transform, stream, *places, num_workers(self.args, rows), pin_memory)

    @torch.no_grad()
    def _latents(self, images: torch.Tensor) -> torch.Tensor:
        images = images.to(self.vae.device)
        latents = encode_pixels(self.vae, images).float() if self.latent_cache is None else images
        return latents.contiguous(memory_format=torch.channels_last)


def open_latent_caches(
    args: argparse.Namespace, data: TrainingData, vae: Any
) -> tuple[LatentCache | None, LatentCache | None]:
    """The cached latents of the training images, augmented, and of the validation images, as `--cache_latents` asks.

    Returns:
        Both, or `None` where there is nothing to cache or it is not asked for.
    """
    if not args.cache_latents:
        return None, None
    workers = num_workers(args, data.rows)
    transform = train_transform(args, data.info.channels)
    folder, files = latent_cache_folder(args), parquet_files(data.folder, "train")
    used = np.union1d(data.train_indices, data.labelled_indices)
    plan = CachePlan(data.rows, used, transform, args.cache_latents_variants, "training images", workers)
    train_cache = open_latent_cache(folder, vae, plan, files)
    if data.validation_rows is None or len(data.validation_indices) == 0:
        return train_cache, None
    files = parquet_files(data.folder, "train" if data.validation_rows is data.rows else "validation")
    plain = ImageTransform(args.resolution, data.info.channels)
    plan = CachePlan(data.validation_rows, np.sort(data.validation_indices), plain, 1, "validation images", workers)
    return train_cache, open_latent_cache(folder, vae, plan, files)
