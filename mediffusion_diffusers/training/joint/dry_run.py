"""What a joint training would do, worked out without doing it (`--dry_run`)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ...data.schema import DatasetInfo, label_matrix, load_info, load_prepared
from ...latents import vae_scale_factor
from ...models.classifier_head import hold_statistics
from ...models.presets import PAPER_AUTOENCODER
from ..data.label_balance import positives_per_label
from ..data.training_data import dataset_facts, dataset_folder, load_labelled_split
from ..run.memory_estimate import memory_estimate, saved_activation_bytes
from ..run.optimizer import count_parameters
from .components import build_unet, load_vae
from .config import JointConfig
from .stages import images_of_step, joint_stages


def describe_joint_run(config: JointConfig) -> dict[str, Any]:
    """Resolve the configuration and count parameters, steps and images.

    Neither the dataset nor the autoencoder has to be there yet: without them the numbers are those of the paper's
    autoencoder and of one label. No weights are made.

    Args:
        config: all options, checked.

    Returns:
        What `--dry_run` prints.

    Raises:
        ValueError: as at the start of a training.
    """
    facts: dict[str, Any] = {"arguments": config.public()}
    info = _placeholder_info()
    data, labels, model = config.data, config.labels, config.model
    if data.dataset_dir is not None or data.dataset_name is not None:
        folder = dataset_folder(data)
        info = load_info(folder)
        table = load_prepared(folder, "train", ["image_id", "labels" if info.is_multi_label else "label"])
        known = label_matrix(table, info)
        labelled = np.flatnonzero(~np.isnan(known).all(axis=1))
        if labels.labelled_split is not None:
            split = load_labelled_split(labels.labelled_split)
            labelled = split.indices(table)
            facts["labelled_split"] = {"hash": split.hash, "share": split.share, "by": split.by, "seed": split.seed}
        facts["dataset"] = dataset_facts(info, folder)
        facts["num_labelled_images"] = len(labelled)
        positives = positives_per_label(known[labelled]).tolist()
        facts["labelled_images_per_label"] = dict(zip(info.label_names, positives, strict=True))

    latent_channels, factor, num_vae_parameters = (
        PAPER_AUTOENCODER["latent_channels"],
        2 ** (len(PAPER_AUTOENCODER["block_out_channels"]) - 1),
        0,
    )
    if model.vae is not None or model.vae_path is not None:
        vae = load_vae(model, data.image_size, info)
        latent_channels, factor = vae.config.latent_channels, vae_scale_factor(vae)
        num_vae_parameters = count_parameters(vae)
    sample_size = data.image_size // factor
    with torch.device("meta" if model.unet_path is None else "cpu"):
        unet = build_unet(model, config.counterfactuals, info, latent_channels, sample_size)
    head = count_parameters(unet.classifier)
    facts["latent_shape"] = [latent_channels, sample_size, sample_size]
    facts["num_unet_parameters"] = count_parameters(unet) - head
    facts["num_classifier_parameters"] = head
    facts["num_classifier_features"] = unet.num_classifier_features
    facts["num_train_steps"] = config.run.max_train_steps
    facts["num_classification_steps"] = config.labelled_steps_before(config.run.max_train_steps)
    facts["stages"] = [
        {
            "name": stage.name,
            "first_step": stage.first_step,
            "num_steps": stage.end_step - stage.first_step,
            "images_per_step": images_of_step(config, stage, stage.first_step),
            "lr_scheduler": stage.lr_schedule.name,
            "learning_rate": config.optimizer.learning_rate * stage.lr_schedule.peak,
            "trains": "everything" if stage.trains_encoder else "the decoder",
        }
        for stage in joint_stages(config)
    ]
    facts["memory_with_one_process"] = memory_estimate(
        count_parameters(unet),
        num_vae_parameters,
        config.optimizer.use_ema,
        _activation_bytes(config, unet.to("meta"), facts["latent_shape"]),
        config.run.mixed_precision,
        [] if num_vae_parameters else ["the autoencoder"],
    )
    return facts


def _activation_bytes(config: JointConfig, unet: Any, latent_shape: list[int]) -> int | None:
    """Activations of both losses for one process's part of the batch; not known with gradient checkpointing."""
    if config.run.gradient_checkpointing:
        return None
    latents, timesteps = torch.zeros(1, *latent_shape, device="meta"), torch.zeros(1, device="meta")
    parameters, num_parts = list(unet.parameters()), config.run.gradient_accumulation_steps
    hold_statistics(unet.classifier, True)  # of one image there are none
    total = 0
    if config.diffusion.diffusion_loss_weight > 0:
        per_image = saved_activation_bytes(lambda: unet(latents, timesteps, return_logits=False), parameters)
        total += per_image * -(-config.data.train_batch_size // num_parts)
    if config.labels.classifier_loss_weight > 0:
        per_image = saved_activation_bytes(lambda: unet(latents, timesteps, return_sample=False), parameters)
        total += per_image * -(-config.labels.labelled_batch_size // num_parts)
    return total


def _placeholder_info() -> DatasetInfo:
    """A dataset with one label, for a configuration without data."""
    return DatasetInfo("none", "", "", "", "multi_label_classification", ["LABEL_0"], channels=1)
