"""Reading one DICOM image as a picture, as a viewer would first show it.

Needs `pydicom` (`pip install "mediffusion-diffusers[dicom]"`).
"""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ...item_boundary import reading, reason
from .grey_scale import GreyScale
from .identity import without_warnings
from .tags import tag_number, tag_numbers, tag_text, tag_value


if TYPE_CHECKING:
    from pydicom import Dataset


_QUOTED = re.compile(r"""b?'(?:[^'\\]|\\.)*'|b?"(?:[^"\\]|\\.)*\"""")
_GREY = ("MONOCHROME1", "MONOCHROME2")
_SUFFIXES = (".dcm", ".dicom", ".ima")


def may_be_dicom(path: str | os.PathLike[str]) -> bool:
    """Whether a file is DICOM by its suffix, or by the mark after the preamble.

    One that cannot be opened may be, and is reported when it is read.
    """
    path = Path(path)
    if path.suffix.lower() in _SUFFIXES:
        return True
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return True


@without_warnings()
def read_dicom(path: str | os.PathLike[str], name: str | None = None) -> Image.Image:
    """Read a single-frame grey DICOM image.

    Stored values go through the modality transform, then the (first usable) VOI lookup table or window, and are
    scaled by *its* range, so that the same grey means the same value in every image of a study; without either they
    are scaled by their smallest and largest value. MONOCHROME1 is inverted on the same range: bright is dense in
    every picture. Padding and pixels that are not finite become black. See `GreyScale`.

    Args:
        path: a DICOM file.
        name: what to call the file in an error message; by default its path.

    Returns:
        A picture of mode "I;16" (0 to 65,535), without any tag of the file.

    Raises:
        ValueError: naming the file, if it is no DICOM image, has several frames or colour, or cannot be decoded.
        ImportError: if pydicom is not installed.
    """
    name = name or str(path)
    check_single_grey_frame(read_header(path, name), name)
    dataset = _dcmread(path, name)
    stored = _stored_values(dataset, name)
    with reading(f"apply the grey-scale transforms of {name}"):
        return Image.fromarray(GreyScale.of(dataset).to_levels(stored))


@without_warnings()
def read_header(path: str | os.PathLike[str], name: str | None = None) -> Dataset:
    """Read the tags of a DICOM file, without its pixels.

    Raises:
        ValueError: if the file does not exist or is no DICOM file.
        ImportError: if pydicom is not installed.
    """
    return _dcmread(path, name or str(path), stop_before_pixels=True)


def check_single_grey_frame(header: Dataset, name: str) -> None:
    """Refuse what is not one grey picture.

    Raises:
        ValueError: naming the file and what it holds instead.
    """
    if "Rows" not in header or "Columns" not in header:
        raise ValueError(f"{name} holds no image ({_describe(header)}).")
    rows, columns = (_count(header, keyword, name, default=0) for keyword in ("Rows", "Columns"))
    if rows == 0 or columns == 0:
        raise ValueError(f"{name} holds no image: it has {rows} rows and {columns} columns.")
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and rows * columns > 2 * limit:
        raise ValueError(f"{name} is too large: {rows * columns:,} pixels, of at most {2 * limit:,}.")
    frames = _count(header, "NumberOfFrames", name)
    if frames > 1:
        raise ValueError(
            f"{name} holds {frames} frames, but one is expected. Export the frames that you want as single files."
        )
    samples = _count(header, "SamplesPerPixel", name)
    photometric = tag_text(header, "PhotometricInterpretation").upper()
    if not photometric:
        raise ValueError(f"{name} does not say whether black is low or high (it has no PhotometricInterpretation).")
    if samples > 1 or photometric not in _GREY:
        raise ValueError(
            f"{name} is a colour image (PhotometricInterpretation {photometric}, SamplesPerPixel {samples}), but a "
            "grey one (MONOCHROME1 or MONOCHROME2) is expected. Convert it to PNG and use the image folder converter."
        )


def _count(header: Dataset, keyword: str, name: str, default: int = 1) -> int:
    """A tag that counts something; absent, empty or 0 is the default, and a value that is repeated is one value."""
    values = set(tag_numbers(header, keyword))
    if not values:
        return default
    value = values.pop()
    if values or not (math.isfinite(value) and value >= 0 and value == int(value)):
        raise ValueError(f"The tag {keyword} of {name} must be one whole number, but cannot be read as one.")
    return int(value) or default


def _stored_values(dataset: Dataset, name: str) -> np.ndarray:
    """The pixels as they are stored, shape `(rows, columns)`."""
    if not any(keyword in dataset for keyword in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise ValueError(f"{name} holds no pixels ({_describe(dataset)}).")
    _check_decoder(dataset, name)
    with reading(f"decode the pixels of {name}"):
        # Checked above; pydicom wants each of them as one value, and in upper case.
        dataset.PhotometricInterpretation = tag_text(dataset, "PhotometricInterpretation").upper()
        dataset.SamplesPerPixel = 1
        if "NumberOfFrames" in dataset:
            dataset.NumberOfFrames = 1
        unused = _use_bits_up_to_the_high_one(dataset)
        stored = dataset.pixel_array
        stored = stored >> unused if unused else stored
    if stored.ndim != 2 or stored.size == 0:
        raise ValueError(f"{name} must hold one grey frame, but its pixels have the shape {stored.shape}.")
    return stored


def _use_bits_up_to_the_high_one(dataset: Dataset) -> int:
    """Where values do not begin at the lowest bit (retired, PS3.5 8.1.1), the number of bits below them.

    pydicom keeps the lowest BitsStored bits; with these counted as stored it keeps the values, to be shifted down.
    """
    allocated, stored, high = (tag_number(dataset, tag) for tag in ("BitsAllocated", "BitsStored", "HighBit"))
    if allocated is None or stored is None or high is None or not stored <= high < allocated:
        return 0
    if "PixelData" not in dataset or dataset.file_meta.TransferSyntaxUID.is_compressed:
        return 0
    dataset.BitsStored = int(high) + 1
    return int(high + 1 - stored)


def _check_decoder(dataset: Dataset, name: str) -> None:
    """Say what to install where no decoder for the pixels is."""
    from pydicom.pixels import get_decoder

    syntax = tag_value(dataset.file_meta, "TransferSyntaxUID") if hasattr(dataset, "file_meta") else None
    if syntax is None:
        raise ValueError(f"{name} does not say how its pixels are stored (it has no TransferSyntaxUID).")
    try:
        decoder = get_decoder(syntax)
    except (NotImplementedError, ValueError) as error:
        raise ValueError(f"The pixels of {name} are stored as {syntax.name}, which cannot be decoded.") from error
    if not decoder.is_available:
        options = "; or ".join(decoder.missing_dependencies)
        raise ValueError(
            f"The pixels of {name} are compressed as {syntax.name}, and no decoder is installed: {options}. Install "
            "one of them with pip, or decompress the files first."
        )


def _dcmread(path: str | os.PathLike[str], name: str, **kwargs: Any) -> Dataset:
    try:
        import pydicom
    except ImportError as error:
        raise ImportError('Reading DICOM needs pydicom: pip install "mediffusion-diffusers[dicom]".') from error
    if not Path(path).is_file():
        raise ValueError(f"The DICOM file {name} does not exist.")
    try:
        return pydicom.dcmread(path, **kwargs)
    except pydicom.errors.InvalidDicomError as error:
        raise ValueError(f"{name} is no readable DICOM file: it lacks the mark DICM.") from error
    except Exception as error:  # EOFError, struct.error, zlib.error, RecursionError and others on damaged files
        said = _QUOTED.sub("...", reason(error))  # it may quote what the file says of the patient
        raise ValueError(f"{name} is no readable DICOM file: {said}") from error


def _describe(header: Dataset) -> str:
    uid = tag_value(header, "SOPClassUID")
    return f"its kind is {uid.name}" if hasattr(uid, "name") else "it does not say its kind"
