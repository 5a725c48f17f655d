"""Training of the autoencoder (paper App. C)."""

from __future__ import annotations

import argparse
import json
from typing import Any

import torch
from diffusers import AutoencoderKL

from ..data.transforms import ImageTransform
from ..image_processor import denormalize
from .arguments import public_arguments
from .autoencoder_arguments import check_autoencoder_arguments
from .autoencoder_objective import AutoencoderObjective, PerceptualLoss
from .checkpoints import module_tensors, optimizer_tensors, restore_module, restore_optimizer
from .ema import EMAWeights, validation_weights
from .image_rows import stream_batches
from .interruption import explained_full_disk
from .latent_statistics import measure_latent_std
from .learning_rate import lr_factor, set_learning_rate
from .optimizer import build_adamw, count_parameters
from .randomness import keyed_generator, keyed_seed, seed_step
from .run import TrainingRun, check_output_folder, publish_folder
from .sample_grids import save_image_grid
from .streams import IndexStream, slice_bounds
from .training_data import TrainingData, load_training_data, num_workers, train_transform


class AutoencoderTrainer:
    """Trains an `AutoencoderKL` from the arguments of `train_autoencoder.py`.

    Args:
        args: the parsed command line (`autoencoder_parser`).
        perceptual_loss: see [`AutoencoderObjective`].

    Raises:
        ValueError: for arguments or data that do not fit together; nothing is written before that.
    """

    def __init__(self, args: argparse.Namespace, perceptual_loss: PerceptualLoss | None = None):
        check_autoencoder_arguments(args)
        check_output_folder(args)
        self.args = args
        self.data: TrainingData = load_training_data(args, needs_labels=False)
        channels = self.data.info.channels
        self.transform = train_transform(args, channels)
        self.plain_transform = ImageTransform(args.resolution, channels)
        torch.manual_seed(keyed_seed(args.seed, "initial weights"))
        num_levels = len(args.block_out_channels)
        self.vae = AutoencoderKL(
            in_channels=channels,
            out_channels=channels,
            down_block_types=("DownEncoderBlock2D",) * num_levels,
            up_block_types=("UpDecoderBlock2D",) * num_levels,
            block_out_channels=tuple(args.block_out_channels),
            layers_per_block=args.layers_per_block,
            latent_channels=args.latent_channels,
            norm_num_groups=args.norm_num_groups,
            sample_size=args.resolution,
            scaling_factor=1.0,
        )
        if args.gradient_checkpointing:
            self.vae.enable_gradient_checkpointing()
        self.objective = AutoencoderObjective(self.vae, args.kl_weight, perceptual_loss)
        size = args.resolution // 2 ** (num_levels - 1)
        self.latent_shape = (args.latent_channels, size, size)

    def facts(self) -> dict[str, Any]:
        """What describes the run beside its arguments."""
        info = self.data.info
        return {
            "dataset": {"name": info.name, "source": info.source, "licence": info.licence},
            "num_train_images": len(self.data.train_indices),
            "num_validation_images": len(self.data.validation_indices),
            "num_vae_parameters": count_parameters(self.vae),
            "latent_shape": list(self.latent_shape),
        }

    def train(self) -> None:
        """Run the training, or what is left of it, and save the autoencoder."""
        args = self.args
        run = self.run = TrainingRun(args)
        self.objective.to(run.accelerator.device)
        self.vae.to(memory_format=torch.channels_last)
        group = {"params": list(self.objective.parameters()), "lr": args.learning_rate}
        self.optimizer = build_adamw(
            [{**group, "initial_lr": args.learning_rate}],
            betas=(args.adam_beta1, args.adam_beta2),
            weight_decay=args.adam_weight_decay,
            eps=args.adam_epsilon,
        )
        self.ema = EMAWeights(self.vae, args.ema_decay) if args.use_ema else None
        self._resume()
        run.begin(self.facts())
        objective, optimizer = run.accelerator.prepare(self.objective, self.optimizer)
        objective.train()
        stream = IndexStream(self.data.train_indices, args.train_batch_size, args.seed, "autoencoder")
        batches = stream_batches(
            self.data.rows,
            self.transform,
            stream,
            run.first_step,
            run.accelerator.process_index,
            run.num_processes,
            run.num_parts,
            num_workers=num_workers(args, self.data.rows),
            pin_memory=run.accelerator.device.type == "cuda",
        )

        for step in run.steps():
            factor = lr_factor(step, args.lr_scheduler, args.lr_warmup_steps, args.max_train_steps)
            set_learning_rate(optimizer, factor)
            losses: dict[str, torch.Tensor] = {}
            for part in range(run.num_parts):
                with run.waiting_for_data():
                    images = next(batches)
                with run.accelerator.accumulate(objective):
                    images = images.to(run.accelerator.device).contiguous(memory_format=torch.channels_last)
                    seed_step(args.seed, "dropout", step, part, run.accelerator.process_index)
                    output = objective(images, self._noise(step, part).to(images), args.train_batch_size)
                    # Each slice is a sum over the global batch; accelerate and DDP average over parts and processes.
                    run.accelerator.backward(output["loss"] * (run.num_parts * run.num_processes))
                    if run.accelerator.sync_gradients:
                        run.accelerator.clip_grad_norm_(objective.parameters(), args.max_grad_norm)
                    optimizer.step()
                    optimizer.zero_grad()
                for name, value in output.items():
                    losses[name] = losses.get(name, torch.zeros_like(value)) + value.detach()
            if self.ema is not None:
                self.ema.step()

            done = step + 1
            rates = {"learning_rate": args.learning_rate * factor, "log_variance": self.objective.log_variance.item()}
            run.record_losses(run.sum_over_processes(losses), step, args.train_batch_size, rates)
            with run.outside_training():
                if run.is_due(done, args.validation_steps):
                    self._validate(done)
                if run.checkpoint_is_due(done):
                    self._save_checkpoint(done)

        if run.is_main:
            self._save_autoencoder()
        run.finish()

    def _noise(self, step: int, part: int) -> torch.Tensor:
        """This process's slice of the noise of the global batch."""
        run, size = self.run, self.args.train_batch_size
        generator = keyed_generator(self.args.seed, "posterior noise", step)
        place = part * run.num_processes + run.accelerator.process_index
        start, stop = slice_bounds(size, place, run.num_processes * run.num_parts)
        return torch.randn((size, *self.latent_shape), generator=generator)[start:stop]

    @torch.no_grad()
    def _validate(self, done: int) -> None:
        """L1 and PSNR of the posterior's mode on the validation images, and a panel of some of them."""
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
                error = denormalize(images) - denormalize(reconstructions)
                l1 = error.abs().flatten(1).mean(dim=1)
                psnr = -10 * error.square().flatten(1).mean(dim=1).clamp_min(1e-10).log10()
                chunks.append((number, torch.stack([l1, psnr]).double().cpu()))
                if number == 0:
                    self._save_panel(images, reconstructions, done)
        measures = torch.cat(run.gather_chunks(chunks), dim=1).mean(dim=1).tolist()
        run.log({"kind": "validation", "step": done, "l1": measures[0], "psnr": measures[1]})
        run.say(f"step {done}: validation L1 {measures[0]:.4f}, PSNR {measures[1]:.2f} dB")

    def _save_panel(self, images: torch.Tensor, reconstructions: torch.Tensor, done: int) -> None:
        """Originals above, reconstructions below."""
        count = min(self.args.num_panel_images, len(images))
        panel = torch.cat([images[:count], reconstructions[:count]]).float().clamp(-1, 1).cpu()
        path = self.run.output_dir / "samples" / f"step-{done:07d}.png"
        save_image_grid(panel, path, num_columns=count)

    def _save_autoencoder(self) -> None:
        """Save the averaged weights with `scaling_factor = 1 / std` of the training latents."""
        partial = self.run.output_dir / ".autoencoder.partial"
        with validation_weights(self.vae, self.ema) as vae:
            std = measure_latent_std(vae, self.data.rows, self.plain_transform)
            vae.register_to_config(scaling_factor=1.0 / max(std, 1e-6))
            vae.save_pretrained(partial)
        publish_folder(partial, self.run.output_dir)
        done = self.args.max_train_steps
        self.run.log({"kind": "latents", "step": done, "std": std, "scaling_factor": 1.0 / max(std, 1e-6)})
        self.run.say(f"Saved the autoencoder in {self.run.output_dir} (standard deviation of the latents {std:.4f}).")

    def _save_checkpoint(self, done: int) -> None:
        tensors = {
            "objective": module_tensors(self.objective),
            "optimizer": optimizer_tensors(self.optimizer, self.objective),
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
        restore_module(self.objective, checkpoint.tensors["objective"], checkpoint.path)
        restore_optimizer(self.optimizer, self.objective, checkpoint.tensors["optimizer"])
        if self.ema is not None and "ema" in checkpoint.tensors:
            self.ema.load_state(checkpoint.tensors["ema"], checkpoint.state["ema"])
        self.run.checkpoint = None


def train_autoencoder(args: argparse.Namespace) -> None:
    """Train as the arguments of `train_autoencoder.py` say, or print what would be trained (`--dry_run`)."""
    trainer = AutoencoderTrainer(args)
    if args.dry_run:
        print(json.dumps({"arguments": public_arguments(args), **trainer.facts()}, indent=2))
        return
    with explained_full_disk(args.output_dir):
        trainer.train()
