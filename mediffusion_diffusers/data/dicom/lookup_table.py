"""Lookup tables of the modality (PS3.3 C.11.1.1) and of the values of interest (C.11.2.1.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .tags import tag_numbers, tag_value


if TYPE_CHECKING:
    from pydicom import Dataset


_LEAST_SHARE = 0.9  # of the declared entries; writers that count wrong are off by a few


@dataclass(frozen=True, eq=False)
class LookupTable:
    """A table from whole numbers to whole numbers; what lies outside takes the first or the last entry.

    Args:
        first: the value that the first entry belongs to.
        entries: shape `(num_entries,)`, unsigned.
    """

    first: int
    entries: np.ndarray

    @classmethod
    def of(cls, item: Dataset, low: float, high: float, little_endian: bool) -> LookupTable:
        """Read an item of a Modality or VOI LUT Sequence, believing its data more than its descriptor.

        Args:
            item: with LUTDescriptor (number of entries, first value, bits) and LUTData.
            low: the lowest value that the table may be asked for; the first value is signed if this is negative, or if
                the table would run past 16 bits, whatever representation the descriptor was written in.
            high: the highest one.
            little_endian: byte order of LUTData where it is bytes.

        Raises:
            ValueError: if the table is missing or cut short, or gives every value the same grey.
        """
        descriptor = tag_numbers(item, "LUTDescriptor")
        if len(descriptor) < 2 or not np.isfinite(descriptor[:2]).all():
            raise ValueError("its LUTDescriptor cannot be read")
        # Both are 16-bit words that may have been read as signed; 0 entries stand for 2^16.
        num_entries = int(descriptor[0]) % 2**16 or 2**16
        first = int(descriptor[1]) % 2**16
        if first >= 2**15 and (low < 0 or first + num_entries > 2**16):
            first -= 2**16
        entries = _entries(_data_words(item, little_endian), num_entries)
        if len(entries) < _LEAST_SHARE * num_entries:
            raise ValueError(f"its LUTData holds {len(entries)} of {num_entries} entries")
        if len(entries) == 0 or entries.min() == entries.max():
            raise ValueError("its LUTData is empty or a single grey")
        if not (first < high and first + len(entries) - 1 > low):
            raise ValueError("its entries belong to values outside of what the pixels can hold")
        return cls(first, entries)

    def look_up(self, values: np.ndarray) -> np.ndarray:
        """The entries of values, float64, same shape."""
        rows = (np.round(values.astype(np.float64)) - self.first).clip(0, len(self.entries) - 1).astype(np.int64)
        return self.entries[rows].astype(np.float64)

    def to_unit(self, values: np.ndarray) -> np.ndarray:
        """The entries of values in [0, 1], by the range of the bits that the entries really have (at least 8)."""
        bits = max(8, int(self.entries.max()).bit_length())
        return self.look_up(values) / (2.0**bits - 1.0)

    def span(self, low: float, high: float) -> tuple[float, float]:
        """The smallest and largest entry, whatever values are asked for."""
        return float(self.entries.min()), float(self.entries.max())


def _data_words(item: Dataset, little_endian: bool) -> np.ndarray:
    """LUTData as unsigned 16-bit words."""
    data = tag_value(item, "LUTData")
    if isinstance(data, bytes):
        return np.frombuffer(data + b"\0" * (len(data) % 2), dtype="<u2" if little_endian else ">u2")
    words = np.array(tag_numbers(item, "LUTData"))
    if not np.isfinite(words).all():
        raise ValueError("its LUTData cannot be read")
    return (words.astype(np.int64) % 2**16).astype(np.uint16)


def _entries(words: np.ndarray, num_entries: int) -> np.ndarray:
    """One entry per word, or two where half as many words hold all of them: 8-bit entries, packed, low byte first."""
    if num_entries > 1 and len(words) == (num_entries + 1) // 2:
        return np.frombuffer(words.astype("<u2").tobytes(), dtype=np.uint8)[:num_entries]
    return words[:num_entries]
