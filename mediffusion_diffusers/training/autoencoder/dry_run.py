"""What an autoencoder's training would do, worked out without doing it (`--dry_run`)."""

from __future__ import annotations

from typing import Any

import torch

from ...data.schema import load_info
from ...latents import vae_scale_factor
from ..data.training_data import dataset_facts, dataset_folder
from ..run.memory_estimate import memory_estimate, saved_activation_bytes
from ..run.optimizer import count_parameters
from .config import AutoencoderConfig
from .models import build_autoencoder
from .objective import AutoencoderObjective
from .patch_discriminator import PatchDiscriminator


def describe_autoencoder_run(config: AutoencoderConfig) -> dict[str, Any]:
    """Resolve the configuration of an autoencoder's training; the dataset need not be there yet.

    Args:
        config: all options, checked.

    Returns:
        What `--dry_run` prints.

    Raises:
        ValueError: as at the start of a training.
    """
    facts: dict[str, Any] = {"arguments": config.public()}
    channels, data, run, loss = 1, config.data, config.run, config.loss
    if data.dataset_dir is not None or data.dataset_name is not None:
        folder = dataset_folder(data)
        info = load_info(folder)
        facts["dataset"] = dataset_facts(info, folder)
        channels = info.channels
    with torch.device("meta" if config.autoencoder.pretrained_vae is None else "cpu"):
        vae = build_autoencoder(config.autoencoder, data.image_size, channels)
    discriminator, num_discriminator = None, 0
    if config.has_discriminator:
        with torch.device("meta"):
            discriminator = PatchDiscriminator(channels, loss.disc_channels, loss.disc_num_layers)
        num_discriminator = count_parameters(discriminator)
    size = data.image_size // vae_scale_factor(vae)
    facts["latent_shape"] = [vae.config.latent_channels, size, size]
    facts["num_vae_parameters"] = count_parameters(vae)
    facts["num_discriminator_parameters"] = num_discriminator
    facts["num_train_steps"] = run.max_train_steps
    facts["num_adversarial_steps"] = 0 if discriminator is None else run.max_train_steps - (loss.disc_start or 0)
    facts["images_per_step"] = data.train_batch_size

    activation_bytes = None
    if not run.gradient_checkpointing:
        objective = AutoencoderObjective(vae.to("meta"), discriminator=discriminator).to("meta")
        images = torch.zeros(1, channels, data.image_size, data.image_size, device="meta")
        noise = torch.zeros(1, *facts["latent_shape"], device="meta")
        per_image = saved_activation_bytes(lambda: objective(images, noise), list(objective.parameters()))
        activation_bytes = per_image * -(-data.train_batch_size // run.gradient_accumulation_steps)
    facts["memory_with_one_process"] = memory_estimate(
        count_parameters(vae) + num_discriminator,
        0,
        config.optimizer.use_ema,
        activation_bytes,
        run.mixed_precision,
        [] if loss.perceptual == "none" else ["the perceptual network and its activations"],
    )
    return facts
