"""Two named settings of `start="noised_paths"`: what one word stands for, and what it leaves to others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


# U-Net evaluations of a counterfactual are num_noises * (2 * num_inference_steps - 1), the unguided half of which all
# targets of an image share, and 2 of the encoder for the region.
QUALITIES: dict[str, dict[str, int]] = {
    "fast": {"num_noises": 2, "num_inference_steps": 6},
    "best": {"num_noises": 4, "num_inference_steps": 10},
}
# Where paths begin and edits end, for a checkpoint that does not say so itself.
NOISED_PATHS: dict[str, Any] = {"start": "noised_paths", "strength": 0.5, "mask": "auto"}


def spell_out(given: Mapping[str, Any], stored: Mapping[str, Any]) -> dict[str, Any]:
    """Options by name, with those that a `quality` stands for.

    An option that is named comes before what its `quality` says, and a call before the checkpoint. A call's `quality`
    leaves a checkpoint that begins with noised paths itself its strength and region.

    Args:
        given: options of the call.
        stored: those of the checkpoint.
    """
    of_call = _meaning(given)
    if has_noised_paths(stored):
        of_call = {name: value for name, value in of_call.items() if name not in NOISED_PATHS}
    return {**_meaning(stored), **stored, **of_call, **given}


def has_noised_paths(options: Mapping[str, Any]) -> bool:
    """Whether these options begin with noised paths."""
    return {**_meaning(options), **options}.get("start") == "noised_paths"


def _meaning(options: Mapping[str, Any]) -> dict[str, Any]:
    if "quality" not in options:
        return {}
    return {**NOISED_PATHS, **QUALITIES[options["quality"]]}
