"""What a checkpoint has of a classifier head: all of it, none, or one for other labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers.utils import logging


logger = logging.get_logger(__name__)

_HEAD = "classifier."  # how the names of its weights begin


def with_label_defaults(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Config overrides, in which new labels void the checkpoint's names and thresholds.

    Args:
        overrides: keyword arguments of `from_pretrained`.
    """
    overrides = dict(overrides)
    if "id2label" in overrides:
        overrides.setdefault("label2id", None)
        overrides.setdefault("num_labels", len(overrides["id2label"]))
    elif "num_labels" in overrides:
        overrides.setdefault("id2label", None)
        overrides.setdefault("label2id", None)
    if {"id2label", "num_labels"} & overrides.keys():
        overrides.setdefault("label_thresholds", None)
        overrides.setdefault("label_calibration", None)
    return overrides


def is_whole(info: Mapping[str, Any], source: str, num_labels: int, fresh_head: bool) -> bool:
    """Whether a loaded model has all its weights; only a head may lack, and only where a fresh one is asked for.

    Args:
        info: the loading information of diffusers, with `missing_keys` and `mismatched_keys`.
        source: folder or repository, for messages.
        num_labels: of the model.
        fresh_head: whether a missing or mismatched head is started afresh.

    Raises:
        ValueError: if weights of the U-Net are missing or of another shape, or those of the head without
            `fresh_head`.
    """
    shapes = {
        key: f" ({tuple(saved)} in the checkpoint, {tuple(own)} in the model)"
        for key, saved, own in info["mismatched_keys"]
    }
    wrong = [*info["missing_keys"], *shapes]
    foreign = [key for key in wrong if not key.startswith(_HEAD)]
    if foreign:
        raise ValueError(
            f"Checkpoint {source!r} does not fit the U-Net's config: weights {foreign[:4]} are missing or of another "
            "shape."
        )
    if wrong and not fresh_head:
        raise ValueError(
            f"Checkpoint {source!r} has no classifier head for the {num_labels} labels of this model. Missing or of "
            f"another shape: {', '.join(key + shapes.get(key, '') for key in sorted(wrong))}. Pass "
            "`ignore_mismatched_sizes=True` to start a fresh head that has yet to be trained, or build the model with "
            "`JointUNet2DModel.from_unet(UNet2DModel.from_pretrained(...), num_labels=...)`."
        )
    return not wrong


def warn_about_fresh_head() -> None:
    """Say that a loaded model cannot classify yet."""
    logger.warning("The classifier head is newly initialised and has yet to be trained.")


def fitting_weights(
    own: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor], changed: Sequence[str]
) -> Mapping[str, torch.Tensor]:
    """The weights of another U-Net that a joint model takes over: all, or all but the head's.

    Args:
        own: the joint model's.
        weights: the other's.
        changed: arguments in which their configs differ, for the message.

    Raises:
        ValueError: if weights outside of the head do not fit.
    """
    fitting = {name for name in own.keys() & weights.keys() if own[name].shape == weights[name].shape}
    misfits = sorted((own.keys() | weights.keys()) - fitting)
    foreign = [name for name in misfits if not name.startswith(_HEAD)]
    if foreign:
        raise ValueError(
            f"The weights of `unet` must fit the new model, but {foreign[:4]} do not. Only arguments of the "
            f"classifier can be changed here; got {list(changed)}."
        )
    if not misfits:
        return weights
    return {name: value for name, value in weights.items() if not name.startswith(_HEAD)}
