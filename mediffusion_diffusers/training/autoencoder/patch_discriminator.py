"""The discriminator of the autoencoder's adversarial loss: which patches look real (paper App. C)."""

from __future__ import annotations

import math

import torch
from torch import nn


_MAX_WIDENING = 8


class PatchDiscriminator(nn.Module):
    """PatchGAN (Isola et al., 2017): a stack of 4x4 convolutions, one logit per overlapping patch.

    `num_layers` convolutions of stride 2 double the width each, up to eightfold, and two of stride 1 follow. Three
    layers see patches of 70x70 pixels. GroupNorm stands where the original has BatchNorm, so that an image's logits
    do not depend on the rest of the batch, nor on how the batch is spread over processes.

    Args:
        in_channels: channels of the images.
        base_channels: width of the first layer.
        num_layers: convolutions of stride 2, at least 1.
    """

    def __init__(self, in_channels: int, base_channels: int = 64, num_layers: int = 3):
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(in_channels, base_channels, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        width = base_channels
        for number in range(1, num_layers + 1):
            previous, width = width, base_channels * min(2**number, _MAX_WIDENING)
            stride = 2 if number < num_layers else 1
            layers.append(nn.Conv2d(previous, width, 4, stride=stride, padding=1, bias=False))
            layers.append(nn.GroupNorm(math.gcd(32, width), width))
            layers.append(nn.LeakyReLU(0.2))
        layers.append(nn.Conv2d(width, 1, 4, stride=1, padding=1))
        self.layers = nn.Sequential(*layers)
        for module in self.layers:
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits, `(batch, 1, rows, columns)`, of images `(batch, in_channels, height, width)` in [-1, 1]."""
        return self.layers(images)


def smallest_image(num_layers: int) -> int:
    """Side in pixels of the smallest image that a discriminator of `num_layers` gives a logit for."""
    return 3 * 2**num_layers
