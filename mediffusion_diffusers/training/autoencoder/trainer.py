"""Training of the autoencoder (paper App. C)."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from ...data.transforms import ImageTransform
from ...image_processor import denormalize
from ...latents import vae_scale_factor
from ..data.image_rows import stream_batches
from ..data.latent_statistics import measure_latent_std
from ..data.streams import IndexStream, slice_bounds
from ..data.training_data import TrainingData, load_training_data, num_workers, train_transform
from ..dry_run import describe_autoencoder_run
from ..joint.final_model import check_publishable
from ..joint.sample_grids import save_image_grid
from ..run.checkpoints import module_tensors, optimizer_tensors, restore_module, restore_optimizer
from ..run.ema import EMAWeights, validation_weights
from ..run.interruption import explained_full_disk
from ..run.learning_rate import lr_factor, set_learning_rate
from ..run.optimizer import build_adamw, count_parameters
from ..run.randomness import keyed_generator, keyed_seed, seed_step
from ..run.run import TrainingRun, check_output_folder
from .adversarial import DiscriminatorObjective
from .arguments import check_autoencoder_arguments, has_discriminator
from .final_model import save_autoencoder
from .models import build_autoencoder
from .objective import AutoencoderObjective
from .patch_discriminator import PatchDiscriminator
from .perceptual_loss import load_perceptual_loss
from .reconstruction import QUALITY_MEASURES, reconstruction_quality


class AutoencoderTrainer:
    """Trains an `AutoencoderKL` from the arguments of `train_autoencoder.py`.

    Args:
        args: the parsed command line (`autoencoder_parser`).

    Raises:
        ValueError: for arguments or data that do not fit together; nothing is written before that.
    """

    def __init__(self, args: argparse.Namespace):
        check_autoencoder_arguments(args)
        check_output_folder(args)
        self.args = args
        self.data: TrainingData = load_training_data(args, needs_labels=False)
        info = self.data.info
        if args.push_to_hub:
            check_publishable(info)
        self.transform = train_transform(args, info.channels)
        self.plain_transform = ImageTransform(args.resolution, info.channels)
        torch.manual_seed(keyed_seed(args.seed, "initial weights"))
        self.vae = build_autoencoder(args, info.channels)
        if args.gradient_checkpointing:
            self.vae.enable_gradient_checkpointing()
        self.perceptual_loss = load_perceptual_loss(args.perceptual)
        self.discriminator: PatchDiscriminator | None = None
        if has_discriminator(args):
            torch.manual_seed(keyed_seed(args.seed, "initial weights of the discriminator"))
            self.discriminator = PatchDiscriminator(info.channels, args.disc_channels, args.disc_num_layers)
        size = args.resolution // vae_scale_factor(self.vae)
        self.latent_shape = (self.vae.config.latent_channels, size, size)

    def facts(self) -> dict[str, Any]:
        """What describes the run beside its arguments."""
        info = self.data.info
        return {
            "dataset": {"name": info.name, "source": info.source, "licence": info.licence},
            "num_train_images": len(self.data.train_indices),
            "num_validation_images": len(self.data.validation_indices),
            "num_vae_parameters": count_parameters(self.vae),
            "num_discriminator_parameters": 0 if self.discriminator is None else count_parameters(self.discriminator),
            "latent_shape": list(self.latent_shape),
        }

    def train(self) -> None:
        """Run the training, or what is left of it, and save the autoencoder."""
        args = self.args
        run = self.run = TrainingRun(args)
        device = run.accelerator.device
        self.vae.to(memory_format=torch.channels_last)
        if self.discriminator is not None:
            self.discriminator.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.objective = AutoencoderObjective(
            self.vae,
            args.kl_weight,
            None if self.perceptual_loss is None else self.perceptual_loss.to(device),
            args.perceptual_weight,
            self.discriminator,
            args.disc_weight,
            None if run.num_processes == 1 else partial(run.accelerator.reduce, reduction="sum"),
        ).to(device)
        self.optimizer = self._adamw(self.objective)
        self.discriminator_optimizer = None if self.discriminator is None else self._adamw(self.discriminator)
        self.ema = EMAWeights(self.vae, args.ema_decay) if args.use_ema else None
        self._resume()
        run.begin(self.facts())
        # The optimizers stay unwrapped: with fp16 both share one gradient scaler, which is updated once a step.
        objective = run.accelerator.prepare(self.objective)
        objective.train()
        models = [objective]
        if self.discriminator is not None:
            models.append(run.accelerator.prepare(DiscriminatorObjective(self.discriminator)))
        batches = self._image_stream()

        for step in run.steps():
            factor = lr_factor(step, args.lr_scheduler, args.lr_warmup_steps, args.max_train_steps)
            is_adversarial = self.discriminator is not None and step >= args.disc_start
            losses: dict[str, torch.Tensor] = {}
            for part in range(run.num_parts):
                with run.waiting_for_data():
                    images = next(batches)
                with run.accelerator.accumulate(*models):
                    # 1. The autoencoder against the frozen discriminator. Each slice is a sum over the global batch;
                    #    accelerate and DDP average over parts and processes.
                    images = images.to(device).contiguous(memory_format=torch.channels_last)
                    seed_step(args.seed, "dropout", step, part, run.accelerator.process_index)
                    output = objective(
                        images,
                        self._noise(step, part).to(images),
                        args.train_batch_size,
                        is_perceptual=step >= args.perceptual_start,
                        is_adversarial=is_adversarial,
                    )
                    run.accelerator.backward(output["loss"] * (run.num_parts * run.num_processes))
                    reconstructions = output.pop("reconstructions")
                    # 2. The discriminator against these reconstructions.
                    if is_adversarial:
                        judged = models[1](images, reconstructions, args.train_batch_size)
                        run.accelerator.backward(judged.pop("loss") * (run.num_parts * run.num_processes))
                        output.update(judged)
                for name, value in output.items():
                    losses[name] = losses.get(name, torch.zeros_like(value)) + value.detach()
            # 3. One step of both. Before `disc_start` the discriminator has no gradient and is left alone.
            self._step_optimizers(factor, is_adversarial)
            if self.ema is not None:
                self.ema.step()

            done = step + 1
            rates = {"learning_rate": args.learning_rate * factor, "log_variance": self.objective.log_variance.item()}
            run.record_losses(run.sum_over_processes(losses), step, args.train_batch_size, rates)
            with run.outside_training():
                if run.is_due(done, args.validation_steps) or (self.discriminator and done == args.disc_start):
                    self._validate(done)
                if run.checkpoint_is_due(done):
                    self._save_checkpoint(done)

        if run.is_main:
            self._save_autoencoder()
        run.finish()

    def _adamw(self, module: nn.Module) -> Optimizer:
        """The optimizer of the autoencoder or of the discriminator, with the same settings."""
        args = self.args
        group = {
            "params": list(module.parameters()),
            "lr": args.learning_rate,
            "initial_lr": args.learning_rate,
        }
        betas = (args.adam_beta1, args.adam_beta2)
        return build_adamw([group], betas=betas, weight_decay=args.adam_weight_decay, eps=args.adam_epsilon)

    def _image_stream(self) -> Iterator[torch.Tensor]:
        """The training images, entered at the first step that is left."""
        args, run, rows = self.args, self.run, self.data.rows
        return stream_batches(
            rows,
            self.transform,
            IndexStream(self.data.train_indices, args.train_batch_size, args.seed, "autoencoder"),
            run.first_step,
            run.accelerator.process_index,
            run.num_processes,
            run.num_parts,
            num_workers=num_workers(args, rows),
            pin_memory=run.accelerator.device.type == "cuda",
        )

    def _step_optimizers(self, factor: float, is_adversarial: bool) -> None:
        """Clip and apply the gradients of the autoencoder and, once it takes part, of the discriminator."""
        pairs: list[tuple[Optimizer, nn.Module]] = [(self.optimizer, self.objective)]
        if is_adversarial and self.discriminator is not None and self.discriminator_optimizer is not None:
            pairs.append((self.discriminator_optimizer, self.discriminator))
        scaler = self.run.accelerator.scaler
        for optimizer, module in pairs:
            set_learning_rate(optimizer, factor)
            if scaler is not None:
                scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(module.parameters(), self.args.max_grad_norm)
            if scaler is not None:
                scaler.step(optimizer)
            else:
                optimizer.step()
            optimizer.zero_grad()
        if scaler is not None:
            scaler.update()

    def _noise(self, step: int, part: int) -> torch.Tensor:
        """This process's slice of the noise of the global batch."""
        run, size = self.run, self.args.train_batch_size
        generator = keyed_generator(self.args.seed, "posterior noise", step)
        place = part * run.num_processes + run.accelerator.process_index
        start, stop = slice_bounds(size, place, run.num_processes * run.num_parts)
        return torch.randn((size, *self.latent_shape), generator=generator)[start:stop]

    @torch.no_grad()
    def _validate(self, done: int) -> None:
        """L1, PSNR and SSIM of the posterior's mode on the validation images, and a panel of some of them."""
        data, run = self.data, self.run
        if data.validation_rows is None or len(data.validation_indices) == 0:
            return
        size = self.args.validation_batch_size
        chunks = []
        with validation_weights(self.vae, self.ema) as vae:
            for number, start in enumerate(range(0, len(data.validation_indices), size)):
                if number % run.num_processes != run.accelerator.process_index:
                    continue
                indices = data.validation_indices[start : start + size]
                images = data.validation_rows.batch(indices, self.plain_transform).to(vae.device)
                reconstructions = vae.decode(vae.encode(images).latent_dist.mode()).sample.float()
                quality = reconstruction_quality(denormalize(images), denormalize(reconstructions))
                chunks.append((number, torch.stack(list(quality.values())).double().cpu()))
                if number == 0:
                    self._save_panel(images, reconstructions, done)
        means = torch.cat(run.gather_chunks(chunks), dim=1).mean(dim=1).tolist()
        measures = dict(zip(QUALITY_MEASURES, means, strict=True))
        is_adversarial = self.discriminator is not None and done > self.args.disc_start
        run.log({"kind": "validation", "step": done, **measures, "adversarial": is_adversarial})
        run.say(
            f"step {done}: validation L1 {measures['l1']:.4f}, PSNR {measures['psnr']:.2f} dB, "
            f"SSIM {measures['ssim']:.3f}"
        )

    def _save_panel(self, images: torch.Tensor, reconstructions: torch.Tensor, done: int) -> None:
        """Originals above, reconstructions below."""
        count = min(self.args.num_panel_images, len(images))
        panel = torch.cat([images[:count], reconstructions[:count]]).float().clamp(-1, 1).cpu()
        path = self.run.output_dir / "samples" / f"step-{done:07d}.png"
        save_image_grid(panel, path, num_columns=count)

    def _save_autoencoder(self) -> None:
        """Save the averaged weights with `scaling_factor = 1 / std` of the training latents, and publish them."""
        run, done = self.run, self.args.max_train_steps
        with validation_weights(self.vae, self.ema) as vae:
            vae.register_to_config(scaling_factor=1.0)
            std = measure_latent_std(vae, self.data.rows, self.plain_transform)
            vae.register_to_config(scaling_factor=1.0 / max(std, 1e-6))
            if run.first_step < done:
                run.log({"kind": "latents", "step": done, "std": std, "scaling_factor": vae.config.scaling_factor})
            save_autoencoder(run, vae, self.data.info)

    def _save_checkpoint(self, done: int) -> None:
        tensors = {
            "objective": module_tensors(self.objective),
            "optimizer": optimizer_tensors(self.optimizer, self.objective),
        }
        if self.discriminator is not None and self.discriminator_optimizer is not None:
            tensors["discriminator"] = module_tensors(self.discriminator)
            tensors["discriminator_optimizer"] = optimizer_tensors(self.discriminator_optimizer, self.discriminator)
        state: dict[str, Any] = {}
        if self.ema is not None:
            tensors["ema"] = self.ema.state_tensors()
            state["ema"] = self.ema.state_scalars()
        self.run.save(done, tensors, state)

    def _resume(self) -> None:
        checkpoint = self.run.checkpoint
        if checkpoint is None:
            return
        restore_module(self.objective, checkpoint.tensors["objective"], checkpoint.path)
        restore_optimizer(self.optimizer, self.objective, checkpoint.tensors["optimizer"])
        if self.ema is not None and "ema" in checkpoint.tensors:
            self.ema.load_state(checkpoint.tensors["ema"], checkpoint.state["ema"])
        if self.discriminator is not None and self.discriminator_optimizer is not None:
            # A run that was to end before `disc_start` stored none; it would have been the initial one.
            if "discriminator" in checkpoint.tensors:
                optimizer_state = checkpoint.tensors["discriminator_optimizer"]
                restore_module(self.discriminator, checkpoint.tensors["discriminator"], checkpoint.path)
                restore_optimizer(self.discriminator_optimizer, self.discriminator, optimizer_state)
            elif checkpoint.step > self.args.disc_start:
                raise ValueError(
                    f"Checkpoint {checkpoint.path} holds no discriminator, but `disc_start={self.args.disc_start}` is "
                    f"over. Set `disc_start` to {checkpoint.step} or later."
                )
        self.run.checkpoint = None


def train_autoencoder(args: argparse.Namespace) -> None:
    """Train as the arguments of `train_autoencoder.py` say, or print what would be trained (`--dry_run`)."""
    if args.dry_run:
        check_autoencoder_arguments(args)
        print(json.dumps(describe_autoencoder_run(args), indent=2))
        return
    with explained_full_disk(args.output_dir):
        AutoencoderTrainer(args).train()
