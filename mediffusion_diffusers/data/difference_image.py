"""Signed difference maps as 16-bit grey PNG, and back."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from .pictures import encode_png


ZERO_LEVEL = 32768  # the grey level of "no change"
LEVELS_PER_UNIT = 32767  # so that -1, 0 and 1 are levels exactly
DIFFERENCE_PRECISION = 0.5 / LEVELS_PER_UNIT  # largest error of decode_difference(encode_difference(x))
ENCODING = f"(level - {ZERO_LEVEL}) / {LEVELS_PER_UNIT}, the channels of a colour image below one another"


def encode_difference(difference: np.ndarray) -> bytes:
    """Encode a difference as PNG: level = 32768 + round(32767 x), channels below one another.

    Args:
        difference: shape `(height, width, channels)`, in [-1, 1] (units of the full intensity range).

    Returns:
        A 16-bit grey PNG of `channels * height` rows. [`decode_difference`] gives the difference back to within
        `DIFFERENCE_PRECISION`, 1.6e-5; what lies outside [-1, 1] is clipped.
    """
    height, width, channels = difference.shape
    levels = np.rint(np.clip(difference, -1.0, 1.0).astype(np.float64) * LEVELS_PER_UNIT) + ZERO_LEVEL
    rows = levels.astype(np.uint16).transpose(2, 0, 1).reshape(channels * height, width)
    return encode_png(Image.fromarray(np.ascontiguousarray(rows)))


def decode_difference(picture: bytes | Image.Image, channels: int = 1) -> np.ndarray:
    """The difference in a picture of [`encode_difference`].

    Args:
        picture: the PNG, or the picture as `datasets` decodes it.
        channels: 1 (grey) or 3 (RGB), that of the explained images.

    Returns:
        Shape `(height, width, channels)`, float32 in [-1, 1].

    Raises:
        ValueError: if the number of rows is no multiple of `channels`.
    """
    image = Image.open(io.BytesIO(picture)) if isinstance(picture, bytes) else picture
    levels = np.asarray(image).astype(np.float32)
    if len(levels) % channels:
        raise ValueError(f"`channels` must divide the picture's {len(levels)} rows, but got {channels}.")
    planes = levels.reshape(channels, len(levels) // channels, levels.shape[1])
    return (planes.transpose(1, 2, 0) - ZERO_LEVEL) / LEVELS_PER_UNIT
