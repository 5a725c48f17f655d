"""Tiny real components: every pipeline call with them takes milliseconds."""

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler
from PIL import Image

from mediffusion_diffusers import JointUNet2DModel, SpaceToDepthAutoencoder


LABELS = ("Cardiomegaly", "Effusion", "Mass")
MULTI_LABEL = "multi_label_classification"
SINGLE_LABEL = "single_label_classification"
PROBLEM_TYPES = (MULTI_LABEL, SINGLE_LABEL)

TINY_UNET = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": 8,
    "norm_num_groups": 4,
}
TINY_SCHEDULE = {"beta_start": 0.0015, "beta_end": 0.0195, "beta_schedule": "scaled_linear", "clip_sample": False}


def tiny_unet(seed=0, **overrides):
    """A joint model in evaluation mode whose random head tells images clearly apart."""
    torch.manual_seed(seed)
    config = {**TINY_UNET, "id2label": dict(enumerate(LABELS)), "classifier_hidden_size": 16, **overrides}
    unet = JointUNet2DModel(**config).eval()
    with torch.no_grad():
        unet.classifier[-1].weight.mul_(3)
    return unet


def tiny_vae(kind="space_to_depth", channels=1):
    """An autoencoder for 16x16 images: lossless (4 latent channels per image channel) or variational (4)."""
    torch.manual_seed(1)
    if kind == "space_to_depth":
        return SpaceToDepthAutoencoder(in_channels=channels, out_channels=channels, scaling_factor=1.7).eval()
    return AutoencoderKL(
        in_channels=channels,
        out_channels=channels,
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        block_out_channels=(8, 16),
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
        scaling_factor=0.9,
    ).eval()


def tiny_scheduler(kind="ddim", **overrides):
    """The paper's noise schedule as a DDIM or DDPM scheduler."""
    config = {**TINY_SCHEDULE, **overrides}
    if kind == "ddim":
        return DDIMScheduler(**{"set_alpha_to_one": False, **config})
    return DDPMScheduler(**config)


def tiny_components(scheduler="ddim", vae="space_to_depth", channels=1, **unet_overrides):
    """Arguments of every pipeline: `vae`, `unet`, `scheduler`."""
    autoencoder = tiny_vae(vae, channels)
    latent_channels = autoencoder.config.latent_channels
    unet = tiny_unet(**{"in_channels": latent_channels, "out_channels": latent_channels, **unet_overrides})
    return {"vae": autoencoder, "unet": unet, "scheduler": tiny_scheduler(scheduler)}


def tiny_pipeline(cls, **kwargs):
    """A pipeline of tiny components without a progress bar."""
    pipe = cls(**tiny_components(**kwargs))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def random_images(count=2, size=16, channels=1, seed=0):
    """Smooth-free random pictures as a float array `(count, size, size, channels)` in [0, 1]."""
    return np.random.default_rng(seed).random((count, size, size, channels)).astype(np.float32)


def random_pil(count=2, size=16, seed=0):
    """Random 8-bit grey pictures."""
    pixels = (random_images(count, size, seed=seed)[..., 0] * 255).round().astype(np.uint8)
    return [Image.fromarray(picture) for picture in pixels]


def generators(*seeds):
    """One CPU generator per seed."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def state_of(pipe):
    """Everything about a pipeline's components that a call must leave as it was."""
    state = {}
    for name in ("vae", "unet"):
        module = getattr(pipe, name)
        state[name] = (
            dict(module.config),
            [part.training for part in module.modules()],
            [parameter.requires_grad for parameter in module.parameters()],
            [parameter.grad is None for parameter in module.parameters()],
            [parameter.detach().clone() for parameter in module.parameters()],
        )
    scheduler = {key: value for key, value in vars(pipe.scheduler).items() if not torch.is_tensor(value)}
    tensors = [value.clone() for value in vars(pipe.scheduler).values() if torch.is_tensor(value)]
    return state, repr(sorted(scheduler.items())), tensors


def assert_same_state(before, after):
    """Compare two results of `state_of`."""
    for name in ("vae", "unet"):
        assert before[0][name][:4] == after[0][name][:4]
        assert all(torch.equal(old, new) for old, new in zip(before[0][name][4], after[0][name][4], strict=True))
    assert before[1] == after[1]
    assert all(torch.equal(old, new) for old, new in zip(before[2], after[2], strict=True))
