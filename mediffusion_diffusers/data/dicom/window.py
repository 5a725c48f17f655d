"""Windows: the values of interest between black and white (PS3.3 C.11.2.1.2 and C.11.2.1.3)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


FUNCTIONS = ("LINEAR", "LINEAR_EXACT", "SIGMOID")


@dataclass(frozen=True)
class Window:
    """A window.

    Args:
        center: c, in the unit of the modality.
        width: w, in the same unit.
        function: "LINEAR", "LINEAR_EXACT" or "SIGMOID".
    """

    center: float
    width: float
    function: str = "LINEAR"

    def fault(self, low: float, high: float) -> str | None:
        """What keeps the window from showing values in [low, high], or None if nothing does."""
        if self.function not in FUNCTIONS:
            return f"VOILUTFunction must be one of {list(FUNCTIONS)}, but is {self.function[:16]!r}"
        if not (math.isfinite(self.center) and math.isfinite(self.width)):
            return f"WindowCenter {self.center} and WindowWidth {self.width} must be finite"
        if not (self.width >= 1 if self.function == "LINEAR" else self.width > 0):
            return f"WindowWidth must be at least 1 (LINEAR) or above 0 (others), but is {self.width}"
        reach = 4 * self.width if self.function == "SIGMOID" else self.width / 2
        if not (self.center - reach < high and self.center + reach > low):
            return f"WindowCenter {self.center} and WindowWidth {self.width} lie outside of what the pixels can hold"
        if (high - low) / self.width < 1 / 256:
            return f"WindowWidth {self.width} makes one grey of all that the pixels can hold"
        if math.isfinite(high - low) and (high - low) / self.width > 2**33:
            return f"WindowWidth {self.width} tells none of the values apart that the pixels can hold"
        return None

    def to_unit(self, values: np.ndarray) -> np.ndarray:
        """Values in [0, 1]."""
        return apply_window(values, self.center, self.width, self.function)


def apply_window(values: np.ndarray, center: float, width: float, function: str = "LINEAR") -> np.ndarray:
    """Apply a window with the output range [0, 1].

    Args:
        values: any shape, in the unit of the modality.
        center: window center c, in the same unit.
        width: window width w; at least 1 for "LINEAR", above 0 otherwise.
        function: "LINEAR", "LINEAR_EXACT" or "SIGMOID".

    Returns:
        float64 in [0, 1], same shape.

    Raises:
        ValueError: for an unknown function, or a center or width outside its range.
    """
    fault = Window(center, width, function).fault(-math.inf, math.inf)
    if fault is not None:
        raise ValueError(f"{fault}.")
    if function == "SIGMOID":
        exponent = np.clip(-4.0 * (values - center) / width, -700.0, 700.0)
        return 1.0 / (1.0 + np.exp(exponent))
    if function == "LINEAR":
        # C.11.2.1.2.1: the window spans c - 0.5 -+ (w - 1) / 2; of width 1 it is a threshold.
        center, width = center - 0.5, width - 1.0
    if width == 0:
        return (values > center).astype(np.float64)
    return ((values - center) / width + 0.5).clip(0.0, 1.0)
