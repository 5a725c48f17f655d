"""What a training would do, worked out without doing it (`--dry_run`)."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..data.schema import DatasetInfo, label_matrix, load_info, load_prepared
from ..data.splits import LabelledSplit
from ..latents import vae_scale_factor
from ..models.presets import PAPER_AUTOENCODER
from .arguments import public_arguments
from .autoencoder.arguments import has_discriminator
from .autoencoder.models import build_autoencoder
from .autoencoder.objective import AutoencoderObjective
from .autoencoder.patch_discriminator import PatchDiscriminator
from .data.label_balance import positives_per_label
from .data.training_data import dataset_folder
from .joint.components import build_unet, load_vae
from .joint.objectives import classification_steps_before
from .run.memory_estimate import memory_estimate, saved_activation_bytes
from .run.optimizer import count_parameters


def describe_joint_run(args: argparse.Namespace) -> dict[str, Any]:
    """Resolve the configuration and count parameters, steps and images.

    Neither the dataset nor the autoencoder has to be there yet: without them the numbers are those of the paper's
    autoencoder and of one label. No weights are made.

    Args:
        args: the parsed command line, checked.

    Returns:
        What `--dry_run` prints.

    Raises:
        ValueError: as at the start of a training.
    """
    facts: dict[str, Any] = {"arguments": public_arguments(args)}
    info = _placeholder_info()
    if args.dataset_dir is not None or args.dataset_name is not None:
        folder = dataset_folder(args)
        info = load_info(folder)
        table = load_prepared(folder, "train", ["image_id", "labels" if info.is_multi_label else "label"])
        labels = label_matrix(table, info)
        labelled = np.flatnonzero(~np.isnan(labels).all(axis=1))
        if args.labelled_split is not None:
            split = LabelledSplit.load(args.labelled_split)
            labelled = split.indices(table)
            facts["labelled_split"] = {"hash": split.hash, "share": split.share, "by": split.by, "seed": split.seed}
        facts["dataset"] = _data_facts(info, folder)
        facts["num_labelled_images"] = len(labelled)
        positives = positives_per_label(labels[labelled]).tolist()
        facts["labelled_images_per_label"] = dict(zip(info.label_names, positives, strict=True))

    latent_channels, factor, num_vae_parameters = (
        PAPER_AUTOENCODER["latent_channels"],
        2 ** (len(PAPER_AUTOENCODER["block_out_channels"]) - 1),
        0,
    )
    if args.vae is not None or args.vae_path is not None:
        vae = load_vae(args, info)
        latent_channels, factor = vae.config.latent_channels, vae_scale_factor(vae)
        num_vae_parameters = count_parameters(vae)
    with torch.device("meta" if args.unet_path is None else "cpu"):
        unet = build_unet(args, info, latent_channels, factor)
    steps = args.max_train_steps
    with_class_loss = classification_steps_before(steps, args.classifier_start_step, args.classifier_every)
    head = count_parameters(unet.classifier)
    facts["latent_shape"] = [latent_channels, args.resolution // factor, args.resolution // factor]
    facts["num_unet_parameters"] = count_parameters(unet) - head
    facts["num_classifier_parameters"] = head
    facts["num_classifier_features"] = unet.num_classifier_features
    facts["num_train_steps"] = steps
    facts["num_classification_steps"] = with_class_loss if args.classifier_loss_weight > 0 else 0
    facts["images_per_step"] = {"diffusion": args.train_batch_size, "labelled": args.labelled_batch_size}
    facts["memory_with_one_process"] = memory_estimate(
        count_parameters(unet),
        num_vae_parameters,
        args.use_ema,
        _joint_activation_bytes(args, unet.to("meta"), facts["latent_shape"]),
        args.mixed_precision,
        [] if num_vae_parameters else ["the autoencoder"],
    )
    return facts


def describe_autoencoder_run(args: argparse.Namespace) -> dict[str, Any]:
    """Resolve the configuration of an autoencoder's training; the dataset need not be there yet.

    Args:
        args: the parsed command line, checked.

    Returns:
        What `--dry_run` prints.

    Raises:
        ValueError: as at the start of a training.
    """
    facts: dict[str, Any] = {"arguments": public_arguments(args)}
    channels = 1
    if args.dataset_dir is not None or args.dataset_name is not None:
        folder = dataset_folder(args)
        info = load_info(folder)
        facts["dataset"] = _data_facts(info, folder)
        channels = info.channels
    with torch.device("meta" if args.pretrained_vae is None else "cpu"):
        vae = build_autoencoder(args, channels)
    discriminator = None
    num_discriminator = 0
    if has_discriminator(args):
        with torch.device("meta"):
            discriminator = PatchDiscriminator(channels, args.disc_channels, args.disc_num_layers)
        num_discriminator = count_parameters(discriminator)
    size = args.resolution // vae_scale_factor(vae)
    facts["latent_shape"] = [vae.config.latent_channels, size, size]
    facts["num_vae_parameters"] = count_parameters(vae)
    facts["num_discriminator_parameters"] = num_discriminator
    facts["num_train_steps"] = args.max_train_steps
    facts["num_adversarial_steps"] = max(0, args.max_train_steps - args.disc_start) if discriminator else 0
    facts["images_per_step"] = args.train_batch_size

    activation_bytes = None
    if not args.gradient_checkpointing:
        objective = AutoencoderObjective(vae.to("meta"), discriminator=discriminator).to("meta")
        images = torch.zeros(1, channels, args.resolution, args.resolution, device="meta")
        noise = torch.zeros(1, *facts["latent_shape"], device="meta")
        per_image = saved_activation_bytes(lambda: objective(images, noise), list(objective.parameters()))
        activation_bytes = per_image * -(-args.train_batch_size // args.gradient_accumulation_steps)
    facts["memory_with_one_process"] = memory_estimate(
        count_parameters(vae) + num_discriminator,
        0,
        args.use_ema,
        activation_bytes,
        args.mixed_precision,
        [] if args.perceptual == "none" else ["the perceptual network and its activations"],
    )
    return facts


def _joint_activation_bytes(args: argparse.Namespace, unet: Any, latent_shape: list[int]) -> int | None:
    """Activations of both losses for one process's part of the batch; not known with gradient checkpointing."""
    if args.gradient_checkpointing:
        return None
    latents, timesteps = torch.zeros(1, *latent_shape, device="meta"), torch.zeros(1, device="meta")
    parameters = list(unet.parameters())
    total = 0
    if args.diffusion_loss_weight > 0:
        per_image = saved_activation_bytes(lambda: unet(latents, timesteps, return_logits=False), parameters)
        total += per_image * -(-args.train_batch_size // args.gradient_accumulation_steps)
    if args.classifier_loss_weight > 0:
        per_image = saved_activation_bytes(lambda: unet(latents, timesteps, return_sample=False), parameters)
        total += per_image * -(-args.labelled_batch_size // args.gradient_accumulation_steps)
    return total


def _data_facts(info: DatasetInfo, folder: Path) -> dict[str, Any]:
    """The data that would be used."""
    return {
        "name": info.name,
        "folder": str(folder),
        "licence": info.licence,
        "labels": info.label_names,
        "num_rows": info.num_rows,
    }


def _placeholder_info() -> DatasetInfo:
    """A dataset with one label, for a configuration without data."""
    return DatasetInfo("none", "", "", "", "multi_label_classification", ["LABEL_0"], channels=1)
