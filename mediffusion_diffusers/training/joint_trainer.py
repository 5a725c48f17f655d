"""Joint training of the diffusion model and the classifier (paper Sec. 3.3)."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import Any

import torch
from diffusers.utils import logging

from ..data.transforms import ImageTransform
from ..latents import encode_pixels, vae_scale_factor
from .checkpoints import module_tensors, optimizer_tensors, restore_module, restore_optimizer
from .components import build_noise_scheduler, build_unet, load_vae
from .dry_run import describe_joint_run
from .ema import EMAWeights, validation_weights
from .final_model import check_publishable, save_joint_pipeline
from .image_rows import stream_batches
from .interruption import explained_full_disk
from .joint_arguments import check_joint_arguments
from .label_balance import BalancedIndexStream, resolve_pos_weight, warn_about_missing_labels
from .latent_statistics import measure_latent_std
from .learning_rate import lr_factor, set_learning_rate
from .loss_weights import min_snr_weights
from .objectives import (
    DiffusionBatch,
    JointObjective,
    LabelledBatch,
    classification_is_due,
    classification_steps_before,
    count_known,
)
from .optimizer import build_adamw, count_parameters, joint_parameter_groups
from .pseudo_labels import confident_labels, num_pseudo_terms
from .randomness import keyed_generator, keyed_seed, seed_step
from .run import TrainingRun, check_output_folder
from .sample_grids import sample_images, save_image_grid
from .streams import IndexStream, slice_bounds
from .training_data import TrainingData, load_training_data, num_workers, train_transform
from .validation import ValidationResult, validate


logger = logging.get_logger(__name__)


class JointTrainer:
    """Trains a [`JointUNet2DModel`] from the arguments of `train_joint.py`.

    Args:
        args: the parsed command line (`joint_parser`).

    Raises:
        ValueError: for arguments, data or models that do not fit together; nothing is written before that.
    """

    def __init__(self, args: argparse.Namespace):
        check_joint_arguments(args)
        check_output_folder(args)
        self.args = args
        self.data: TrainingData = load_training_data(
            args, args.labelled_split, needs_labels=args.classifier_loss_weight > 0
        )
        info = self.data.info
        if args.push_to_hub:
            check_publishable(info)
        labels = self.data.labels[self.data.labelled_indices]
        if args.classifier_loss_weight > 0:
            warn_about_missing_labels(labels, info.label_names)
        self.pos_weight = resolve_pos_weight(args.pos_weight, labels, info.problem_type)
        self.transform = train_transform(args, info.channels)
        self.plain_transform = ImageTransform(args.resolution, info.channels)
        self.vae = load_vae(args, info)
        self.noise_scheduler = build_noise_scheduler(args)
        torch.manual_seed(keyed_seed(args.seed, "initial weights"))
        self.unet = build_unet(args, info, self.vae.config.latent_channels, vae_scale_factor(self.vae))
        if args.gradient_checkpointing:
            self.unet.enable_gradient_checkpointing()

    def facts(self) -> dict[str, Any]:
        """What describes the run beside its arguments: data, labelled split, sizes."""
        head = count_parameters(self.unet.classifier)
        split, data = self.data.split, self.data
        return {
            "dataset": {"name": data.info.name, "source": data.info.source, "licence": data.info.licence},
            "labelled_split": None
            if split is None
            else {"hash": split.hash, "share": split.share, "by": split.by, "seed": split.seed},
            "num_train_images": len(data.train_indices),
            "num_labelled_images": len(data.labelled_indices),
            "num_validation_images": len(data.validation_indices),
            "num_unet_parameters": count_parameters(self.unet) - head,
            "num_classifier_parameters": head,
            "num_classifier_features": self.unet.num_classifier_features,
            "num_classification_steps": self._classification_steps_before(self.args.max_train_steps),
            "latent_shape": [self.unet.config.in_channels, *self._latent_size()],
        }

    def train(self) -> None:
        """Run the training, or what is left of it, and save the final pipeline."""
        args = self.args
        run = self.run = TrainingRun(args)
        device = run.accelerator.device
        self.vae.to(device)
        self._scale_latents()

        self.unet.to(device=device, memory_format=torch.channels_last)
        head_rate = args.learning_rate if args.classifier_learning_rate is None else args.classifier_learning_rate
        self.optimizer = build_adamw(
            joint_parameter_groups(self.unet, args.learning_rate, head_rate),
            betas=(args.adam_beta1, args.adam_beta2),
            weight_decay=args.adam_weight_decay,
            eps=args.adam_epsilon,
        )
        self.ema = EMAWeights(self.unet, args.ema_decay) if args.use_ema else None
        self._resume()
        run.begin(self.facts())
        objective = JointObjective(
            self.unet,
            self.noise_scheduler,
            args.classifier_loss_weight,
            args.diffusion_loss_weight,
            args.pseudo_label_weight,
            self.pos_weight,
        )
        objective, optimizer = run.accelerator.prepare(objective, self.optimizer)
        objective.train()
        train_images, labelled_images = self._image_streams()
        restart = args.classifier_start_step if args.lr_restart_at_classifier_start else None

        for step in run.steps():
            factor = lr_factor(step, args.lr_scheduler, args.lr_warmup_steps, args.max_train_steps, restart)
            set_learning_rate(optimizer, factor)
            if step == restart and self.ema is not None:
                self.ema.restart_warmup()
            has_diffusion, has_classification = self._losses_of(step)
            has_pseudo_labels = has_classification and self._is_pseudo_labelled(step)
            losses: dict[str, torch.Tensor] = {}
            for part in range(run.num_parts):
                with run.waiting_for_data():
                    images = next(train_images) if has_diffusion else None
                    labelled = next(labelled_images) if has_classification else None
                with run.accelerator.accumulate(objective):
                    # 1. Clean latents, noise and timesteps of this process's slice.
                    diffusion_batch = None if images is None else self._diffusion_batch(images, step, part)
                    labelled_batch = None if labelled is None else self._labelled_batch(labelled, step, part)
                    pseudo_batch = None
                    if has_pseudo_labels and diffusion_batch is not None:
                        pseudo_batch = self._pseudo_labelled_batch(diffusion_batch.latents, step, part)
                    # 2. L_diff + w * L_class. Each slice is a sum over the global count, while accelerate and
                    #    DDP average over accumulation parts and processes.
                    seed_step(args.seed, "dropout", step, part, run.accelerator.process_index)
                    output = objective(diffusion_batch, labelled_batch, pseudo_batch)
                    run.accelerator.backward(output["loss"] * (run.num_parts * run.num_processes))
                    # 3. One optimizer step, after the last part.
                    if run.accelerator.sync_gradients:
                        run.accelerator.clip_grad_norm_(objective.parameters(), args.max_grad_norm)
                    optimizer.step()
                    optimizer.zero_grad()
                for name, value in output.items():
                    losses[name] = losses.get(name, torch.zeros_like(value)) + value.detach()
            if self.ema is not None:
                self.ema.step()

            done = step + 1
            num_images = args.train_batch_size * has_diffusion + args.labelled_batch_size * has_classification
            rates = {"learning_rate": args.learning_rate * factor, "classifier_learning_rate": head_rate * factor}
            run.record_losses(run.sum_over_processes(losses), step, num_images, rates)
            with run.outside_training():
                result = self._validate(done) if run.is_due(done, args.validation_steps) else None
                if run.is_due(done, args.sample_steps or args.validation_steps):
                    self._save_samples(done)
                if run.checkpoint_is_due(done):
                    self._save_checkpoint(done)

        if run.first_step >= args.max_train_steps:  # resumed from the last checkpoint
            result = self._validate(run.first_step, log=False)
        if run.is_main:
            with validation_weights(self.unet, self.ema):
                save_joint_pipeline(run, self.unet, self.vae, self.noise_scheduler, self.data, result)
        run.finish()

    def _scale_latents(self) -> None:
        """Measure the latents' standard deviation; a latent made here is scaled to 1."""
        std = measure_latent_std(self.vae, self.data.rows, self.plain_transform)
        if self.args.vae is not None:
            self.vae.register_to_config(scaling_factor=self.vae.config.scaling_factor / std)
        elif not 0.5 < std < 2:
            logger.warning(
                f"The scaled latents have standard deviation {std:.3f}, but the noise schedule expects about 1. Set "
                f"`scaling_factor` in the autoencoder's config to {self.vae.config.scaling_factor / std:.5f}."
            )

    def _losses_of(self, step: int) -> tuple[bool, bool]:
        """Whether a step has a diffusion loss, and whether it has a classification loss."""
        args = self.args
        due = classification_is_due(
            step, args.classifier_start_step, args.classifier_every, args.classifier_loss_weight
        )
        return args.diffusion_loss_weight > 0, due

    def _is_pseudo_labelled(self, step: int) -> bool:
        """Whether the teacher labels the diffusion stream's images on a step that has a classification loss."""
        start_step = self.args.pseudo_label_start_step
        return start_step is not None and step >= start_step

    def _classification_steps_before(self, step: int) -> int:
        args = self.args
        if args.classifier_loss_weight == 0:
            return 0
        return classification_steps_before(step, args.classifier_start_step, args.classifier_every)

    def _latent_size(self) -> tuple[int, int]:
        size = self.unet.config.sample_size
        return (size, size) if isinstance(size, int) else tuple(size)

    def _image_streams(self) -> tuple[Iterator[torch.Tensor], Iterator[torch.Tensor]]:
        """The two streams' images, entered at the first step that is left."""
        args, run, data = self.args, self.run, self.data
        self.train_stream = IndexStream(data.train_indices, args.train_batch_size, args.seed, "diffusion")
        places = (run.accelerator.process_index, run.num_processes, run.num_parts)
        options = {
            "num_workers": num_workers(args, data.rows),
            "pin_memory": run.accelerator.device.type == "cuda",
        }
        train_images = stream_batches(data.rows, self.transform, self.train_stream, run.first_step, *places, **options)
        if args.classifier_loss_weight == 0:
            return train_images, iter(())
        self.labelled_stream = self._labelled_stream()
        first = self._classification_steps_before(run.first_step)
        return train_images, stream_batches(data.rows, self.transform, self.labelled_stream, first, *places, **options)

    def _labelled_stream(self) -> IndexStream:
        """The labelled images, as often as they are or every class equally often."""
        args, rows = self.args, self.data.labelled_indices
        if args.balanced_labelled_sampling:
            return BalancedIndexStream(rows, self.data.labels[rows], args.labelled_batch_size, args.seed, "labelled")
        return IndexStream(rows, args.labelled_batch_size, args.seed, "labelled")

    def _slice_of(self, length: int, part: int) -> slice:
        """This process's slice of a global batch."""
        run = self.run
        place = part * run.num_processes + run.accelerator.process_index
        return slice(*slice_bounds(length, place, run.num_processes * run.num_parts))

    @torch.no_grad()
    def _encode(self, images: torch.Tensor) -> torch.Tensor:
        latents = encode_pixels(self.vae, images.to(self.vae.device)).float()
        return latents.contiguous(memory_format=torch.channels_last)

    def _diffusion_batch(self, images: torch.Tensor, step: int, part: int) -> DiffusionBatch:
        """Noise and timesteps are drawn for the global batch, so that the number of processes changes nothing."""
        args = self.args
        latents = self._encode(images)
        generator = keyed_generator(args.seed, "diffusion noise", step)
        timesteps = torch.randint(0, args.num_train_timesteps, (args.train_batch_size,), generator=generator)
        noise = torch.randn((args.train_batch_size, *latents.shape[1:]), generator=generator)
        own = self._slice_of(args.train_batch_size, part)
        timesteps = timesteps[own].to(latents.device)
        return DiffusionBatch(
            latents=latents,
            noise=noise[own].to(latents.device).contiguous(memory_format=torch.channels_last),
            timesteps=timesteps,
            num_images=args.train_batch_size,
            weights=args.snr_gamma and min_snr_weights(self.noise_scheduler, timesteps, args.snr_gamma),
        )

    def _labelled_batch(self, images: torch.Tensor, step: int, part: int) -> LabelledBatch:
        """Clean latents at t = 0, except for a share that is noised to a random t."""
        args = self.args
        stream_step = self._classification_steps_before(step)
        indices = [item.row for item in self.labelled_stream.batch(stream_step)]
        labels = torch.from_numpy(self.data.labels[indices])
        num_known = count_known(labels, self.data.info.problem_type)
        own = self._slice_of(args.labelled_batch_size, part)
        labels = labels[own]
        if len(labels) == 0:  # more processes than labelled images: one image that counts for nothing
            images = torch.zeros(1, self.data.info.channels, args.resolution, args.resolution)
            labels = torch.full((1, labels.shape[1]), torch.nan)
            own = slice(0, 1)
        latents = self._encode(images)
        latents, timesteps = self._noise_some(latents, args.labelled_batch_size, own, "classifier noise", step)
        return LabelledBatch(latents, timesteps, labels.to(latents.device), num_known)

    def _pseudo_labelled_batch(self, latents: torch.Tensor, step: int, part: int) -> LabelledBatch:
        """The diffusion stream's images, labelled by the averaged model where it is sure of the clean latents."""
        args, problem_type = self.args, self.data.info.problem_type
        with torch.no_grad(), validation_weights(self.unet, self.ema) as teacher, self.run.accelerator.autocast():
            logits = teacher(latents, 0, return_sample=False).logits
        labels = confident_labels(logits, args.pseudo_label_threshold, problem_type)
        size = args.train_batch_size
        own = self._slice_of(size, part)
        latents, timesteps = self._noise_some(latents, size, own, "pseudo-label noise", step)
        return LabelledBatch(latents, timesteps, labels, num_pseudo_terms(size, labels.shape[1], problem_type))

    def _noise_some(
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

    def _validate(self, done: int, log: bool = True) -> ValidationResult | None:
        if len(self.data.validation_indices) == 0:
            return None
        with validation_weights(self.unet, self.ema) as unet:
            result = validate(self.run, unet, self.vae, self.noise_scheduler, self.data, self.plain_transform)
        if log:
            self.run.log(result.record(done))
            if result.macro_auroc is not None:
                self.run.say(f"step {done}: validation macro AUROC {result.macro_auroc:.3f}")
        return result

    def _save_samples(self, done: int) -> None:
        if not self.run.is_main or self.args.diffusion_loss_weight == 0:
            return
        with validation_weights(self.unet, self.ema) as unet:
            images = sample_images(
                unet,
                self.vae,
                self.noise_scheduler,
                self.args.num_sample_images,
                self.args.sample_inference_steps,
                self.args.seed,
            )
        save_image_grid(images, self.run.output_dir / "samples" / f"step-{done:07d}.png")

    def _save_checkpoint(self, done: int) -> None:
        tensors = {
            "unet": module_tensors(self.unet),
            "optimizer": optimizer_tensors(self.optimizer, self.unet),
        }
        state: dict[str, Any] = {}
        if self.ema is not None:
            tensors["ema"] = self.ema.state_tensors()
            state["ema"] = self.ema.state_scalars()
        self.run.save(done, tensors, state)

    def _resume(self) -> None:
        checkpoint = self.run.checkpoint
        if checkpoint is None:
            return
        restore_module(self.unet, checkpoint.tensors["unet"], checkpoint.path)
        restore_optimizer(self.optimizer, self.unet, checkpoint.tensors["optimizer"])
        if self.ema is not None and "ema" in checkpoint.tensors:
            self.ema.load_state(checkpoint.tensors["ema"], checkpoint.state["ema"])
        self.run.checkpoint = None  # its tensors are no longer needed


def train_joint(args: argparse.Namespace) -> None:
    """Train as the arguments of `train_joint.py` say, or print what would be trained (`--dry_run`)."""
    if args.dry_run:
        check_joint_arguments(args)
        print(json.dumps(describe_joint_run(args), indent=2))
    else:
        with explained_full_disk(args.output_dir):
            JointTrainer(args).train()
