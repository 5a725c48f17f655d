"""Guidance scales: one for all counterfactuals, one for each, or one per direction.

To add a finding takes another scale than to remove it: on phantoms, as calibrated, an eighth to a quarter of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch


GuidanceScale = float | Sequence[float] | Mapping[str, float]
SCALE_NAMES = ("towards", "away")


def plain_scale(guidance_scale: Any) -> Any:
    """The same with numbers, lists and dicts of Python instead of numpy's and torch's."""
    if isinstance(guidance_scale, Mapping):
        return {name: plain_scale(scale) for name, scale in guidance_scale.items()}
    return guidance_scale.tolist() if hasattr(guidance_scale, "tolist") else guidance_scale


def values_of_scale(guidance_scale: GuidanceScale, name: str = "guidance_scale") -> list[Any]:
    """All values of a scale in any of its forms, or of another option that may differ by direction.

    Args:
        guidance_scale: one number, several, or one per direction.
        name: of the option.

    Raises:
        ValueError: for a dict that is empty or has other keys than `SCALE_NAMES`.
    """
    if isinstance(guidance_scale, Mapping):
        if not guidance_scale or not guidance_scale.keys() <= set(SCALE_NAMES):
            raise ValueError(
                f"`{name}` as a dict must hold a number for 'towards', for 'away' or for both, but holds "
                f"{list(guidance_scale)}."
            )
        return list(guidance_scale.values())
    return list(guidance_scale) if isinstance(guidance_scale, (list, tuple)) else [guidance_scale]


def scale_for(guidance_scale: float | Mapping[str, float], names: Sequence[str]) -> float:
    """The scale of a counterfactual.

    Args:
        guidance_scale: one for all, or one per direction.
        names: of `SCALE_NAMES`, those in which the counterfactual has labels; the smaller of two scales holds.

    Raises:
        ValueError: if there is no scale for one of them.
    """
    if not isinstance(guidance_scale, Mapping):
        return guidance_scale
    missing = [name for name in names if name not in guidance_scale]
    if missing:
        raise ValueError(
            f"`guidance_scale` {dict(guidance_scale)} holds no scale for {missing[0]!r}. Add it, or give one number "
            "for both."
        )
    return min(guidance_scale[name] for name in names)


def scales_of_rows(guidance_scale: GuidanceScale, direction: torch.Tensor) -> list[float]:
    """One scale per counterfactual.

    Args:
        guidance_scale: one for all, one for each, or one per direction.
        direction: +1 towards, -1 away, 0 not targeted, shape `(rows, num_labels)`.

    Raises:
        ValueError: if a direction has no scale.
    """
    if isinstance(guidance_scale, Sequence):
        return list(guidance_scale)
    signs = dict(zip(SCALE_NAMES, (direction > 0, direction < 0), strict=True))
    has = {name: sign.any(1).tolist() for name, sign in signs.items()}
    return [
        scale_for(guidance_scale, [name for name in SCALE_NAMES if has[name][row]]) for row in range(len(direction))
    ]
