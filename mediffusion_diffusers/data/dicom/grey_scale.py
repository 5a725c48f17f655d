"""From stored values to greys: modality, values of interest, polarity and padding, as a viewer would first show them.

The steps are those of PS3.3 C.11.1 and C.11.2; an enhanced image keeps them in functional groups (C.7.6.16).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .lookup_table import LookupTable
from .tags import is_little_endian, tag_items, tag_number, tag_numbers, tag_text
from .window import Window


if TYPE_CHECKING:
    from pydicom import Dataset


_VALUES_AT_ONCE = 2**20


@dataclass(frozen=True)
class Rescale:
    """Stored values to what the modality measured, such as Hounsfield units: m * value + b (C.11.1.1.2)."""

    slope: float = 1.0
    intercept: float = 0.0

    def look_up(self, values: np.ndarray) -> np.ndarray:
        """The measured values, float64, same shape."""
        return values.astype(np.float64) * self.slope + self.intercept

    def span(self, low: float, high: float) -> tuple[float, float]:
        """The smallest and largest measured value of stored values in [low, high]."""
        ends = (low * self.slope + self.intercept, high * self.slope + self.intercept)
        return min(ends), max(ends)

    def check(self, low: float, high: float) -> None:
        """Refuse what does not tell stored values apart.

        Raises:
            ValueError: for a slope of 0, NaN, infinity, or an intercept that swallows the slope.
        """
        if not (math.isfinite(self.slope) and math.isfinite(self.intercept)) or self.slope == 0:
            raise ValueError(f"RescaleSlope {self.slope} and RescaleIntercept {self.intercept} are no rescaling")
        if self.intercept + self.slope == self.intercept or not math.isfinite(sum(map(abs, self.span(low, high)))):
            raise ValueError(f"RescaleIntercept {self.intercept} swallows the pixels (RescaleSlope {self.slope})")


@dataclass(frozen=True)
class GreyScale:
    """How the stored values of one image become greys.

    Args:
        modality: stored values to measured ones.
        view: measured values to [0, 1]; None scales by the smallest and largest value of the image itself.
        inverted: whether the smallest value is white (MONOCHROME1).
        padding: range of stored values that are no part of the picture, or None.
        faults: what the file says and cannot be used, in words; it counts as not said.
    """

    modality: Rescale | LookupTable
    view: Window | LookupTable | None
    inverted: bool
    padding: tuple[float, float] | None
    faults: tuple[str, ...] = ()

    @classmethod
    def of(cls, header: Dataset) -> GreyScale:
        """Read the grey scale of a single-frame image from its tags.

        The first lookup table that can be used goes before the first such window. Without a usable modality
        transform no view is meaningful, and the stored values are scaled by their own range.
        """
        faults: list[str] = []
        low, high = _stored_span(header)
        inverted = tag_text(header, "PhotometricInterpretation").upper() == "MONOCHROME1"
        padding = _padding(header)
        try:
            modality = _modality(header, low, high)
        except ValueError as error:
            return cls(Rescale(), None, inverted, padding, (f"modality transform: {error}",))
        view = _view(header, *modality.span(low, high), faults)
        return cls(modality, view, inverted, padding, tuple(faults))

    @property
    def source(self) -> str:
        """Where the greys come from, in words."""
        if self.view is None:
            return "their own smallest and largest value"
        return "a window" if isinstance(self.view, Window) else "a lookup table"

    def to_levels(self, stored: np.ndarray) -> np.ndarray:
        """Greys of stored values, 0 (black) to 65,535 (white).

        Args:
            stored: shape `(height, width)`, integers or floating point. NaN and infinity count as padding.

        Returns:
            uint16, same shape; padding is 0.

        Raises:
            ValueError: if no pixel is finite, or measured values leave the range of floating point.
        """
        padding = self.padding
        if all(self._is_padding(rows, padding).all() for rows in _strips(stored)):
            padding = None
        low, high = math.inf, -math.inf
        for rows in _strips(stored):
            values = self.modality.look_up(rows[~self._is_padding(rows, padding)])
            if values.size:
                low, high = min(low, float(values.min())), max(high, float(values.max()))
        if not math.isfinite(high - low):
            raise ValueError("the pixels hold no finite values, or span more than floating point can hold")
        levels = np.empty(stored.shape, dtype=np.uint16)
        done = 0
        for rows in _strips(stored):
            outside = self._is_padding(rows, padding)
            values = self.modality.look_up(np.where(outside, 0, rows))
            greys = self._own_range(values, low, high) if self.view is None else self.view.to_unit(values)
            greys = 1.0 - greys if self.inverted else greys
            levels[done : done + len(rows)] = (np.where(outside, 0.0, greys) * 65535.0).round()
            done += len(rows)
        return levels

    @staticmethod
    def _own_range(values: np.ndarray, low: float, high: float) -> np.ndarray:
        if low == high:
            return np.zeros_like(values)
        return ((values - low) / (high - low)).clip(0.0, 1.0)

    @staticmethod
    def _is_padding(stored: np.ndarray, padding: tuple[float, float] | None) -> np.ndarray:
        """Pixels outside the image proper (C.7.5.1.1.2), boolean, same shape."""
        outside = ~np.isfinite(stored)
        return outside if padding is None else outside | ((stored >= padding[0]) & (stored <= padding[1]))


def _strips(stored: np.ndarray) -> Iterator[np.ndarray]:
    """Some rows at a time: a mammogram in float64, several times over, would fill a gigabyte in each thread."""
    height = max(1, _VALUES_AT_ONCE // stored.shape[1])
    for top in range(0, len(stored), height):
        yield stored[top : top + height]


def _macro(header: Dataset, sequence: str) -> Dataset:
    """Where a macro is given: the frame's own functional group, the shared one, or the dataset itself."""
    for groups in ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"):
        for group in tag_items(header, groups)[:1]:
            for item in tag_items(group, sequence)[:1]:
                return item
    return header


def _stored_span(header: Dataset) -> tuple[float, float]:
    """The smallest and largest value that a pixel can hold."""
    bits, signed = tag_number(header, "BitsStored"), tag_number(header, "PixelRepresentation")
    if bits is None or signed is None or not 1 <= bits <= 64:  # floating-point pixels have neither
        return -math.inf, math.inf
    return (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1) if signed == 1 else (0.0, 2.0**bits - 1)


def _modality(header: Dataset, low: float, high: float) -> Rescale | LookupTable:
    """The modality transform; ValueError if there is one that cannot be used."""
    for item in tag_items(header, "ModalityLUTSequence")[:1]:
        return LookupTable.of(item, low, high, is_little_endian(header))
    macro = _macro(header, "PixelValueTransformationSequence")
    slope, intercept = tag_number(macro, "RescaleSlope"), tag_number(macro, "RescaleIntercept")
    rescale = Rescale(1.0 if slope is None else slope, 0.0 if intercept is None else intercept)
    rescale.check(max(low, -(2.0**64)), min(high, 2.0**64))
    return rescale


def _view(header: Dataset, low: float, high: float, faults: list[str]) -> Window | LookupTable | None:
    """The first usable lookup table or window for measured values in [low, high]; what cannot be used is recorded."""
    macro = _macro(header, "FrameVOILUTSequence")
    for item in tag_items(macro, "VOILUTSequence"):
        try:
            return LookupTable.of(item, low, high, is_little_endian(header))
        except ValueError as error:
            faults.append(f"VOI lookup table: {error}")
    function = tag_text(macro, "VOILUTFunction").upper() or "LINEAR"
    for center, width in zip(tag_numbers(macro, "WindowCenter"), tag_numbers(macro, "WindowWidth"), strict=False):
        window = Window(center, width, function)
        fault = window.fault(low, high)
        if fault is None:
            return window
        faults.append(fault)
    return None


def _padding(header: Dataset) -> tuple[float, float] | None:
    """The range of padding, in the representation of the pixels whatever the tags were written in."""
    for prefix in ("DoubleFloat", "Float", ""):
        value = tag_number(header, f"{prefix}PixelPaddingValue")
        if value is None or math.isnan(value):
            continue
        limit = tag_number(header, f"{prefix}PixelPaddingRangeLimit")
        ends = [value] if limit is None or math.isnan(limit) else [value, limit]
        if not prefix:
            signed = tag_number(header, "PixelRepresentation") == 1
            ends = [_sixteen_bits(end, signed) for end in ends if math.isfinite(end)]
        return (min(ends), max(ends)) if ends else None
    return None


def _sixteen_bits(value: float, signed: bool) -> float:
    """A 16-bit word as a signed or unsigned number."""
    word = int(value) % 2**16
    return float(word - 2**16 if signed and word >= 2**15 else word)
