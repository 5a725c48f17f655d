"""The arguments of `train_autoencoder.py`."""

from __future__ import annotations

import argparse

from ..arguments import (
    add_data_arguments,
    add_hub_arguments,
    add_optimizer_arguments,
    add_run_arguments,
    check_hub_arguments,
    check_run_arguments,
)
from .patch_discriminator import smallest_image


def autoencoder_parser() -> argparse.ArgumentParser:
    """Parser of `train_autoencoder.py`."""
    parser = argparse.ArgumentParser(
        description="Train the autoencoder whose latents the joint U-Net works on (paper App. C).",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add_run_arguments(parser)
    add_data_arguments(parser)
    add_optimizer_arguments(parser, learning_rate=1e-4, betas=(0.5, 0.9), weight_decay=0.0)
    _add_model_arguments(parser)
    _add_loss_arguments(parser)
    add_hub_arguments(parser)
    return parser


def _add_model_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("autoencoder")
    group.add_argument(
        "--pretrained_vae",
        default=None,
        help="AutoencoderKL to start from, folder or Hub repository; it fixes the shape. One of colour images is "
        "adapted to grey ones in its first and last convolution.",
    )
    group.add_argument("--pretrained_vae_subfolder", default=None, help="Folder inside it, for example vae.")
    group.add_argument("--block_out_channels", type=int, nargs="+", default=(128, 256, 512, 512))
    group.add_argument("--layers_per_block", type=int, default=2)
    group.add_argument("--latent_channels", type=int, default=4)
    group.add_argument("--norm_num_groups", type=int, default=32)
    group.add_argument("--num_panel_images", type=int, default=8, help="Images in the reconstruction panels.")


def _add_loss_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("loss")
    group.add_argument("--kl_weight", type=float, default=1e-6, help="Weight of the KL divergence, summed per image.")
    group.add_argument(
        "--perceptual",
        default="none",
        help="Perceptual network: none, lpips (needs torchvision), or folder or Hub repository of an image model of "
        "transformers.",
    )
    group.add_argument("--perceptual_weight", type=float, default=1.0, help="Its weight beside |x - x'|.")
    group.add_argument("--perceptual_start", type=int, default=0, help="Step from which it takes part.")
    group.add_argument(
        "--disc_start", type=int, default=None, help="Step from which the discriminator takes part; by default never."
    )
    group.add_argument("--disc_weight", type=float, default=0.5, help="Factor on the adaptive weight.")
    group.add_argument("--disc_num_layers", type=int, default=3, help="Its layers of stride 2; 3 see 70x70 pixels.")
    group.add_argument("--disc_channels", type=int, default=64, help="Width of its first layer.")


def check_autoencoder_arguments(args: argparse.Namespace) -> None:
    """Check the command line before any work.

    Raises:
        ValueError: for the first argument that cannot work.
    """
    check_run_arguments(args)
    check_hub_arguments(args)
    if args.pretrained_vae is None:
        _check_shape(args)
    for name in ("num_panel_images", "disc_num_layers", "disc_channels"):
        if getattr(args, name) < 1:
            raise ValueError(f"`{name}` must be at least 1, but got {getattr(args, name)}.")
    for name in ("kl_weight", "perceptual_weight", "perceptual_start", "disc_weight"):
        if getattr(args, name) < 0:
            raise ValueError(f"`{name}` must not be negative, but got {getattr(args, name)}.")
    if args.disc_start is not None and args.disc_start < 0:
        raise ValueError(f"`disc_start` must not be negative, but got {args.disc_start}. Leave it out for never.")
    if has_discriminator(args) and args.resolution < smallest_image(args.disc_num_layers):
        raise ValueError(
            f"`resolution` must be at least {smallest_image(args.disc_num_layers)} for a discriminator of "
            f"{args.disc_num_layers} layers, but got {args.resolution}. Lower `disc_num_layers`."
        )


def has_discriminator(args: argparse.Namespace) -> bool:
    """Whether a discriminator takes part at some step of the run."""
    return args.disc_start is not None and args.disc_start < args.max_train_steps and args.disc_weight > 0


def _check_shape(args: argparse.Namespace) -> None:
    factor = 2 ** (len(args.block_out_channels) - 1)
    if args.resolution % factor:
        raise ValueError(
            f"`resolution` must be a multiple of {factor}, which {len(args.block_out_channels)} levels of "
            f"`block_out_channels` reduce it by, but got {args.resolution}."
        )
    for width in args.block_out_channels:
        if width % args.norm_num_groups:
            raise ValueError(
                f"Every entry of `block_out_channels` must be a multiple of `norm_num_groups={args.norm_num_groups}`, "
                f"but got {width}."
            )
    for name in ("latent_channels", "layers_per_block"):
        if getattr(args, name) < 1:
            raise ValueError(f"`{name}` must be at least 1, but got {getattr(args, name)}.")
