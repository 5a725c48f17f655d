"""From the encoder's feature maps to the vector that the classifier reads (paper Sec. 3.2 and 4)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F


POOL_TYPES = ("avg", "avg_std")
_EPSILON = 1e-6  # keeps the gradient of a root finite where a map is constant


def num_pooled_features(channels: Sequence[int], pool_size: int, pool_type: str) -> int:
    """Length of the vector that `pool_maps` makes of maps with these channels."""
    return sum(channels) * (pool_size**2 + (pool_type == "avg_std"))


def pool_maps(maps: Sequence[torch.Tensor], pool_size: int, pool_type: str) -> torch.Tensor:
    """Pool every map and concatenate.

    Args:
        maps: shape `(batch, channels, height, width)` each; a `device_map` may have spread them over devices.
        pool_size: bins per side of which each map's means are taken; 1 is global average pooling.
        pool_type: `"avg"` is the means alone, `"avg_std"` also each whole map's standard deviation, after all means.

    Returns:
        Shape `(batch, num_pooled_features(...))`, on the last map's device.
    """
    device = maps[-1].device
    if pool_size == 1:
        pooled = [features.mean(dim=(2, 3)) for features in maps]
    else:
        pooled = [F.adaptive_avg_pool2d(features, pool_size).flatten(1) for features in maps]
    if pool_type == "avg_std":
        pooled += [(features.var(dim=(2, 3), correction=0) + _EPSILON).sqrt() for features in maps]
    return torch.cat([features.to(device) for features in pooled], dim=1)
