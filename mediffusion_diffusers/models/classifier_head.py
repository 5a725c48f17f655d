"""The classifier's head: from pooled features to logits."""

from __future__ import annotations

import torch
from torch import nn


NORM_TYPES = ("batch_norm",)
# How fast the running statistics follow: a class stage on few labels has some hundred steps.
_BATCH_NORM_MOMENTUM = 0.05


def classifier_head(
    num_features: int, num_labels: int, hidden_size: int, dropout: float = 0.0, norm_type: str | None = None
) -> nn.Sequential:
    """A two-layer MLP with LeakyReLU(0.2) (paper Sec. 3.2 and App. B), or one linear layer.

    The dropout before each linear layer is in the paper's authors' code only; the linear layer alone, which starts at
    zero so that no feature is preferred, and the normalisation are ours.

    Args:
        num_features: length of the pooled features.
        num_labels: number of logits.
        hidden_size: width of the hidden layer; 0 for one linear layer.
        dropout: before each linear layer, in [0, 1).
        norm_type: `"batch_norm"` standardises each feature first, without weights of its own; `None` does not.

    Returns:
        Modules in the order in which they are called.
    """
    layers: list[nn.Module] = []
    if norm_type == "batch_norm":
        layers.append(nn.BatchNorm1d(num_features, affine=False, momentum=_BATCH_NORM_MOMENTUM))
    layers.append(nn.Dropout(dropout))
    if hidden_size == 0:
        last = nn.Linear(num_features, num_labels)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        return nn.Sequential(*layers, last)
    layers += [nn.Linear(num_features, hidden_size), nn.LeakyReLU(0.2), nn.Dropout(dropout)]
    return nn.Sequential(*layers, nn.Linear(hidden_size, num_labels))


def hold_statistics(head: nn.Module, are_held: bool) -> None:
    """Let the head standardise by its running statistics, which then stay as they are, or by those of each batch."""
    for module in head.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.train(not are_held)


@torch.no_grad()
def standardise_by(head: nn.Module, mean: torch.Tensor, std: torch.Tensor) -> bool:
    """Give the head's normalisation these running statistics, each `(num_features,)`; False if it has none."""
    layers = [module for module in head.modules() if isinstance(module, nn.BatchNorm1d)]
    for layer in layers:
        assert layer.running_mean is not None and layer.running_var is not None
        layer.running_mean.copy_(mean)
        layer.running_var.copy_(std.square())
    return bool(layers)
