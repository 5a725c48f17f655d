"""A lossless stand-in for an autoencoder: space to depth, for images small enough to need no compression."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import nn

from .config_rules import check_config


class PointDistribution:
    """The posterior of a deterministic encoder: all mass at one point.

    Args:
        parameters: the latents, shape `(batch, latent_channels, height, width)`.
    """

    def __init__(self, parameters: torch.Tensor):
        self.parameters = parameters

    def mode(self) -> torch.Tensor:
        """The latents."""
        return self.parameters

    def sample(self, generator: torch.Generator | None = None) -> torch.Tensor:
        """The latents; `generator` is not needed."""
        return self.parameters

    def kl(self) -> torch.Tensor:
        """Zero per image: there is no noise to pay for."""
        return self.parameters.new_zeros(len(self.parameters))


class SpaceToDepthAutoencoder(ModelMixin, ConfigMixin):
    """A parameter-free autoencoder with the interface of [`~diffusers.AutoencoderKL`] that loses nothing.

    Blocks of `block_size x block_size` pixels become channels, so that a 1x32x32 image is a 4x16x16 latent and the
    U-Net's first level is spared. It keeps small-image experiments free of reconstruction error.

    Args:
        in_channels: channels of the images.
        out_channels: the same, kept for the interface of `AutoencoderKL`.
        block_size: side of the blocks; the image's sides must be multiples of it.
        latent_channels: channels of the latents, `in_channels * block_size**2`; may be left out.
        sample_size: side of the images in pixels, if fixed.
        scaling_factor: the U-Net sees latents times this factor.
    """

    @register_to_config
    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 1,
        block_size: int = 2,
        latent_channels: int | None = None,
        sample_size: int | None = None,
        scaling_factor: float = 1.0,
    ):
        check_config("SpaceToDepthAutoencoder", locals())
        super().__init__()
        if in_channels != out_channels:
            raise ValueError(f"`in_channels` ({in_channels}) and `out_channels` ({out_channels}) must be equal.")
        if latent_channels not in (None, in_channels * block_size**2):
            raise ValueError(
                f"`latent_channels` follows from the others and must be {in_channels * block_size**2}, but got "
                f"{latent_channels}. Leave it out."
            )
        self.register_to_config(latent_channels=in_channels * block_size**2)
        # `dtype` and `device` of a model are those of its parameters, and a checkpoint must hold at least one.
        self.marker = nn.Parameter(torch.zeros(1), requires_grad=False)

    @apply_forward_hook
    def encode(self, x: torch.Tensor, return_dict: bool = True) -> AutoencoderKLOutput | tuple[PointDistribution]:
        """Encode images of shape `(batch, in_channels, height, width)` in [-1, 1].

        Raises:
            ValueError: if a side is no multiple of `block_size`.
        """
        block = self.config.block_size
        if x.shape[-1] % block or x.shape[-2] % block:
            raise ValueError(f"The image's sides must be multiples of {block}, but it is {tuple(x.shape[-2:])}.")
        posterior = PointDistribution(F.pixel_unshuffle(x, block))
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    @apply_forward_hook
    def decode(
        self, z: torch.Tensor, return_dict: bool = True, generator: torch.Generator | None = None
    ) -> DecoderOutput | tuple[torch.Tensor]:
        """Decode latents of shape `(batch, latent_channels, height, width)`; the exact inverse of `encode`."""
        sample = F.pixel_shuffle(z, self.config.block_size)
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    def forward(self, sample: torch.Tensor, return_dict: bool = True) -> DecoderOutput | tuple[torch.Tensor]:
        """Encode and decode: returns `sample` unchanged."""
        return self.decode(self.encode(sample).latent_dist.mode(), return_dict=return_dict)
