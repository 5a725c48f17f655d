"""The models that a joint training starts from: autoencoder, U-Net and noise schedule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, UNet2DModel

from ...data.schema import DatasetInfo
from ...latents import vae_scale_factor
from ...models import JointUNet2DModel, SpaceToDepthAutoencoder
from ...models.config_rules import read_config
from ...models.model_folder import check_finite, local_model
from ...models.presets import PAPER_UNET
from .config import CounterfactualDefaults, DiffusionOptions, ModelOptions


# Edits closest to the truth where it is known, on phantoms; at scales to begin with, which belong to a checkpoint and
# are calibrated after its training.
COUNTERFACTUAL_DEFAULTS: dict[str, Any] = {"quality": "best", "guidance_scale": {"away": 25.0, "towards": 5.0}}

# Shape of the U-Net that can be given on the command line, by name of the config.
_SHAPE_OPTIONS = (
    *("block_out_channels", "layers_per_block", "down_block_types", "up_block_types", "attention_head_dim"),
    *("norm_num_groups", "dropout", "classifier_pool_size", "classifier_pool_type"),
    *("classifier_norm_type", "classifier_hidden_size", "classifier_dropout"),
)


def load_vae(options: ModelOptions, resolution: int, info: DatasetInfo) -> Any:
    """Load or make the autoencoder and check that it fits the images.

    Args:
        options: of the models.
        resolution: height and width of the images in pixels.
        info: of the dataset.

    Returns:
        The frozen autoencoder in evaluation mode.

    Raises:
        ValueError: if its channels are not the dataset's, or the resolution is no multiple of its factor.
    """
    if options.vae is not None:
        vae: Any = SpaceToDepthAutoencoder(
            info.channels, info.channels, block_size=options.vae_block_size, sample_size=resolution
        )
    else:
        assert options.vae_path is not None
        folder = local_model(options.vae_path, _subfolder(options.vae_path, options.vae_subfolder, "vae"))
        config = AutoencoderKL.load_config(folder)
        known = {"AutoencoderKL": AutoencoderKL, "SpaceToDepthAutoencoder": SpaceToDepthAutoencoder}
        if config.get("_class_name") not in known:
            raise ValueError(
                f"`vae_path` must hold an AutoencoderKL or SpaceToDepthAutoencoder, but {options.vae_path!r} holds "
                f"{config.get('_class_name')!r}. If it is a pipeline folder, name the part with `vae_subfolder`."
            )
        vae = known[config["_class_name"]].from_pretrained(folder, use_safetensors=True)
        check_finite(vae, options.vae_path)
    if vae.config.in_channels != info.channels:
        raise ValueError(
            f"The autoencoder reads images of {vae.config.in_channels} channels, but dataset {info.name!r} has "
            f"{info.channels}. Train an autoencoder on this dataset or choose another `vae_path`."
        )
    factor = vae_scale_factor(vae)
    if resolution % factor:
        raise ValueError(
            f"`resolution` must be a multiple of the autoencoder's factor {factor}, but got {resolution}."
        )
    return vae.requires_grad_(False).eval()


def build_unet(
    options: ModelOptions,
    defaults: CounterfactualDefaults,
    info: DatasetInfo,
    latent_channels: int,
    sample_size: int,
) -> JointUNet2DModel:
    """Build the joint U-Net from a checkpoint, a config or explicit arguments, for the dataset's labels.

    Args:
        options: of the models.
        defaults: of the counterfactual pipeline, which are stored with the U-Net.
        info: names the labels.
        latent_channels: channels of the autoencoder's latents.
        sample_size: height and width of the latents.

    Raises:
        ValueError: if a checkpoint does not fit the latents, or the shape arguments contradict each other.
    """
    head: dict[str, Any] = {"id2label": info.id2label, "problem_type": info.problem_type}
    head["guidance_defaults"] = {**COUNTERFACTUAL_DEFAULTS, **defaults.given()}
    shape = {name: getattr(options, name) for name in _SHAPE_OPTIONS if getattr(options, name) is not None}

    if options.unet_path is not None:
        foreign = [name for name in shape if not name.startswith("classifier_")]
        if foreign:
            raise ValueError(f"`unet_path` fixes the U-Net's shape; leave out {foreign}.")
        unet = JointUNet2DModel.from_unet(_load_unet(options), **head, **shape)
        if unet.config.in_channels != latent_channels:
            raise ValueError(
                f"The U-Net of `unet_path` reads {unet.config.in_channels} latent channels, but the autoencoder gives "
                f"{latent_channels}."
            )
        unet.register_to_config(sample_size=sample_size)
        return unet

    config: dict[str, Any] = {}
    if options.unet_config == "paper":
        config = dict(PAPER_UNET)
    elif options.unet_config is not None:
        if not Path(options.unet_config).is_file():
            raise ValueError(
                f"`unet_config` must be a JSON file or 'paper', but {options.unet_config!r} does not exist."
            )
        config = read_config(Path(options.unet_config), "JointUNet2DModel")
        config = {name: value for name, value in config.items() if not name.startswith("_")}
    widths = shape.get("block_out_channels", config.get("block_out_channels"))
    if widths is None:
        raise ValueError(
            "The U-Net has no shape: give `unet_path`, `block_out_channels`, or a `unet_config` that names its "
            "`block_out_channels`."
        )
    if "down_block_types" in shape and "up_block_types" not in shape:
        shape["up_block_types"] = mirrored_blocks(shape["down_block_types"])
    config.update(shape)
    config.update(sample_size=sample_size, in_channels=latent_channels, out_channels=latent_channels)
    if len(widths) != len(config.get("down_block_types", widths)):
        raise ValueError(
            f"`down_block_types` must have one entry per entry of `block_out_channels` ({len(widths)}), but has "
            f"{len(config['down_block_types'])}."
        )
    try:
        return JointUNet2DModel(**{**config, **head})
    except (ValueError, TypeError) as error:  # diffusers raises either for what it cannot build
        raise ValueError(
            f"The U-Net's shape, from `unet_config`, `block_out_channels`, `down_block_types`, `norm_num_groups` and "
            f"the like, does not fit together: {error}"
        ) from error


def mirrored_blocks(down_block_types: list[str]) -> list[str]:
    """Up blocks that mirror the down blocks: `"AttnDownBlock2D"` last becomes `"AttnUpBlock2D"` first."""
    return [name.replace("Down", "Up") for name in reversed(down_block_types)]


def build_noise_scheduler(options: DiffusionOptions) -> DDPMScheduler:
    """The noise schedule of training: by default the paper's, 0.0015 to 0.0195 in square-root space."""
    return DDPMScheduler(
        num_train_timesteps=options.num_train_timesteps,
        beta_start=options.beta_start,
        beta_end=options.beta_end,
        beta_schedule=options.beta_schedule,
        prediction_type=options.prediction_type,
        rescale_betas_zero_snr=options.rescale_betas_zero_snr,
        clip_sample=False,
    )


def sampling_scheduler(noise_scheduler: Any, vae: Any) -> DDIMScheduler:
    """The scheduler that is saved with the model: DDIM on the same noise schedule, `set_alpha_to_one=False`.

    With zero terminal SNR its steps are spaced from the end, so that sampling begins at the pure noise of the last
    timestep (Lin et al., 2023). The latents of `SpaceToDepthAutoencoder` are pixels, whose range is known: as usual
    for pixels, generation clips the predicted clean sample to it (other latents are unbounded and, as in the paper,
    not clipped). Counterfactuals never clip: inversion could not undo it.

    Args:
        noise_scheduler: the noise schedule of training.
        vae: the autoencoder.
    """
    spacing = "trailing" if noise_scheduler.config.rescale_betas_zero_snr else noise_scheduler.config.timestep_spacing
    is_pixels = isinstance(vae, SpaceToDepthAutoencoder)
    return DDIMScheduler.from_config(
        noise_scheduler.config,
        set_alpha_to_one=False,
        clip_sample=is_pixels,
        clip_sample_range=float(vae.config.scaling_factor) if is_pixels else 1.0,
        timestep_spacing=spacing,
    )


def _load_unet(options: ModelOptions) -> UNet2DModel:
    assert options.unet_path is not None
    folder = local_model(options.unet_path, _subfolder(options.unet_path, options.unet_subfolder, "unet"))
    config = UNet2DModel.load_config(folder)
    known: dict[str, type[UNet2DModel]] = {"UNet2DModel": UNet2DModel, "JointUNet2DModel": JointUNet2DModel}
    if config.get("_class_name") not in known:
        raise ValueError(
            f"`unet_path` must hold a UNet2DModel or JointUNet2DModel, but {options.unet_path!r} holds "
            f"{config.get('_class_name')!r}. If it is a pipeline folder, name the part with `unet_subfolder`."
        )
    unet = known[config["_class_name"]].from_pretrained(folder, use_safetensors=True).float()
    check_finite(unet, options.unet_path)
    return unet


def _subfolder(path: str, subfolder: str | None, part: str) -> str | None:
    """The subfolder asked for; or the part's own, if `path` is a local pipeline folder."""
    if subfolder is None and (Path(path) / part / "config.json").is_file():
        return part
    return subfolder
