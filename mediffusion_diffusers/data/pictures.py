"""Image files of any kind opened, and encoded as a prepared dataset stores them, without losing bit depth."""

from __future__ import annotations

import io
import os
import re
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from ..image_processor import float_strips, pil_to_tensor, upright
from ..item_boundary import reason
from .dicom import may_be_dicom, read_dicom


# Modes that need no conversion for 1 or 3 channels.
_STORED_MODES = {1: ("L", "I;16"), 3: ("RGB",)}
# Entries of `Image.info` that describe pixels. Files with others (text, EXIF, comments) are encoded anew without them.
_HARMLESS_INFO = {
    *("aspect", "chromaticity", "dpi", "gamma", "icc_profile", "interlace", "jfif", "jfif_density"),
    *("jfif_unit", "jfif_version", "progression", "progressive", "srgb"),
}


def open_image(path: str | os.PathLike[str], name: str | None = None) -> Image.Image:
    """Open an image file for a pipeline: a picture of any format Pillow reads, or a DICOM file.

    A file is DICOM by its suffix (`.dcm`, `.dicom`, `.ima`) or by its content, whatever it is called.

    Args:
        path: the file.
        name: what to call it in an error message; by default its path.

    Returns:
        An upright picture of one frame; of a DICOM file, grey of 16 bits and without any tag of the file.

    Raises:
        ValueError: naming the file, for what `open_picture` or [`~mediffusion_diffusers.data.read_dicom`] refuses.
        ImportError: for a DICOM file, if pydicom is not installed.

    Example:
        >>> output = pipe(open_image("chest.dcm"), away="Cardiomegaly")  # doctest: +SKIP
    """
    is_dicom = os.path.isfile(path) and may_be_dicom(path)
    return read_dicom(path, name) if is_dicom else open_picture(path, name)


def open_picture(picture: str | os.PathLike[str] | bytes, name: str | None = None) -> Image.Image:
    """Open and decode a picture, upright (EXIF orientation applied).

    Args:
        picture: a path, or the bytes of a file.
        name: what to call the picture in an error message; by default its path.

    Raises:
        ValueError: if the file does not exist, is no picture, or is corrupt or truncated.
    """
    name = name or ("the image" if isinstance(picture, bytes) else str(picture))
    try:
        image = Image.open(io.BytesIO(picture) if isinstance(picture, bytes) else picture)
    except FileNotFoundError as error:
        raise ValueError(f"The image file {name} does not exist.") from error
    except Image.DecompressionBombError as error:
        found, limit = (int(number) for number in re.findall(r"\d+", str(error))[:2])
        raise ValueError(
            f"{name} is too large: {found:,} pixels, of at most {limit:,} (twice `PIL.Image.MAX_IMAGE_PIXELS`). "
            "Reduce it first."
        ) from error
    except UnidentifiedImageError as error:  # its message holds the whole path
        raise ValueError(f"Cannot decode {name}: the file is corrupt or no picture.") from error
    except Exception as error:  # Pillow reads headers of many formats, and raises what their damage leads it to
        raise ValueError(f"Cannot decode {name}: the file is corrupt or no picture ({reason(error)}).") from error
    return upright(image, name)


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
    image = upright(picture, name) if isinstance(picture, Image.Image) else open_picture(picture, name)
    width, height = image.size
    shrink = 1.0 if image_size is None else min(1.0, image_size / min(width, height))
    if shrink == 1.0 and image.mode in _STORED_MODES[channels]:
        original = _unchanged_bytes(picture, image)
        return original if original is not None else encode_png(image)

    deep = image.mode.startswith("I") or image.mode == "F"
    dtype = np.uint16 if deep and channels == 1 else np.uint8
    if shrink < 1.0:
        size = (max(1, round(height * shrink)), max(1, round(width * shrink)))
        pixels = _quantized(pil_to_tensor(image, channels, *size).permute(1, 2, 0).numpy(), dtype)
    else:
        pixels = np.concatenate([_quantized(rows, dtype) for rows in float_strips(image, channels)])
    return encode_png(Image.fromarray(pixels[..., 0] if channels == 1 else pixels))


def _quantized(floats: np.ndarray, dtype: type[np.unsignedinteger]) -> np.ndarray:
    """Pixels in [0, 1] as whole numbers."""
    highest = float(np.iinfo(dtype).max)
    return (floats * highest).round().clip(0, highest).astype(dtype)


def encode_png(image: Image.Image) -> bytes:
    """The picture as PNG bytes, lossless and without any metadata."""
    buffer = io.BytesIO()
    clean = image.copy()
    clean.info = {}
    clean.save(buffer, format="PNG")
    return buffer.getvalue()


def _unchanged_bytes(picture: str | os.PathLike[str] | bytes | Image.Image, image: Image.Image) -> bytes | None:
    """The file's own bytes, if they may be stored as they are."""
    if isinstance(picture, Image.Image) or image.format not in ("PNG", "JPEG"):
        return None
    if set(image.info) - _HARMLESS_INFO or getattr(image, "private_chunks", None):
        return None
    segments = getattr(image, "applist", [])  # of a JPEG; those that Pillow does not know are in no `info`
    if any(name != "APP0" and not content.startswith((b"ICC_PROFILE\0", b"Adobe")) for name, content in segments):
        return None
    return picture if isinstance(picture, bytes) else Path(picture).read_bytes()
