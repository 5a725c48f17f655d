"""Where along a scale an effect reaches what is wanted, in few measurements."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass


FACTOR = 4.0  # from one scale to the next, until what is wanted lies between two
NARROW = 1.05  # two scales closer than this are one


@dataclass(frozen=True)
class Reading:
    """What one scale does.

    Args:
        missing: how much of the wanted effect is missing; below 0 there is too much.
        is_refused: whether the scale is out, whatever its effect; then every larger one is.
    """

    missing: float
    is_refused: bool = False


def search_scale(read: Callable[[float], Reading], first: float, tolerance: float, max_readings: int) -> float | None:
    """Find a scale whose effect is as wanted, if effects grow with the scale.

    From the first scale up or down by `FACTOR` until one does too little and the next too much, then between them: by
    the line through both, on a log scale, but never closer to one end than a seventh of the way, which bisects what is
    bent (the Illinois rule's purpose). A refused scale counts as too much.

    Args:
        read: measures a scale.
        first: where to begin, above 0.
        tolerance: of the effect.
        max_readings: measurements, at least 1.

    Returns:
        The scale that came closest; None if all that were measured are refused.
    """
    best: tuple[float, float] | None = None
    low: tuple[float, float] | None = None  # a scale that does too little, and what is missing
    high: tuple[float, float | None] | None = None  # one that does too much, or is refused
    scale = first
    for _ in range(max_readings):
        reading = read(scale)
        if not reading.is_refused and (best is None or abs(reading.missing) < best[0]):
            best = abs(reading.missing), scale
        if best is not None and best[0] <= tolerance:
            break
        if reading.is_refused or reading.missing < 0:
            high = scale, None if reading.is_refused else reading.missing
        else:
            low = scale, reading.missing
        if low is None or high is None:
            scale = _rounded(scale / FACTOR if low is None else scale * FACTOR)
        elif high[0] / low[0] < NARROW:
            break
        else:
            share = 0.5 if high[1] is None else min(max(low[1] / (low[1] - high[1]), 1 / 7), 6 / 7)
            scale = _rounded(low[0] * (high[0] / low[0]) ** share)
    return None if best is None else best[1]


def _rounded(scale: float) -> float:
    """Three digits: more would claim a precision that nothing has."""
    return float(f"{scale:.3g}") if math.isfinite(scale) else scale
