"""Learning from few labels: one file per method, beside shared data, splits, steps, augmentations and scores.

A method is a function `Setting -> Outcome`: it trains what the setting says and gives its answers to images. To add
one, write a file and a row here; `label_efficiency.py` tunes its learning rate, runs it on every draw and puts it into
the table. Every network is trained by the project's own loop (`task.py`), so batches, sampling, augmentation, average
and schedule are the same code for all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .fixmatch import fixmatch
from .frozen_probe import frozen_probe
from .mean_teacher import mean_teacher
from .ours import consolidated, diffusion_first, joint, joint_consolidated
from .resnet import resnet, resnet_distilled
from .same_encoder import same_encoder, same_encoder_distilled
from .setting import Setting
from .task import Outcome


# Learning rates that are tried on the validation split, as many for each method that has one.
_CLASS_RATES, _POOL_RATES = (1e-3, 3e-3), (5e-4, 1e-3)
_FINE_TUNING_RATES = (1e-4, 3e-4)  # behind a head that knows something already


@dataclass(frozen=True)
class Method:
    """A row of the table.

    Args:
        train: the method.
        title: in the table.
        rates: learning rates to choose from.
        after: the method whose checkpoint it goes on from, which costs that one's time too.
        is_pretrained: whether it starts from the U-Net that was trained to denoise.
    """

    train: Callable[[Setting], Outcome]
    title: str
    rates: tuple[float, ...] = _CLASS_RATES
    after: str | None = None
    is_pretrained: bool = False


METHODS: dict[str, Method] = {
    "diffusion_first": Method(diffusion_first, "ours: diffusion, labels", _FINE_TUNING_RATES, is_pretrained=True),
    "consolidated": Method(
        consolidated, "ours: diffusion, labels, consolidation", _POOL_RATES, "diffusion_first", is_pretrained=True
    ),
    "same_encoder": Method(same_encoder, "same encoder, labels alone"),
    "resnet": Method(resnet, "ResNet, labels alone"),
    "resnet_distilled": Method(resnet_distilled, "ResNet, self-distilled on all images", _POOL_RATES, "resnet"),
    "same_encoder_distilled": Method(
        same_encoder_distilled, "same encoder, self-distilled on all images", _POOL_RATES, "same_encoder"
    ),
    "joint": Method(joint, "ours: diffusion, both losses", _FINE_TUNING_RATES, is_pretrained=True),
    "joint_consolidated": Method(
        joint_consolidated, "ours: diffusion, both losses, consolidation", _POOL_RATES, "joint", is_pretrained=True
    ),
    "mean_teacher": Method(mean_teacher, "Mean Teacher (ResNet)"),
    "fixmatch": Method(fixmatch, "FixMatch (ResNet)"),
    "frozen_probe": Method(frozen_probe, "frozen features, linear probe", (1.0,), is_pretrained=True),
}

__all__ = ["METHODS", "Method", "Outcome", "Setting"]
