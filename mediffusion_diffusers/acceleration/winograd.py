"""3x3 convolutions with a quarter of the multiplications: Winograd's minimal filtering, out of matrix products.

A tile of m x m outputs takes (m + 2)^2 multiplications per pair of channels instead of 9 m^2 (Lavin and Gray, "Fast
Algorithms for Convolutional Neural Networks", 2016, Eq. 8):

    Y = A^T [(G g G^T) * (B^T d B)] A

with the kernel g, the input tile d of side m + 2 and an elementwise product, which over all channels and tiles is one
matrix product for each of the (m + 2)^2 places.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch


# Where the polynomials are evaluated, beside infinity. Reciprocal pairs keep the rounding errors of m = 4 within four
# times those of a direct sum.
POINTS: dict[int, tuple[float, ...]] = {2: (0, 1, -1), 4: (0, 1, -1, 0.5, -2)}

# Tiles times channels that are worked on at once: as large as stays in a core's cache, but enough tiles to be worth
# the reading of the kernels.
_BLOCK_SIZE = 2**15
_MIN_TILES = 64


def winograd_matrices(points: Sequence[float], output_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The transforms of one dimension, `y = A^T [(G g) * (B^T d)]`, for kernels of length 3 (Toom-Cook).

    Args:
        points: m + 1 distinct numbers.
        output_size: m.

    Returns:
        A^T of shape `(m, m + 2)`, G of shape `(m + 2, 3)`, B^T of shape `(m + 2, m + 2)`.
    """
    size = output_size + 2
    a_t, g, b_t = np.zeros((output_size, size)), np.zeros((size, 3)), np.zeros((size, size))
    for index, point in enumerate(points):
        others = [other for other in points if other != point]
        a_t[:, index] = point ** np.arange(output_size, dtype=float)
        g[index] = point ** np.arange(3, dtype=float) / np.prod([point - other for other in others])
        b_t[index, : size - 1] = np.poly(others)[::-1]
    a_t[-1, -1] = g[-1, -1] = 1  # the point at infinity
    b_t[-1] = np.poly(points)[::-1]
    return a_t, g, b_t


class WinogradKernel:
    """A 3x3 convolution of stride 1 with its kernels transformed once.

    Args:
        weight: shape `(out_channels, in_channels, 3, 3)`.
        padding: zeros around the input, along height and width.
        tile_size: m, a key of `POINTS`; height and width of the output must be multiples of it.
    """

    def __init__(self, weight: torch.Tensor, padding: Sequence[int], tile_size: int):
        a_t, g, b_t = (torch.from_numpy(matrix) for matrix in winograd_matrices(POINTS[tile_size], tile_size))
        self.padding, self.tile_size, self.size = tuple(padding), tile_size, tile_size + 2
        # In both dimensions at once: kron(B^T, B^T) takes a whole flattened tile.
        self.input_transform = torch.kron(b_t, b_t).to(weight.dtype)
        self.output_transform = torch.kron(a_t, a_t).to(weight.dtype)
        out_channels, in_channels = weight.shape[:2]
        kernels = torch.kron(g, g) @ weight.double().reshape(out_channels * in_channels, 9).T
        kernels = kernels.reshape(self.size**2, out_channels, in_channels).transpose(1, 2)
        self.weight = kernels.to(weight.dtype).contiguous()

    def __call__(self, input: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """Convolve.

        Args:
            input: shape `(batch, in_channels, height, width)`.
            bias: shape `(out_channels,)`.

        Returns:
            Shape `(batch, out_channels, ...)` in channels-last layout.
        """
        tile, size, (num_places, in_channels, out_channels) = self.tile_size, self.size, self.weight.shape
        batch = len(input)
        padded = self._pad(input)
        rows, columns = (padded.shape[1] - 2) // tile, (padded.shape[2] - 2) // tile
        output = input.new_empty(batch, rows, tile, columns, tile, out_channels)

        images_at_once, rows_at_once = _block(batch, rows, columns, max(_BLOCK_SIZE // in_channels, _MIN_TILES))
        num_tiles = images_at_once * rows_at_once * columns
        gathered = input.new_empty(size, size, images_at_once, rows_at_once, columns, in_channels)
        transformed = input.new_empty(num_places, num_tiles * in_channels)
        products = input.new_empty(num_places, num_tiles, out_channels)
        tiles = input.new_empty(tile**2, num_tiles * out_channels)
        strides = padded.stride()
        for image in range(0, batch, images_at_once):
            for row in range(0, rows, rows_at_once):
                windows = padded[image:, row * tile :].as_strided(
                    gathered.shape,
                    (strides[1], strides[2], strides[0], strides[1] * tile, strides[2] * tile, 1),
                )
                torch.mm(self.input_transform, gathered.copy_(windows).view(num_places, -1), out=transformed)
                torch.bmm(transformed.view(num_places, num_tiles, in_channels), self.weight, out=products)
                torch.mm(self.output_transform, products.view(num_places, -1), out=tiles)
                place = output[image : image + images_at_once, row : row + rows_at_once]
                finished = tiles.view(tile, tile, *gathered.shape[2:5], out_channels).permute(2, 3, 0, 4, 1, 5)
                if bias is None:
                    place.copy_(finished)
                else:
                    torch.add(finished, bias, out=place)
        return output.view(batch, rows * tile, columns * tile, out_channels).permute(0, 3, 1, 2)

    def _pad(self, input: torch.Tensor) -> torch.Tensor:
        """The input in channels-last order with zeros around it: `(batch, height, width, in_channels)`."""
        batch, channels, height, width = input.shape
        top, left = self.padding
        padded = input.new_empty(batch, height + 2 * top, width + 2 * left, channels)
        padded[:, top : top + height, left : left + width] = input.permute(0, 2, 3, 1)
        for border in (padded[:, :top], padded[:, top + height :], padded[:, :, :left], padded[:, :, left + width :]):
            border.zero_()
        return padded


def _block(batch: int, rows: int, columns: int, max_tiles: int) -> tuple[int, int]:
    """How many images, or rows of tiles of one image, to work on at once; both divide what there is."""
    if rows * columns <= max_tiles:
        return _largest_divisor(batch, max_tiles // (rows * columns)), rows
    return 1, _largest_divisor(rows, max_tiles // columns)


def _largest_divisor(number: int, limit: int) -> int:
    """The largest divisor up to a limit, at least 1."""
    return max(divisor for divisor in range(1, max(min(number, limit), 1) + 1) if number % divisor == 0)
