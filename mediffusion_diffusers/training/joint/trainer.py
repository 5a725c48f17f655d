"""Joint training of the diffusion model and the classifier (paper Sec. 3.3)."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import logging

from ...data.transforms import ImageTransform
from ...latents import vae_scale_factor
from ..data.label_balance import resolve_pos_weight, warn_about_missing_labels
from ..data.latent_cache import LatentCache
from ..data.latent_statistics import measure_latent_std
from ..data.training_data import TrainingData, load_training_data
from ..dry_run import describe_joint_run
from ..run.checkpoints import module_tensors, optimizer_tensors, restore_module, restore_optimizer
from ..run.ema import EMAWeights, validation_weights
from ..run.interruption import explained_full_disk
from ..run.learning_rate import lr_factor, set_learning_rate
from ..run.optimizer import build_adamw, count_parameters, joint_parameter_groups
from ..run.randomness import keyed_seed, seed_step
from ..run.run import TrainingRun, check_output_folder
from .arguments import check_joint_arguments
from .batches import JointBatches, open_latent_caches
from .components import build_noise_scheduler, build_unet, load_vae
from .final_model import check_publishable, save_joint_pipeline, write_joint_pipeline
from .objectives import (
    JointObjective,
    LabelledBatch,
    classification_is_due,
    classification_steps_before,
)
from .pseudo_labels import confident_labels, num_pseudo_terms
from .sample_grids import sample_images, save_image_grid
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
        self.plain_transform = ImageTransform(args.resolution, info.channels)
        self.vae = load_vae(args, info)
        self.noise_scheduler = build_noise_scheduler(args)
        self.last_validation: ValidationResult | None = None
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
        train_cache = self._prepare_latents()

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
            args.share_forward,
            args.compile,
        )
        objective, optimizer = run.accelerator.prepare(objective, self.optimizer)
        objective.train()
        self.batches = JointBatches(args, run, self.data, self.vae, self.noise_scheduler, train_cache)
        train_images, labelled_images = self.batches.streams()
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
                    diffusion_batch = None if images is None else self.batches.diffusion(images, step, part)
                    labelled_batch = None if labelled is None else self.batches.labelled(labelled, step, part)
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
                if run.is_due(done, args.validation_steps):
                    self._validate(done)
                if run.is_due(done, args.sample_steps or args.validation_steps):
                    self._save_samples(done)
                if run.checkpoint_is_due(done):
                    self._save_checkpoint(done)

        if run.first_step >= args.max_train_steps:  # resumed from the last checkpoint
            self._validate(run.first_step, log=False)
        if run.is_main:
            with validation_weights(self.unet, self.ema):
                save_joint_pipeline(run, self.unet, self.vae, self.noise_scheduler, self.data, self.last_validation)
        run.finish()

    def _prepare_latents(self) -> LatentCache | None:
        """Scale a latent that is made here to 1, cache what is to be cached, check the scale of an autoencoder's."""
        args, rows = self.args, self.data.rows
        if args.vae is not None:
            std = measure_latent_std(self.vae, rows, self.plain_transform)
            self.vae.register_to_config(scaling_factor=self.vae.config.scaling_factor / std)
        train_cache, self.validation_cache = open_latent_caches(args, self.data, self.vae)
        if args.vae is not None:
            return train_cache
        std = measure_latent_std(self.vae, rows, self.plain_transform) if train_cache is None else train_cache.std()
        if not 0.5 < std < 2:
            logger.warning(
                f"The scaled latents have standard deviation {std:.3f}, but the noise schedule expects about 1. Set "
                f"`scaling_factor` in the autoencoder's config to {self.vae.config.scaling_factor / std:.5f}."
            )
        return train_cache

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

    def _pseudo_labelled_batch(self, latents: torch.Tensor, step: int, part: int) -> LabelledBatch:
        """The diffusion stream's images, labelled by the averaged model where it is sure of the clean latents."""
        args, problem_type = self.args, self.data.info.problem_type
        with torch.no_grad(), validation_weights(self.unet, self.ema) as teacher, self.run.accelerator.autocast():
            logits = teacher(latents, 0, return_sample=False).logits
        labels = confident_labels(logits, args.pseudo_label_threshold, problem_type)
        size = args.train_batch_size
        own = self.batches.slice_of(size, part)
        latents, timesteps = self.batches.noise_some(latents, size, own, "pseudo-label noise", step)
        return LabelledBatch(latents, timesteps, labels, num_pseudo_terms(size, labels.shape[1], problem_type))

    def _validate(self, done: int, log: bool = True) -> ValidationResult | None:
        if len(self.data.validation_indices) == 0:
            return None
        with validation_weights(self.unet, self.ema) as unet:
            result = validate(
                *(self.run, unet, self.vae, self.noise_scheduler, self.data, self.plain_transform),
                self.validation_cache,
            )
        self.last_validation = result
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
        self.run.save(done, tensors, state, self._write_pipeline)

    def _write_pipeline(self, folder: Path) -> None:
        with validation_weights(self.unet, self.ema):
            write_joint_pipeline(
                self.run, self.unet, self.vae, self.noise_scheduler, self.data, self.last_validation, folder
            )

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
