"""Joint training of the diffusion model and the classifier (paper Sec. 3.3), and what may follow it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.utils import logging

from ...data.transforms import ImageTransform
from ...device import memory_format_for
from ...latents import vae_scale_factor
from ...models import JointUNet2DModel
from ...models.classifier_head import hold_statistics
from ..data.label_balance import resolve_pos_weight, warn_about_missing_labels
from ..data.latent_cache import LatentCache
from ..data.latent_statistics import check_latent_std, measure_latent_std
from ..data.training_data import TrainingData, check_publishable, load_training_data
from ..loop import Task, Trained, TrainingLoop
from ..run.ema import EMAWeights, validation_weights
from ..run.image_grid import save_image_grid
from ..run.optimizer import build_adamw, count_parameters, joint_parameter_groups
from ..run.randomness import keyed_seed, seed_step
from ..run.run import TrainingRun, training_run
from ..stages import stage_at
from .batches import JointBatches, JointImages, open_latent_caches
from .components import build_noise_scheduler, build_unet, load_vae
from .config import JointConfig
from .consolidation import SOFT_ANSWERS, SoftAnswers, answer
from .dry_run import describe_joint_run
from .final_model import save_joint_pipeline, write_joint_pipeline
from .linear_probe import begin_with_linear_probe, check_head
from .objectives import JointObjective, LabelledBatch
from .pseudo_labels import confident_labels, num_pseudo_terms
from .sample_grids import sample_images
from .stages import JointStage, images_of_step, joint_stages
from .validation import ValidationResult, validate


logger = logging.get_logger(__name__)


def train_joint(config: JointConfig) -> None:
    """Train as a configuration says, or print what would be trained (`dry_run`).

    Raises:
        ValueError: for options, data or models that do not fit together.
    """
    config.check()
    if config.run.dry_run:
        print(json.dumps(describe_joint_run(config), indent=2))
        return
    with training_run(config, config.hub) as run:
        TrainingLoop(run, JointTask(config), config.optimizer).train()


class JointTask(Task):
    """Diffusion on every image, classification on the labelled ones, with one U-Net; a `Task` of the training loop.

    Args:
        config: all options, checked.

    Raises:
        ValueError: for data or models that do not fit together.
    """

    config: JointConfig

    def __init__(self, config: JointConfig):
        self.config = config
        self.soft_answers: SoftAnswers | None = None
        needs_labels = config.labels.classifier_loss_weight > 0
        self.data: TrainingData = load_training_data(
            config.data, config.run.seed, config.labels.labelled_split, needs_labels
        )
        info = self.data.info
        if config.hub.push_to_hub:
            check_publishable(info)
        labels = self.data.labels[self.data.labelled_indices]
        if needs_labels:
            warn_about_missing_labels(labels, info.label_names)
        self.pos_weight = resolve_pos_weight(config.semi_supervised.pos_weight, labels, info.problem_type)
        self.plain_transform = ImageTransform(config.data.image_size, info.channels)
        self.vae = load_vae(config.model, config.data.image_size, info)
        self.noise_scheduler = build_noise_scheduler(config.diffusion)
        self.last_validation: ValidationResult | None = None
        torch.manual_seed(keyed_seed(config.run.seed, "initial weights"))
        sample_size = config.data.image_size // vae_scale_factor(self.vae)
        self.unet = self.build_network(sample_size)
        if config.labels.linear_probe_first:
            check_head(self.unet)
        self.latent_shape = [self.vae.config.latent_channels, sample_size, sample_size]
        if config.run.gradient_checkpointing:
            self.unet.enable_gradient_checkpointing()

    def build_network(self, sample_size: int) -> JointUNet2DModel:
        """The joint U-Net for latents of `sample_size` per side."""
        config, channels = self.config, self.vae.config.latent_channels
        return build_unet(config.model, config.counterfactuals, self.data.info, channels, sample_size)

    def facts(self) -> dict[str, Any]:
        """Data, labelled split, sizes."""
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
            "num_classification_steps": self.config.labelled_steps_before(self.config.run.max_train_steps),
            "stages": [{"name": each.name, "first_step": each.first_step} for each in self.stages],
            "latent_shape": self.latent_shape,
        }

    def start(self, run: TrainingRun) -> None:
        """Encode or scale latents; U-Net, optimizer and average on the run's device."""
        self.run = run
        config, options = self.config, self.config.optimizer
        num_slices, size = run.num_processes * run.num_parts, config.labels.labelled_batch_size
        if config.model.classifier_norm_type is not None and size < 2 * num_slices:
            raise ValueError(
                f"`classifier_norm_type` takes statistics over the labelled images of each of the {num_slices} slices "
                f"of a step, so `labelled_batch_size` must be at least {2 * num_slices}, but got {size}."
            )
        self.vae.to(run.device)
        train_cache = self._prepare_latents()
        self.batch_maker = JointBatches(config, run, self.data, self.vae, self.noise_scheduler, train_cache)
        self.unet.to(device=run.device, memory_format=memory_format_for(run.device))  # type: ignore[call-overload]
        optimizer = build_adamw(
            joint_parameter_groups(self.unet, options.learning_rate, self._head_rate),
            betas=options.adam_betas,
            weight_decay=options.adam_weight_decay,
            eps=options.adam_epsilon,
        )
        objective = JointObjective(
            self.unet,
            self.noise_scheduler,
            config.labels.classifier_loss_weight,
            config.diffusion.diffusion_loss_weight,
            config.semi_supervised.pseudo_label_weight,
            config.consolidation.consolidation_loss_weight,
            None if self.pos_weight is None else run.to_device(self.pos_weight),
            config.speed.share_forward,
            config.speed.compile,
        )
        self.objective = objective  # accelerate wraps it in `trained`
        self.trained = [Trained("unet", self.unet, optimizer, objective)]
        self.ema: EMAWeights[JointUNet2DModel] | None = None
        if options.use_ema:
            self.ema = EMAWeights(self.unet, options.ema_decay)

    def batches(self) -> Iterator[JointImages]:
        """Images of all streams."""
        return self.batch_maker.images()

    @property
    def stages(self) -> Sequence[JointStage]:
        """Diffusion, both losses, consolidation, the decoder alone: those that are asked for."""
        return joint_stages(self.config)

    def begin_stage(self, stage: JointStage, step: int) -> None:
        """What the stage learns from; at its very beginning also the averaged weights and their answers."""
        self.objective.diffusion_loss_weight = stage.diffusion_loss_weight
        self.objective.trains_encoder = stage.trains_encoder
        if self.ema is not None:
            self.ema.set_decay(stage.ema_decay)
        if not stage.is_consolidating:
            self.soft_answers = None
        hold_statistics(self.unet.classifier, stage.holds_statistics)
        if step > stage.first_step:  # resumed inside
            return
        if self.ema is not None and stage.begins_averaged:
            self.ema.copy_to_model()
            self.trained[0].optimizer.state.clear()
        if self.ema is not None and stage.restarts_average:
            self.ema.restart_warmup()
        if stage.is_labelled and self.config.labels.linear_probe_first:
            begin_with_linear_probe(
                self.unet,
                lambda rows: self.batch_maker.clean_latents(rows, 0),
                np.sort(self.data.labelled_indices),
                self.data.labels,
                self.run.options.validation_batch_size,
            )
            if self.ema is not None:
                self.ema.begin_anew()
        if stage.is_consolidating:
            assert self.ema is not None
            self.soft_answers = answer(
                self.run,
                self.ema.averaged(),
                self.batch_maker.clean_latents,
                np.sort(self.data.train_indices),
                self.config.consolidation.consolidation_num_views,
            )

    def own_tensors(self) -> dict[str, dict[str, torch.Tensor]]:
        """The soft answers, while they are learned."""
        answers = self.soft_answers
        return {} if answers is None else {SOFT_ANSWERS: {"probabilities": answers.probabilities}}

    def restore_own(self, tensors: Mapping[str, dict[str, torch.Tensor]], step: int) -> None:
        """Take the soft answers back.

        Raises:
            ValueError: if they are needed and the checkpoint lacks them.
        """
        stage = stage_at(self.stages, step)
        if not stage.is_consolidating or step <= stage.first_step:
            return
        rows = np.sort(self.data.train_indices)
        if SOFT_ANSWERS not in tensors or len(tensors[SOFT_ANSWERS]["probabilities"]) != len(rows):
            raise ValueError(
                f"The checkpoint of step {step} holds no soft answers to these {len(rows)} images, but "
                f"`consolidation_start_step={stage.first_step}` is over. Set it to {step} or later."
            )
        self.soft_answers = SoftAnswers(rows, tensors[SOFT_ANSWERS]["probabilities"])

    def losses(self, batch: JointImages, step: int, part: int) -> dict[str, torch.Tensor]:
        """L_diff + w * L_class of this process's slice, differentiated."""
        batches = self.batch_maker
        # 1. Clean latents, noise and timesteps.
        diffusion = None if batch.diffusion is None else batches.diffusion(batch.diffusion, step, part)
        labelled = None if batch.labelled is None else batches.labelled(batch.labelled, step, part)
        answered = None
        if batch.answered is not None and self.soft_answers is not None:
            answered = batches.answered(batch.answered, step, part, self.soft_answers)
        pseudo_labelled = None
        if diffusion is not None and labelled is not None and self.config.semi_supervised.is_due(step):
            pseudo_labelled = self._pseudo_labelled_batch(diffusion.latents, step, part)
        # 2. Each slice is a sum over the global count.
        seed_step(self.config.run.seed, "dropout", step, part, self.run.accelerator.process_index)
        losses = self.trained[0].objective(diffusion, labelled, pseudo_labelled, answered)
        self.run.backward(losses["loss"])
        return losses

    def num_images(self, step: int) -> int:
        """Images of all streams."""
        return sum(images_of_step(self.config, stage_at(self.stages, step), step).values())

    def measures(self, factor: float) -> dict[str, float]:
        """The learning rates of trunk and head."""
        rate = self.config.optimizer.learning_rate
        return {"learning_rate": rate * factor, "classifier_learning_rate": self._head_rate * factor}

    def report_is_due(self, done: int) -> bool:
        """Whether to validate or draw samples."""
        return self.run.is_due(done, self.config.run.validation_steps) or self._samples_are_due(done)

    def report(self, done: int) -> None:
        """Validate and draw samples."""
        if self.run.is_due(done, self.config.run.validation_steps):
            result = self._validate()
            if result is not None:
                self.run.log(result.record(done))
                if result.macro_auroc is not None:
                    self.run.say(f"step {done}: {result.sentence()}")
        if self._samples_are_due(done):
            self._save_samples(done)

    def write_model(self, folder: Path) -> None:
        """Write the pipeline with its card."""
        with validation_weights(self.unet, self.ema) as unet:
            write_joint_pipeline(
                self.run, unet, self.vae, self.noise_scheduler, self.data, self.last_validation, folder
            )

    def finish(self) -> None:
        """Save the pipeline, and publish it if asked."""
        if self.run.first_step >= self.config.run.max_train_steps:  # resumed from the last checkpoint
            self._validate()
        if self.run.is_main:
            with validation_weights(self.unet, self.ema) as unet:
                save_joint_pipeline(self.run, unet, self.vae, self.noise_scheduler, self.data, self.last_validation)

    @property
    def _head_rate(self) -> float:
        """The learning rate of the head, which App. D gives one of its own."""
        rate = self.config.labels.classifier_learning_rate
        return self.config.optimizer.learning_rate if rate is None else rate

    def _samples_are_due(self, done: int) -> bool:
        options = self.config.diffusion
        return self.run.is_due(done, options.sample_steps or self.config.run.validation_steps)

    def _prepare_latents(self) -> LatentCache | None:
        """Scale a latent that is made here to 1, cache what is to be cached, check the scale of an autoencoder's."""
        rows, is_made_here = self.data.rows, self.config.model.vae is not None
        if is_made_here:
            std = check_latent_std(measure_latent_std(self.vae, rows, self.plain_transform))
            self.vae.register_to_config(scaling_factor=self.vae.config.scaling_factor / std)
        train_cache, self.validation_cache = open_latent_caches(self.config, self.data, self.vae)
        if is_made_here:
            return train_cache
        std = check_latent_std(
            measure_latent_std(self.vae, rows, self.plain_transform) if train_cache is None else train_cache.std()
        )
        if not 0.5 < std < 2:
            logger.warning(
                f"The scaled latents have standard deviation {std:.3f}, but the noise schedule expects about 1. Set "
                f"`scaling_factor` in the autoencoder's config to {self.vae.config.scaling_factor / std:.5f}."
            )
        return train_cache

    @torch.no_grad()
    def _pseudo_labelled_batch(self, latents: torch.Tensor, step: int, part: int) -> LabelledBatch:
        """The diffusion stream's images, labelled by the averaged model where it is sure of the clean latents."""
        assert self.ema is not None
        problem_type, threshold = self.data.info.problem_type, self.config.semi_supervised.pseudo_label_threshold
        with self.run.accelerator.autocast():
            logits = self.ema.averaged()(latents, 0, return_sample=False).logits
        labels = confident_labels(logits, threshold, problem_type)
        size = self.config.data.train_batch_size
        own = self.batch_maker.slice_of(size, part)
        latents, timesteps = self.batch_maker.noise_some(latents, size, own, "pseudo-label noise", step)
        return LabelledBatch(latents, timesteps, labels, num_pseudo_terms(size, labels.shape[1], problem_type))

    def _validate(self) -> ValidationResult | None:
        if len(self.data.validation_indices) == 0:
            return None
        with validation_weights(self.unet, self.ema) as unet:
            self.last_validation = validate(
                *(self.run, unet, self.vae, self.noise_scheduler, self.data, self.plain_transform),
                self.validation_cache,
            )
        return self.last_validation

    def _save_samples(self, done: int) -> None:
        options = self.config.diffusion
        if not self.run.is_main or options.diffusion_loss_weight == 0:
            return
        with validation_weights(self.unet, self.ema) as unet:
            images = sample_images(
                unet,
                self.vae,
                self.noise_scheduler,
                options.num_sample_images,
                options.sample_inference_steps,
                self.config.run.seed,
            )
        save_image_grid(images, self.run.output_dir / "samples" / f"step-{done:07d}.png")
