"""The autoencoder that a training starts from: fresh, or a pretrained one fitted to the images' channels."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL
from torch import nn

from ...latents import vae_scale_factor
from ...models.model_folder import check_finite, local_model
from .config import AutoencoderOptions


def build_autoencoder(options: AutoencoderOptions, resolution: int, channels: int) -> AutoencoderKL:
    """Make the autoencoder that the options describe, or load `pretrained_vae`.

    Args:
        options: of the autoencoder.
        resolution: height and width of the images in pixels.
        channels: of the images, 1 or 3.

    Returns:
        With `scaling_factor` 1 and no shift: both are measured at the end.

    Raises:
        ValueError: if the pretrained one has a shape that cannot be used.
    """
    if options.pretrained_vae is None:
        num_levels = len(options.block_out_channels)
        return AutoencoderKL(
            in_channels=channels,
            out_channels=channels,
            down_block_types=("DownEncoderBlock2D",) * num_levels,
            up_block_types=("UpDecoderBlock2D",) * num_levels,
            block_out_channels=tuple(options.block_out_channels),
            layers_per_block=options.layers_per_block,
            latent_channels=options.latent_channels,
            norm_num_groups=options.norm_num_groups,
            sample_size=resolution,
            scaling_factor=1.0,
        )
    vae = _load_pretrained(options.pretrained_vae, options.pretrained_vae_subfolder)
    if vae.config.in_channels == 3 and channels == 1:
        adapt_to_grey(vae)
    if vae.config.in_channels != channels:
        raise ValueError(
            f"`pretrained_vae` reads images of {vae.config.in_channels} channels, but the dataset has {channels}. "
            "Only an autoencoder of colour images can be adapted, to grey ones."
        )
    factor = vae_scale_factor(vae)
    if resolution % factor:
        raise ValueError(
            f"`resolution` must be a multiple of {factor}, the factor of `pretrained_vae`, but got {resolution}."
        )
    vae.register_to_config(scaling_factor=1.0, shift_factor=None, sample_size=resolution)
    return vae


@torch.no_grad()
def adapt_to_grey(vae: AutoencoderKL) -> None:
    """Turn an autoencoder of colour images into one of grey images, in place.

    The first convolution's weights are summed over the colours, so that a grey image has exactly the latents of its
    repetition in three channels; the last one's are averaged, so that the output is the mean of the three.

    Args:
        vae: an autoencoder with three input and output channels.
    """
    first, last = vae.encoder.conv_in, vae.decoder.conv_out
    vae.encoder.conv_in = _convolution_like(first, first.weight.sum(dim=1, keepdim=True), first.bias)
    vae.decoder.conv_out = _convolution_like(last, last.weight.mean(dim=0, keepdim=True), last.bias.mean().view(1))
    vae.register_to_config(in_channels=1, out_channels=1)


def _convolution_like(conv: nn.Conv2d, weight: torch.Tensor, bias: torch.Tensor) -> nn.Conv2d:
    """One of the 3x3 convolutions at either end of an `AutoencoderKL`, with other weights."""
    new = nn.Conv2d(weight.shape[1], weight.shape[0], kernel_size=3, padding=1)
    new.load_state_dict({"weight": weight, "bias": bias})
    return new.to(conv.weight.device, conv.weight.dtype)


def _load_pretrained(name: str, subfolder: str | None) -> AutoencoderKL:
    folder = local_model(name, subfolder)
    config = AutoencoderKL.load_config(folder)
    if config.get("_class_name") != "AutoencoderKL":
        raise ValueError(
            f"`pretrained_vae` must hold an AutoencoderKL, but {name!r} holds {config.get('_class_name')!r}. If it is "
            "a pipeline, name the part with `--pretrained_vae_subfolder vae`."
        )
    vae = AutoencoderKL.from_pretrained(folder, use_safetensors=True).float()
    check_finite(vae, name)
    return vae
