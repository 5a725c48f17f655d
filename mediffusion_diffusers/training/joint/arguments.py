"""The arguments of `train_joint.py`."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..arguments import (
    add_data_arguments,
    add_hub_arguments,
    add_optimizer_arguments,
    add_run_arguments,
    check_hub_arguments,
    check_run_arguments,
)


def joint_parser() -> argparse.ArgumentParser:
    """Parser of `train_joint.py`."""
    parser = argparse.ArgumentParser(
        description="Train one U-Net to denoise and to classify: L = L_diff + w * L_class (paper Sec. 3.3).",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add_run_arguments(parser)
    add_data_arguments(parser)
    add_optimizer_arguments(parser, learning_rate=1e-4, betas=(0.9, 0.999), weight_decay=1e-2)
    _add_label_arguments(parser)
    _add_model_arguments(parser)
    _add_diffusion_arguments(parser)
    _add_semi_supervised_arguments(parser)
    _add_speed_arguments(parser)
    add_hub_arguments(parser)
    return parser


def _add_label_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("classification")
    group.add_argument(
        "--labelled_split",
        default=None,
        help="Split file that names the labelled images; by default all that have a label.",
    )
    group.add_argument(
        "--labelled_batch_size", type=int, default=16, help="Labelled images per step, over all processes."
    )
    group.add_argument("--classifier_loss_weight", type=float, default=1.0, help="w in L_diff + w * L_class.")
    group.add_argument("--classifier_learning_rate", type=float, default=None, help="By default `learning_rate`.")
    group.add_argument("--classifier_start_step", type=int, default=0, help="Diffusion alone before this step.")
    group.add_argument("--classifier_every", type=int, default=1, help="Class loss on every n-th step.")
    group.add_argument(
        "--lr_restart_at_classifier_start",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="Begin warm-up and schedule, and the warm-up of the average, anew when the class loss begins.",
    )
    group.add_argument(
        "--classifier_noise_prob", type=float, default=0.0, help="Share of labelled images that are noised."
    )
    group.add_argument(
        "--classifier_max_timestep",
        type=int,
        default=400,
        help="Noised images get a uniform t below this; the rest stay clean at t = 0.",
    )


def _add_model_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    group.add_argument("--vae_path", default=None, help="AutoencoderKL: folder or Hub repository.")
    group.add_argument("--vae_subfolder", default=None, help="Folder inside `vae_path`, for example vae.")
    group.add_argument(
        "--vae", choices=("space_to_depth",), default=None, help="A lossless latent instead of `vae_path`."
    )
    group.add_argument("--vae_block_size", type=int, default=2, help="Pixels per latent pixel of space_to_depth.")
    group.add_argument("--unet_path", default=None, help="U-Net to start from (UNet2DModel or joint): folder or repo.")
    group.add_argument("--unet_subfolder", default=None, help="Folder inside `unet_path`, for example unet.")
    group.add_argument("--unet_config", default=None, help="JSON file with the U-Net's config, or 'paper'.")
    group.add_argument("--block_out_channels", type=int, nargs="+", default=None)
    group.add_argument("--layers_per_block", type=int, default=None)
    group.add_argument("--down_block_types", nargs="+", default=None)
    group.add_argument("--up_block_types", nargs="+", default=None, help="By default the mirror of the down blocks.")
    group.add_argument("--attention_head_dim", type=int, default=None)
    group.add_argument("--norm_num_groups", type=int, default=None)
    group.add_argument("--dropout", type=float, default=None, help="Dropout in the U-Net's residual blocks.")
    group.add_argument("--classifier_pool_size", type=int, default=None, help="Pooled bins per side of each map.")
    group.add_argument("--classifier_hidden_size", type=int, default=None)
    group.add_argument("--classifier_dropout", type=float, default=None)


def _add_diffusion_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("diffusion")
    group.add_argument("--diffusion_loss_weight", type=float, default=1.0, help="0: classify only (Table 3).")
    group.add_argument("--prediction_type", choices=("epsilon", "sample", "v_prediction"), default="epsilon")
    group.add_argument("--num_train_timesteps", type=int, default=1000)
    group.add_argument("--beta_start", type=float, default=0.0015)
    group.add_argument("--beta_end", type=float, default=0.0195)
    group.add_argument("--beta_schedule", default="scaled_linear")
    group.add_argument(
        "--rescale_betas_zero_snr",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="Let the last timestep be noise alone (Lin et al., 2023); the saved scheduler then spaces from the end.",
    )
    group.add_argument(
        "--snr_gamma", type=float, default=None, help="Min-SNR weights in the diffusion loss; their authors use 5."
    )
    group.add_argument("--sample_steps", type=int, default=None, help="Steps between sample grids.")
    group.add_argument("--num_sample_images", type=int, default=16)
    group.add_argument("--sample_inference_steps", type=int, default=25, help="DDIM steps of the sample grids.")
    text = "Default of the counterfactual pipeline, stored with the model; calibrate it per checkpoint."
    group.add_argument("--counterfactual_strength", type=float, default=None, help=text)
    group.add_argument("--counterfactual_guidance_scale", type=float, default=None, help=text)
    group.add_argument("--counterfactual_num_inference_steps", type=int, default=None, help=text)


def _add_semi_supervised_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("few and unequal labels (beyond the paper, off by default)")
    group.add_argument(
        "--pseudo_label_start_step",
        type=int,
        default=None,
        help="From this step on, what the averaged model is sure about on the diffusion stream is a label too.",
    )
    group.add_argument(
        "--pseudo_label_threshold", type=float, default=0.95, help="Least probability of an answer that is sure."
    )
    group.add_argument("--pseudo_label_weight", type=float, default=1.0, help="Weight of the loss on pseudo-labels.")
    group.add_argument(
        "--pos_weight",
        nargs="+",
        default=["none"],
        metavar="WEIGHT",
        help="Weights of the positives in the class loss: none, balanced, or one number per label.",
    )
    group.add_argument(
        "--balanced_labelled_sampling",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="Show labelled images of every class, and of none, equally often.",
    )


def _add_speed_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("speed")
    group.add_argument(
        "--cache_latents",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="Encode all images once and keep their latents on disk; a later run with the same images, autoencoder "
        "and augmentation finds them there.",
    )
    group.add_argument(
        "--cache_latents_variants", type=int, default=4, help="Augmented variants per image; one without augmentation."
    )
    group.add_argument(
        "--latent_cache_dir", default=None, help="Folder of cached latents; by default 'latents' beside `output_dir`."
    )
    group.add_argument(
        "--share_forward",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="Run the encoder once for both losses.",
    )
    group.add_argument(
        "--compile",
        nargs="?",
        const="inductor",
        default=None,
        metavar="BACKEND",
        help="Compile the U-Net's pass with torch.compile; the backend is inductor unless another is named.",
    )


def check_joint_arguments(args: argparse.Namespace) -> None:
    """Check the command line before any work.

    Raises:
        ValueError: for the first argument that cannot work.
    """
    check_run_arguments(args)
    check_hub_arguments(args)
    if args.labelled_split is not None and not Path(args.labelled_split).is_file():
        raise ValueError(f"`labelled_split` must be a split file, but {args.labelled_split!r} does not exist.")
    if (args.vae_path is None) == (args.vae is None) and not (args.dry_run and args.vae is None):
        raise ValueError("Exactly one of `vae_path` (a trained autoencoder) and `vae` (space_to_depth) is needed.")
    for name in (
        *("labelled_batch_size", "classifier_every", "num_sample_images", "sample_inference_steps"),
        "cache_latents_variants",
    ):
        if getattr(args, name) < 1:
            raise ValueError(f"`{name}` must be at least 1, but got {getattr(args, name)}.")
    for name in ("classifier_start_step", "classifier_loss_weight", "diffusion_loss_weight"):
        if getattr(args, name) < 0:
            raise ValueError(f"`{name}` must not be negative, but got {getattr(args, name)}.")
    if args.diffusion_loss_weight == 0 and (args.classifier_start_step > 0 or args.classifier_every > 1):
        raise ValueError(
            "`diffusion_loss_weight=0` leaves steps without any loss: set `classifier_start_step=0` and "
            "`classifier_every=1`."
        )
    if args.diffusion_loss_weight == 0 and args.classifier_loss_weight == 0:
        raise ValueError("At least one of `diffusion_loss_weight` and `classifier_loss_weight` must be above 0.")
    if not 0 <= args.classifier_noise_prob <= 1:
        raise ValueError(f"`classifier_noise_prob` must be in [0, 1], but got {args.classifier_noise_prob}.")
    if not 1 <= args.classifier_max_timestep <= args.num_train_timesteps:
        raise ValueError(
            f"`classifier_max_timestep` must be in [1, {args.num_train_timesteps}], but got "
            f"{args.classifier_max_timestep}."
        )
    if args.counterfactual_strength is not None and not 0 < args.counterfactual_strength <= 1:
        raise ValueError(f"`counterfactual_strength` must be in (0, 1], but got {args.counterfactual_strength}.")
    _check_diffusion_arguments(args)
    _check_pseudo_label_arguments(args)


def _check_diffusion_arguments(args: argparse.Namespace) -> None:
    if args.snr_gamma is not None and args.snr_gamma <= 0:
        raise ValueError(f"`snr_gamma` must be above 0, but got {args.snr_gamma}.")
    if args.rescale_betas_zero_snr and args.prediction_type == "epsilon":
        raise ValueError(
            "`rescale_betas_zero_snr` makes the last timestep noise alone, from which the noise tells nothing: set "
            "`prediction_type` to 'v_prediction' or 'sample'."
        )


def _check_pseudo_label_arguments(args: argparse.Namespace) -> None:
    if args.pseudo_label_start_step is None:
        return
    if args.pseudo_label_start_step < args.classifier_start_step:
        raise ValueError(
            f"`pseudo_label_start_step` must not be below `classifier_start_step` ({args.classifier_start_step}), "
            f"before which the teacher knows nothing, but got {args.pseudo_label_start_step}."
        )
    if not 0.5 < args.pseudo_label_threshold < 1:
        raise ValueError(f"`pseudo_label_threshold` must be in (0.5, 1), but got {args.pseudo_label_threshold}.")
    if args.pseudo_label_weight <= 0:
        raise ValueError(f"`pseudo_label_weight` must be above 0, but got {args.pseudo_label_weight}.")
    if not args.use_ema:
        raise ValueError("`pseudo_label_start_step` needs `use_ema`: the averaged model is the teacher.")
    if args.diffusion_loss_weight == 0 or args.classifier_loss_weight == 0:
        raise ValueError(
            "`pseudo_label_start_step` needs both losses: set `diffusion_loss_weight` and `classifier_loss_weight`."
        )
