"""Parameter groups: the U-Net's trunk and the classifier's head, each with its own learning rate."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ...models import JointUNet2DModel


def joint_parameter_groups(
    unet: JointUNet2DModel, learning_rate: float, classifier_learning_rate: float
) -> list[dict[str, Any]]:
    """Put every parameter in exactly one group (App. D gives the head a rate of its own).

    Args:
        unet: the joint model.
        learning_rate: rate of the trunk: encoder and decoder.
        classifier_learning_rate: rate of the head.

    Returns:
        Two groups for an optimizer, with `name` and `initial_lr` beside `params` and `lr`.
    """
    head = list(unet.classifier.parameters())
    in_head = {id(parameter) for parameter in head}
    trunk = [parameter for parameter in unet.parameters() if id(parameter) not in in_head]
    return [
        {"name": "unet", "params": trunk, "lr": learning_rate, "initial_lr": learning_rate},
        {
            "name": "classifier",
            "params": head,
            "lr": classifier_learning_rate,
            "initial_lr": classifier_learning_rate,
        },
    ]


def build_adamw(
    groups: list[dict[str, Any]],
    betas: tuple[float, float] = (0.9, 0.999),
    weight_decay: float = 1e-2,
    eps: float = 1e-8,
) -> torch.optim.AdamW:
    """AdamW over parameter groups. A parameter without gradient is left alone, by its weight decay too."""
    devices = {parameter.device.type for group in groups for parameter in group["params"]}
    return torch.optim.AdamW(groups, betas=betas, weight_decay=weight_decay, eps=eps, fused=devices <= {"cpu", "cuda"})


def count_parameters(module: nn.Module) -> int:
    """Number of scalars in a module's parameters."""
    return sum(parameter.numel() for parameter in module.parameters())
