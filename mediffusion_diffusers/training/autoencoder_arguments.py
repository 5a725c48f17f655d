"""The arguments of `train_autoencoder.py`."""

from __future__ import annotations

import argparse

from .arguments import (
    add_data_arguments,
    add_optimizer_arguments,
    add_run_arguments,
    check_run_arguments,
)


def autoencoder_parser() -> argparse.ArgumentParser:
    """Parser of `train_autoencoder.py`."""
    parser = argparse.ArgumentParser(
        description="Train the autoencoder whose latents the joint U-Net works on (paper App. C).",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add_run_arguments(parser)
    add_data_arguments(parser)
    add_optimizer_arguments(parser, learning_rate=1e-4, betas=(0.5, 0.9), weight_decay=0.0)
    group = parser.add_argument_group("autoencoder")
    group.add_argument("--block_out_channels", type=int, nargs="+", default=(128, 256, 512, 512))
    group.add_argument("--layers_per_block", type=int, default=2)
    group.add_argument("--latent_channels", type=int, default=4)
    group.add_argument("--norm_num_groups", type=int, default=32)
    group.add_argument("--kl_weight", type=float, default=1e-6, help="Weight of the KL divergence, summed per image.")
    group.add_argument("--num_panel_images", type=int, default=8, help="Images in the reconstruction panels.")
    return parser


def check_autoencoder_arguments(args: argparse.Namespace) -> None:
    """Check the command line before any work.

    Raises:
        ValueError: for the first argument that cannot work.
    """
    check_run_arguments(args)
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
    for name in ("latent_channels", "layers_per_block", "num_panel_images"):
        if getattr(args, name) < 1:
            raise ValueError(f"`{name}` must be at least 1, but got {getattr(args, name)}.")
    if args.kl_weight < 0:
        raise ValueError(f"`kl_weight` must not be negative, but got {args.kl_weight}.")
