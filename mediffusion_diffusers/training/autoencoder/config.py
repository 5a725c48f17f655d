"""The options of `train_autoencoder.py`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from ...options import Range, option
from ..config import HubOptions, OptimizerOptions, TrainingConfig, check_hub, check_resolution


_Count = Annotated[int, Range(at_least=1)]
_Weight = Annotated[float, Range(at_least=0)]


@dataclass(frozen=True)
class AutoencoderOptions:
    """The autoencoder that a training starts from."""

    _argument_group_name = "autoencoder"

    pretrained_vae: str | None = option(
        None,
        "AutoencoderKL to start from, folder or Hub repository; it fixes the shape. One of colour images is adapted "
        "to grey ones in its first and last convolution.",
    )
    pretrained_vae_subfolder: str | None = option(None, "Folder inside it, for example vae.")
    block_out_channels: Annotated[list[int], Range(at_least=1)] = option([128, 256, 512, 512], "Widths of the levels.")
    layers_per_block: _Count = option(2, "Residual blocks per level.")
    latent_channels: _Count = option(4, "Channels of the latents.")
    norm_num_groups: _Count = option(32, "Groups of the group normalisation.")
    num_panel_images: _Count = option(8, "Images in the reconstruction panels.")


@dataclass(frozen=True)
class AutoencoderLossOptions:
    """The terms of the loss."""

    _argument_group_name = "loss"

    kl_weight: _Weight = option(1e-6, "Weight of the KL divergence, summed per image.")
    perceptual: str = option(
        "none",
        "Perceptual network: none, lpips (needs torchvision), or folder or Hub repository of an image model of "
        "transformers.",
    )
    perceptual_weight: _Weight = option(1.0, "Its weight beside |x - x'|.")
    perceptual_start: Annotated[int, Range(at_least=0)] = option(0, "Step from which it takes part.")
    disc_start: Annotated[int | None, Range(at_least=0)] = option(
        None, "Step from which the discriminator takes part; by default never."
    )
    disc_weight: _Weight = option(0.5, "Factor on the adaptive weight.")
    disc_num_layers: _Count = option(3, "Its layers of stride 2; 3 see 70x70 pixels.")
    disc_channels: _Count = option(64, "Width of its first layer.")

    def is_adversarial(self, step: int) -> bool:
        """Whether the discriminator takes part in a step."""
        return self.disc_start is not None and step >= self.disc_start and self.disc_weight > 0


@dataclass(frozen=True)
class AutoencoderConfig(TrainingConfig):
    """The training of an autoencoder (paper App. C)."""

    optimizer: OptimizerOptions = field(
        default_factory=lambda: OptimizerOptions(adam_beta1=0.5, adam_beta2=0.9, adam_weight_decay=0.0)
    )
    autoencoder: AutoencoderOptions = field(default_factory=AutoencoderOptions)
    loss: AutoencoderLossOptions = field(default_factory=AutoencoderLossOptions)
    hub: HubOptions = field(default_factory=HubOptions)

    @property
    def has_discriminator(self) -> bool:
        """Whether a discriminator takes part at some step of the run."""
        return self.loss.is_adversarial(self.run.max_train_steps - 1)

    def check(self) -> None:
        """See `TrainingConfig.check`."""
        super().check()
        check_resolution(self.data)
        check_hub(self.run, self.hub)
        if self.autoencoder.pretrained_vae is None:
            self._check_shape()
        from .patch_discriminator import smallest_image  # brings torch

        smallest = smallest_image(self.loss.disc_num_layers)
        if self.has_discriminator and self.data.image_size < smallest:
            raise ValueError(
                f"`resolution` must be at least {smallest} for a discriminator of {self.loss.disc_num_layers} layers, "
                f"but got {self.data.resolution}. Lower `disc_num_layers`."
            )

    def _check_shape(self) -> None:
        widths, num_groups = self.autoencoder.block_out_channels, self.autoencoder.norm_num_groups
        factor = 2 ** (len(widths) - 1)
        if self.data.image_size % factor:
            raise ValueError(
                f"`resolution` must be a multiple of {factor}, which {len(widths)} levels of `block_out_channels` "
                f"reduce it by, but got {self.data.resolution}."
            )
        for width in widths:
            if width % num_groups:
                raise ValueError(
                    f"Every entry of `block_out_channels` must be a multiple of `norm_num_groups={num_groups}`, but "
                    f"got {width}."
                )
