"""From a picture file of any kind to the bytes that a prepared dataset stores, without losing bit depth."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from ..image_processor import pil_to_float_array, resize


# Modes that need no conversion for 1 or 3 channels.
_STORED_MODES = {1: ("L", "I;16"), 3: ("RGB",)}
# Entries of `Image.info` that describe pixels. Files with others (text, EXIF, comments) are encoded anew without them.
_HARMLESS_INFO = {
    *("aspect", "chromaticity", "dpi", "gamma", "icc_profile", "interlace", "jfif", "jfif_density"),
    *("jfif_unit", "jfif_version", "progression", "progressive", "srgb"),
}


def open_picture(picture: str | os.PathLike[str] | bytes, name: str | None = None) -> Image.Image:
    """Open and decode a picture, upright (EXIF orientation applied).

    Args:
        picture: a path, or the bytes of a file.
        name: what to call the picture in an error message; by default its path.

    Raises:
        ValueError: if the file does not exist, is no picture, or is corrupt or truncated.
    """
    is_bytes = isinstance(picture, bytes)
    name = name or ("the image" if is_bytes else str(picture))
    try:
        image: Image.Image = Image.open(io.BytesIO(picture) if isinstance(picture, bytes) else picture)
        image.load()
    except FileNotFoundError as error:
        raise ValueError(f"The image file {name} does not exist.") from error
    # Pillow's decoders raise many types on damaged files (OSError, SyntaxError, ValueError, EOFError, struct.error).
    except Exception as error:
        raise ValueError(f"Cannot decode {name}: the file is corrupt, truncated or no picture ({error}).") from error
    if getattr(image, "n_frames", 1) > 1:
        raise ValueError(f"{name} holds {image.n_frames} frames, but one frame is expected.")  # type: ignore[attr-defined]
    if image.getexif().get(0x0112, 1) != 1:  # the tag "Orientation"; 1 is upright
        image = ImageOps.exif_transpose(image)
    return image


def encode_picture(
    picture: str | os.PathLike[str] | bytes | Image.Image,
    channels: int,
    image_size: int | None = None,
    name: str | None = None,
) -> bytes:
    """Encode a picture for storage: `channels` channels, 8 bit, or 16 bit where a grey source has more than 8.

    A PNG or JPEG that needs no change keeps its bytes; anything else becomes a PNG. Values are never clipped. Text,
    EXIF and comments, where personal data may hide, are not kept.

    Args:
        picture: a path, the bytes of a file, or a decoded picture.
        channels: 1 (grey) or 3 (RGB).
        image_size: reduce larger images until their shorter side has this many pixels; the aspect ratio is kept,
            smaller images are left alone.
        name: what to call the picture in an error message.

    Raises:
        ValueError: if the picture cannot be decoded, has several frames, or values outside the range of its mode.
    """
    image = picture if isinstance(picture, Image.Image) else open_picture(picture, name)
    width, height = image.size
    shrink = 1.0 if image_size is None else min(1.0, image_size / min(width, height))
    if shrink == 1.0 and image.mode in _STORED_MODES[channels]:
        original = _unchanged_bytes(picture, image)
        return original if original is not None else encode_png(image)

    floats = pil_to_float_array(image, channels)
    if shrink < 1.0:
        size = (max(1, round(height * shrink)), max(1, round(width * shrink)))
        tensor = torch.from_numpy(np.ascontiguousarray(floats)).permute(2, 0, 1)[None]
        floats = resize(tensor, *size)[0].permute(1, 2, 0).numpy()
    deep = image.mode.startswith("I") or image.mode == "F"
    dtype = np.uint16 if deep and channels == 1 else np.uint8
    pixels = (floats * float(np.iinfo(dtype).max)).round().clip(0, np.iinfo(dtype).max).astype(dtype)
    return encode_png(Image.fromarray(pixels[..., 0] if channels == 1 else pixels))


def encode_png(image: Image.Image) -> bytes:
    """The picture as PNG bytes, lossless and without any metadata."""
    buffer = io.BytesIO()
    clean = image.copy()
    clean.info = {}
    clean.save(buffer, format="PNG")
    return buffer.getvalue()


def _unchanged_bytes(picture: str | os.PathLike[str] | bytes | Image.Image, image: Image.Image) -> bytes | None:
    """The file's own bytes, if they may be stored as they are."""
    if isinstance(picture, Image.Image) or image.format not in ("PNG", "JPEG") or set(image.info) - _HARMLESS_INFO:
        return None
    return picture if isinstance(picture, bytes) else Path(picture).read_bytes()
