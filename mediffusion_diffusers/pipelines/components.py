"""The parts of a pipeline: which classes they may have, whose code they run, and whether they fit together."""

from collections.abc import Mapping
from typing import Any, Union

from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
)
from diffusers.pipelines import pipeline_loading_utils

from ..models import SpaceToDepthAutoencoder
from ..registration import LIBRARY_NAME, LOADABLE_CLASSES


# So that diffusers looks for this package where a checkpoint carries no code of its models, and names it if it is
# missing.
pipeline_loading_utils.LOADABLE_CLASSES.setdefault(LIBRARY_NAME, {})

# Schedulers with `alphas_cumprod`, whole timesteps and a free choice of them, on latents of unit variance.
SCHEDULERS = (DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, DPMSolverSinglestepScheduler)

# As diffusers reads them off `__init__` when it loads a pipeline: its older versions know neither `X | Y` nor
# annotations that are strings.
Autoencoder = Union[AutoencoderKL, SpaceToDepthAutoencoder]  # noqa: UP007
Scheduler = Union[DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, DPMSolverSinglestepScheduler]  # noqa: UP007


def with_own_classes(model_index: Mapping[str, Any]) -> dict[str, Any]:
    """A `model_index.json` whose entries name the modules of the installed package.

    A published checkpoint carries the code of its models for those without this package. diffusers prefers that file,
    `unet/mediffusion_diffusers.py`, to the library of its name, and asks to trust it. The package takes its own code:
    no checkpoint holds files with its modules' names.

    Args:
        model_index: as it was read.
    """
    if not __name__.startswith(f"{LIBRARY_NAME}."):  # this very code came with a checkpoint
        return dict(model_index)
    return {
        name: [LOADABLE_CLASSES[entry[1]], entry[1]]
        if isinstance(entry, list) and len(entry) == 2 and entry[0] == LIBRARY_NAME and entry[1] in LOADABLE_CLASSES
        else entry
        for name, entry in model_index.items()
    }


def check_components(vae: Any, unet: Any, scheduler: Any) -> None:
    """Refuse components that do not fit one another; None stands for one that is not there.

    Raises:
        ValueError: naming the component.
    """
    if unet is not None and not hasattr(unet, "label_names"):
        raise ValueError(
            f"`unet` must be a JointUNet2DModel, but got {type(unet).__name__}, which has no classifier head. "
            "Extend it with `JointUNet2DModel.from_unet(unet, num_labels=...)` and train the head."
        )
    if vae is not None and "latent_channels" not in vae.config:
        raise ValueError(
            f"`vae` must be an AutoencoderKL or a SpaceToDepthAutoencoder, but got {type(vae).__name__}. Use the "
            "autoencoder that the U-Net was trained with."
        )
    if vae is not None and unet is not None and vae.config.latent_channels != unet.config.in_channels:
        raise ValueError(
            f"`unet` takes {unet.config.in_channels} latent channels, but `vae` makes "
            f"{vae.config.latent_channels}. Use the autoencoder that the U-Net was trained with."
        )
    if vae is not None and vae.config.in_channels not in (1, 3):
        raise ValueError(f"`vae` must take 1 (grey) or 3 (RGB) channels, but takes {vae.config.in_channels}.")
    if scheduler is not None and not isinstance(scheduler, SCHEDULERS):
        raise ValueError(
            f"`scheduler` must be one of {', '.join(kind.__name__ for kind in SCHEDULERS)}, which can start at "
            f"any timestep, but got {type(scheduler).__name__}. Make one with "
            "`DDIMScheduler.from_config(scheduler.config)`."
        )
