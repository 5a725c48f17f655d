"""From a decoded picture to a training example, with augmentations that are deterministic given a generator."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from ..image_processor import normalize, pil_to_float_array, pil_to_tensor, resize


# Range of the width/height ratio of a random crop, relative to the image's own.
_CROP_RATIO = (3 / 4, 4 / 3)


@dataclass(frozen=True)
class ImageTransform:
    """Read a picture as the pipelines do, and vary it at random while training.

    Without a generator this is `MediffusionImageProcessor.preprocess` for one image. With one, in this order: random
    crop, resize, rotation, shift, horizontal flip, brightness and contrast, colours. A flip moves the heart to the
    other side: leave `horizontal_flip` off for chest radiographs, switch it on for skin, which may lie at any angle.

    Args:
        resolution: height and width of the result in pixels.
        channels: 1 (grey) or 3 (RGB).
        crop_scale: smallest and largest share of the image's area that a random crop keeps, each in (0, 1]; None for
            no crop.
        horizontal_flip: mirror every second image, on average.
        shift: largest shift in pixels of the result, in each direction; the border is repeated.
        intensity: largest relative change of the contrast, and largest change of the brightness as a share of the
            value range; in [0, 1).
        rotation: largest angle in degrees, in either direction, in [0, 180]; what turns in from outside is the
            image mirrored at its border.
        color_jitter: largest relative change of the contrast about each channel's mean, of the brightness and of the
            saturation; the white balance changes by a third of it. In [0, 1).

    Raises:
        ValueError: for a value outside the ranges above.
    """

    resolution: int
    channels: int
    crop_scale: tuple[float, float] | None = None
    horizontal_flip: bool = False
    shift: int = 0
    intensity: float = 0.0
    rotation: float = 0.0
    color_jitter: float = 0.0

    def __post_init__(self) -> None:
        if self.resolution < 1:
            raise ValueError(f"`resolution` must be at least 1 pixel, but got {self.resolution}.")
        if self.channels not in (1, 3):
            raise ValueError(f"`channels` must be 1 (grey) or 3 (RGB), but got {self.channels}.")
        if self.crop_scale is not None and not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ValueError(
                "`crop_scale` must be None or (smallest, largest) with 0 < smallest <= largest <= 1, but got "
                f"{self.crop_scale}."
            )
        if not 0 <= self.shift < self.resolution:
            raise ValueError(f"`shift` must be in [0, {self.resolution}) pixels, but got {self.shift}.")
        if not 0 <= self.intensity < 1:
            raise ValueError(f"`intensity` must be in [0, 1), but got {self.intensity}.")
        if not 0 <= self.rotation <= 180:
            raise ValueError(f"`rotation` must be in [0, 180] degrees, but got {self.rotation}.")
        if not 0 <= self.color_jitter < 1:
            raise ValueError(f"`color_jitter` must be in [0, 1), but got {self.color_jitter}.")

    def __call__(self, image: Image.Image, rng: np.random.Generator | None = None) -> torch.Tensor:
        """Transform one picture.

        Args:
            image: a picture of any mode that `pil_to_float_array` reads.
            rng: source of all randomness; None for no augmentation (evaluation).

        Returns:
            float32 of shape `(channels, resolution, resolution)` in [-1, 1].
        """
        size = (self.resolution, self.resolution)
        if rng is None:
            return normalize(pil_to_tensor(image, self.channels, *size))
        if self.crop_scale is None:
            pixels = pil_to_tensor(image, self.channels, *size)[None]
        else:
            array = np.ascontiguousarray(pil_to_float_array(image, self.channels))
            pixels = resize(_random_crop(torch.from_numpy(array).permute(2, 0, 1)[None], self.crop_scale, rng), *size)
        if self.rotation:
            pixels = rotate(pixels, rng.uniform(-self.rotation, self.rotation))
        if self.shift:
            pixels = _random_shift(pixels, self.shift, rng)
        if self.horizontal_flip and rng.random() < 0.5:
            pixels = pixels.flip(-1)
        if self.intensity:
            contrast, brightness = rng.uniform(-self.intensity, self.intensity, size=2)
            pixels = ((pixels - 0.5) * (1.0 + contrast) + 0.5 + brightness).clamp(0.0, 1.0)
        if self.color_jitter:
            pixels = _random_colors(pixels, self.color_jitter, rng)
        return normalize(pixels)[0].contiguous()


def _random_crop(pixels: torch.Tensor, scale: tuple[float, float], rng: np.random.Generator) -> torch.Tensor:
    """Keep a rectangle of random area, aspect ratio and place. `pixels`: `(1, channels, height, width)`."""
    height, width = pixels.shape[-2:]
    area = rng.uniform(*scale)
    stretch = math.exp(rng.uniform(*np.log(_CROP_RATIO)))
    crop_height = min(height, max(1, round(height * math.sqrt(area / stretch))))
    crop_width = min(width, max(1, round(width * math.sqrt(area * stretch))))
    top = int(rng.integers(height - crop_height + 1))
    left = int(rng.integers(width - crop_width + 1))
    return pixels[..., top : top + crop_height, left : left + crop_width]


def rotate(pixels: torch.Tensor, degrees: float) -> torch.Tensor:
    """Turn the content about the centre; what turns in from outside is the image mirrored at its border.

    Args:
        pixels: shape `(batch, channels, side, side)`.
        degrees: the angle, clockwise.

    Returns:
        Same shape, interpolated linearly.
    """
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    turn = pixels.new_tensor([[cosine, sine, 0.0], [-sine, cosine, 0.0]]).expand(len(pixels), 2, 3)
    grid = F.affine_grid(turn, list(pixels.shape), align_corners=False)
    return F.grid_sample(pixels, grid, padding_mode="reflection", align_corners=False)


def _random_colors(pixels: torch.Tensor, jitter: float, rng: np.random.Generator) -> torch.Tensor:
    """Vary contrast, brightness, saturation and white balance. `pixels`: `(1, channels, height, width)` in [0, 1]."""
    contrast, brightness, saturation = 1.0 + rng.uniform(-jitter, jitter, size=3)
    mean = pixels.mean(dim=(2, 3), keepdim=True)
    pixels = (pixels - mean) * contrast + mean * brightness
    if pixels.shape[1] == 3:
        gains = 1.0 + rng.uniform(-jitter / 3, jitter / 3, size=3)
        grey = pixels.mean(dim=1, keepdim=True)
        pixels = ((pixels - grey) * saturation + grey) * pixels.new_tensor(gains).view(1, 3, 1, 1)
    return pixels.clamp(0.0, 1.0)


def _random_shift(pixels: torch.Tensor, shift: int, rng: np.random.Generator) -> torch.Tensor:
    """Move the content by up to `shift` pixels, repeating the border. `pixels`: `(1, channels, height, width)`."""
    height, width = pixels.shape[-2:]
    top, left = (int(value) for value in rng.integers(0, 2 * shift + 1, size=2))
    return F.pad(pixels, (shift,) * 4, mode="replicate")[..., top : top + height, left : left + width]
