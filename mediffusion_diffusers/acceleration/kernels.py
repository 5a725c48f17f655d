"""Ways to compute a convolution whose weight has been prepared, and which of them a shape is best served by."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import prod
from typing import NamedTuple

import torch

from .winograd import POINTS, WinogradKernel


# What a call costs, in multiplications of a core with AVX-512: each weight read from memory; each weight that eager
# convolutions pack anew at every call; each number that Winograd's transforms move; each call of a kind.
WEIGHT_COST, REPACKING_COST, MOVING_COST = 48, 160, 15
CALL_COSTS = {"eager": 1e6, "direct": 1e7, "winograd": 2e7}

# `(input, bias)` to output.
Kernel = Callable[[torch.Tensor, "torch.Tensor | None"], torch.Tensor]


class Geometry(NamedTuple):
    """How a convolution moves over the image, along height and width."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]

    def output_size(self, image_size: tuple[int, ...], kernel_size: tuple[int, ...]) -> tuple[int, ...]:
        """Height and width of the output."""
        sizes = zip(image_size, kernel_size, *self, strict=True)
        return tuple((size + 2 * p - d * (k - 1) - 1) // s + 1 for size, k, s, p, d in sizes)


class DirectKernel:
    """oneDNN's convolution, its weight in the blocked layout that oneDNN reads.

    Args:
        weight: shape `(out_channels, in_channels, height, width)`.
        geometry: of the convolution.
        input_shape: which layout is best depends on it; any other works.
    """

    def __init__(self, weight: torch.Tensor, geometry: Geometry, input_shape: torch.Size):
        self.stride, self.padding, self.dilation = geometry
        self.weight = torch.ops.mkldnn._reorder_convolution_weight(
            weight, self.padding, self.stride, self.dilation, 1, list(input_shape)
        )

    def __call__(self, input: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """Convolve; the result has channels-last layout."""
        place = (self.padding, self.stride, self.dilation)
        return torch.ops.mkldnn._convolution_pointwise(input, self.weight, bias, *place, 1, "none", [], "")


def prepare_kernels(
    weight: torch.Tensor, geometry: Geometry, input_shape: torch.Size, winograd: bool
) -> Iterator[tuple[str, Callable[[], Kernel]]]:
    """Kernels that should beat the eager convolution, the fastest first.

    The order follows from the shape alone, so that the same call always takes the same kernel.

    Args:
        weight: shape `(out_channels, in_channels, height, width)`.
        geometry: of the convolution.
        input_shape: of its input.
        winograd: whether to consider [`WinogradKernel`].

    Yields:
        Name of a kernel, and a function that makes it.
    """
    out_channels, in_channels, *kernel_size = weight.shape
    output_size = geometry.output_size(tuple(input_shape[2:]), tuple(kernel_size))
    num_products = input_shape[0] * prod(output_size) * weight.numel()
    costs = {
        "eager": num_products + REPACKING_COST * weight.numel() + CALL_COSTS["eager"],
        "direct": num_products + WEIGHT_COST * weight.numel() + CALL_COSTS["direct"],
    }
    makers: dict[str, Callable[[], Kernel]] = {"direct": lambda: DirectKernel(weight, geometry, input_shape)}
    if winograd and tuple(kernel_size) == (3, 3) and geometry.stride == geometry.dilation == (1, 1):
        for tile_size in POINTS:
            if any(size % tile_size for size in output_size):
                continue
            num_places, num_tiles = (tile_size + 2) ** 2, input_shape[0] * prod(output_size) // tile_size**2
            transforms = num_places * in_channels + tile_size**2 * out_channels
            name = f"winograd {tile_size}"
            costs[name] = CALL_COSTS["winograd"] + num_places * (
                (num_tiles + WEIGHT_COST) * in_channels * out_channels
                + num_tiles * (transforms + MOVING_COST * (in_channels + out_channels))
            )
            makers[name] = lambda tile_size=tile_size: WinogradKernel(  # type: ignore[misc]
                weight, geometry.padding, tile_size
            )
    for name in sorted(costs, key=lambda name: costs[name]):
        if name == "eager":
            return
        yield name, makers[name]
