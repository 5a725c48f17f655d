"""Reading one DICOM image as a picture, as a viewer would first show it.

The steps and formulas are those of the DICOM standard, PS3.3 C.11.1 (modality) and C.11.2 (values of interest).
Needs `pydicom` (`pip install "mediffusion-diffusers[dicom]"`).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image


if TYPE_CHECKING:
    from pydicom import Dataset


_GREY = ("MONOCHROME1", "MONOCHROME2")


def read_dicom(path: str | os.PathLike[str], name: str | None = None) -> Image.Image:
    """Read a single-frame grey DICOM image.

    Stored values go through the modality transform, then the (first) VOI lookup table or window, and are scaled by
    *its* range, so that the same grey means the same value in every image of a study; without either they are scaled
    by their smallest and largest value. MONOCHROME1 is inverted on the same range: bright is dense in every picture.
    Padding becomes black.

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
    try:
        stored = dataset.pixel_array
    # pydicom's decoders raise many types (RuntimeError without a plugin, ValueError, AttributeError, struct.error).
    except Exception as error:
        raise ValueError(f"Cannot decode the pixels of {name}: {error}") from error
    if stored.ndim != 2:
        raise ValueError(f"{name} must hold one grey frame, but its pixels have the shape {stored.shape}.")

    padding = _padding_mask(stored, dataset)
    try:
        unit = _scale_to_unit(_to_modality(stored, dataset), dataset, ~padding)
    except (ValueError, AttributeError, IndexError, TypeError, NotImplementedError) as error:
        raise ValueError(f"Cannot apply the grey-scale transforms of {name}: {error}") from error
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        unit = 1.0 - unit
    unit[padding] = 0.0
    return Image.fromarray((unit * 65535.0).round().astype(np.uint16))


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
        raise ValueError(f"{name} holds no image (it is a {_describe(header)}).")
    frames = int(header.get("NumberOfFrames") or 1)
    if frames > 1:
        raise ValueError(
            f"{name} holds {frames} frames, but one is expected. Export the frames that you want as single files."
        )
    photometric = header.get("PhotometricInterpretation", "none")
    if int(header.get("SamplesPerPixel") or 1) != 1 or photometric not in _GREY:
        raise ValueError(
            f"{name} is a colour image (PhotometricInterpretation {photometric}), but a grey one (MONOCHROME1 or "
            "MONOCHROME2) is expected. Convert it to PNG and use the image folder converter."
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
    except Exception as error:  # InvalidDicomError, EOFError, struct.error and others on damaged files
        raise ValueError(f"{name} is no readable DICOM file: {error}") from error


def _describe(header: Dataset) -> str:
    uid = header.get("SOPClassUID")
    return uid.name if uid is not None else "file without SOPClassUID"


def _padding_mask(stored: np.ndarray, dataset: Dataset) -> np.ndarray:
    """Pixels outside the image proper (PS3.3 C.7.5.1.1.2), boolean, same shape."""
    value = dataset.get("PixelPaddingValue")
    if value is None:
        return np.zeros(stored.shape, dtype=bool)
    limit = dataset.get("PixelPaddingRangeLimit", value)
    mask = (stored >= min(value, limit)) & (stored <= max(value, limit))
    return mask if not mask.all() else np.zeros(stored.shape, dtype=bool)


def _to_modality(stored: np.ndarray, dataset: Dataset) -> np.ndarray:
    """Stored values to what the modality measured, such as Hounsfield units; float64."""
    from pydicom.pixels import apply_modality_lut

    return apply_modality_lut(stored, dataset).astype(np.float64)


def _scale_to_unit(values: np.ndarray, dataset: Dataset, valid: np.ndarray) -> np.ndarray:
    """Values of interest in [0, 1]: by lookup table, else window, else smallest and largest valid value."""
    if dataset.get("VOILUTSequence"):
        return _look_up(values, dataset.VOILUTSequence[0], dataset)
    center, width = _first(dataset.get("WindowCenter")), _first(dataset.get("WindowWidth"))
    if center is not None and width is not None:
        return apply_window(values, center, width, dataset.get("VOILUTFunction") or "LINEAR")
    low, high = values[valid].min(), values[valid].max()
    if low == high:
        return np.zeros_like(values)
    return ((values - low) / (high - low)).clip(0.0, 1.0)


def apply_window(values: np.ndarray, center: float, width: float, function: str = "LINEAR") -> np.ndarray:
    """Apply a window of PS3.3 C.11.2.1.2 and C.11.2.1.3 with the output range [0, 1].

    Args:
        values: any shape, in the unit of the modality.
        center: window center c, in the same unit.
        width: window width w; at least 1 for "LINEAR", above 0 otherwise.
        function: "LINEAR", "LINEAR_EXACT" or "SIGMOID".

    Returns:
        float64 in [0, 1], same shape.

    Raises:
        ValueError: for an unknown function, or a width outside its range.
    """
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        raise ValueError(f"VOILUTFunction must be LINEAR, LINEAR_EXACT or SIGMOID, but is {function!r}.")
    if width < 1 if function == "LINEAR" else width <= 0:
        raise ValueError(f"WindowWidth must be at least 1 (LINEAR) or above 0 (others), but is {width} ({function}).")
    if function == "SIGMOID":
        exponent = np.clip(-4.0 * (values - center) / width, -700.0, 700.0)
        return 1.0 / (1.0 + np.exp(exponent))
    if function == "LINEAR":
        # C.11.2.1.2.1: the window spans c - 0.5 -+ (w - 1) / 2; of width 1 it is a threshold.
        center, width = center - 0.5, width - 1.0
    if width == 0:
        return (values > center).astype(np.float64)
    return ((values - center) / width + 0.5).clip(0.0, 1.0)


def _look_up(values: np.ndarray, item: Any, dataset: Dataset) -> np.ndarray:
    """Apply a VOI lookup table (C.11.2.1.1), scaled by the range of its entries' bits."""
    num_entries, first, bits = (int(value) for value in item.LUTDescriptor)
    data = item.LUTData
    if isinstance(data, bytes):
        little = not hasattr(dataset, "file_meta") or dataset.file_meta.TransferSyntaxUID.is_little_endian
        data = np.frombuffer(data, dtype="<u2" if little else ">u2")
    table = np.asarray(data, dtype=np.float64)[: num_entries or 2**16]
    entries = (np.round(values).astype(np.int64) - first).clip(0, len(table) - 1)
    return (table[entries] / (2.0**bits - 1.0)).clip(0.0, 1.0)


def _first(value: Any) -> float | None:
    """The first of several alternative views, or None."""
    if value is None or value == "":
        return None
    if hasattr(value, "__len__") and not isinstance(value, str):
        return float(value[0]) if len(value) else None
    return float(value)
