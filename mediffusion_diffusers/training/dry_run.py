"""What a joint training would do, worked out without doing it (`--dry_run`)."""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch

from ..data.schema import DatasetInfo, label_matrix, load_info, load_prepared
from ..data.splits import LabelledSplit
from ..latents import vae_scale_factor
from ..models.presets import PAPER_AUTOENCODER
from .arguments import public_arguments
from .components import build_unet, load_vae
from .objectives import classification_steps_before
from .optimizer import count_parameters
from .training_data import dataset_folder


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
        known = ~np.isnan(label_matrix(table, info)).all(axis=1)
        labelled = int(known.sum())
        if args.labelled_split is not None:
            labelled = len(LabelledSplit.load(args.labelled_split).indices(table))
        facts["dataset"] = {"name": info.name, "labels": info.label_names, "num_rows": info.num_rows}
        facts["num_labelled_images"] = labelled

    latent_channels, factor = (
        PAPER_AUTOENCODER["latent_channels"],
        2 ** (len(PAPER_AUTOENCODER["block_out_channels"]) - 1),
    )
    if args.vae is not None or args.vae_path is not None:
        vae = load_vae(args, info)
        latent_channels, factor = vae.config.latent_channels, vae_scale_factor(vae)
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
    return facts


def _placeholder_info() -> DatasetInfo:
    """A dataset with one label, for a configuration without data."""
    return DatasetInfo("none", "", "", "", "multi_label_classification", ["LABEL_0"], channels=1)
