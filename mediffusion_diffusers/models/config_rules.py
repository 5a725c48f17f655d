"""What a config file may say: types and sizes of every field that decides how much is allocated.

A config comes with a checkpoint from anywhere. It is checked before a model is built from it, so that no file can ask
for gigabytes or end in a traceback. The limits lie far above every published model.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..options import Range, check_number
from .classifier_head import NORM_TYPES
from .feature_pooling import POOL_TYPES


MAX_LABELS = 100_000
MAX_NAME_LENGTH = 1000
MAX_SIDE = 8192  # of latents and of images
MAX_CONFIG_BYTES = 2**24
MAX_PARAMETERS = 2**31
_MAX_NUMBER = 2**31
_MAX_ENTRIES = 100_000
_MAX_LAYERS = 1000
_MAX_LEVELS = 16
_SIDES = ("image_size", "height", "width", "shortest_edge")  # of image processors and transformers' models

Rule = Callable[[str, Any], None]


def whole(low: int, high: int) -> Rule:
    """A whole number in `[low, high]`."""
    return lambda name, value: check_number(name, value, Range(at_least=low, at_most=high), whole=True)


def number(**bounds: float) -> Rule:
    """A finite number within the bounds of a `Range`."""
    return lambda name, value: check_number(name, value, Range(**bounds))


def text(*choices: str) -> Rule:
    """A string; one of `choices`, if there are any."""

    def check(name: str, value: Any) -> None:
        if not isinstance(value, str) or len(value) > MAX_NAME_LENGTH or (choices and value not in choices):
            wanted = f"one of {', '.join(map(repr, choices))}" if choices else "a name"
            raise ValueError(f"`{name}` must be {wanted}, but is {_short(value)}.")

    return check


def optional(rule: Rule) -> Rule:
    """`None`, or what the rule says."""
    return lambda name, value: None if value is None else rule(name, value)


def several(rule: Rule, at_most: int, or_one: bool = False) -> Rule:
    """A list of one to `at_most` entries that obey a rule; with `or_one` a single one may stand alone."""

    def check(name: str, value: Any) -> None:
        if or_one and not isinstance(value, (list, tuple)):
            return rule(name, value)
        if not isinstance(value, (list, tuple)) or not 1 <= len(value) <= at_most:
            count = f"has {len(value)} entries" if isinstance(value, (list, tuple)) else f"is {_short(value)}"
            raise ValueError(f"`{name}` must be a list of 1 to {at_most} entries, but {count}.")
        for entry in value:
            rule(name, entry)

    return check


_CHANNELS, _SIDE = whole(1, 2**16), several(whole(1, MAX_SIDE), 2, or_one=True)
_SHAPE: dict[str, Rule] = {
    "sample_size": optional(_SIDE),
    "in_channels": whole(1, 4096),
    "out_channels": whole(1, 4096),
    "block_out_channels": several(_CHANNELS, _MAX_LEVELS),
    "down_block_types": several(text(), _MAX_LEVELS),
    "up_block_types": several(text(), _MAX_LEVELS),
    "layers_per_block": whole(1, 64),
    "act_fn": text(),
    "norm_num_groups": whole(1, 2**16),
}
_UNET: dict[str, Rule] = {
    **_SHAPE,
    "time_embedding_type": text("positional", "fourier", "learned"),
    "time_embedding_dim": optional(_CHANNELS),
    "freq_shift": number(),
    "mid_block_type": optional(text()),
    "mid_block_scale_factor": number(),
    "downsample_padding": whole(0, 16),
    "downsample_type": text(),
    "upsample_type": text(),
    "dropout": number(at_least=0, below=1),
    "attention_head_dim": optional(_CHANNELS),
    "attn_norm_num_groups": optional(whole(1, 2**16)),
    "norm_eps": number(above=0),
    "resnet_time_scale_shift": text(),
    "class_embed_type": optional(text()),
    "num_class_embeds": optional(whole(1, MAX_LABELS)),
    "num_train_timesteps": optional(whole(1, MAX_LABELS)),
}
_SCHEDULER: dict[str, Rule] = {
    "num_train_timesteps": whole(1, 100_000),
    "beta_start": number(at_least=0, below=1),
    "beta_end": number(at_least=0, at_most=1),
    "beta_schedule": text("linear", "scaled_linear", "squaredcos_cap_v2", "laplace", "sigmoid"),
    "trained_betas": optional(several(number(at_least=0, at_most=1), 100_000)),
    "prediction_type": text(),
    "timestep_spacing": text(),
    "steps_offset": whole(0, 1000),
    "clip_sample_range": number(above=0),
    "solver_order": whole(1, 3),
}
RULES: dict[str, dict[str, Rule]] = {
    "UNet2DModel": _UNET,
    "JointUNet2DModel": {
        **_UNET,
        "num_labels": whole(1, MAX_LABELS),
        "classifier_pool_size": whole(1, 64),
        "classifier_pool_type": text(*POOL_TYPES),
        "max_classifier_features": whole(1, 2**20),
        "classifier_hidden_size": whole(0, 2**16),
        "classifier_norm_type": optional(text(*NORM_TYPES)),
        "classifier_dropout": number(at_least=0, below=1),
        "guidance_defaults": lambda _, defaults: check_guidance_defaults(defaults),
    },
    "AutoencoderKL": {
        **_SHAPE,
        "latent_channels": whole(1, 4096),
        "scaling_factor": number(above=0),
        "shift_factor": optional(number()),
        "latents_mean": optional(several(number(), 4096)),
        "latents_std": optional(several(number(above=0), 4096)),
    },
    "SpaceToDepthAutoencoder": {
        "in_channels": whole(1, 64),
        "out_channels": whole(1, 64),
        "block_size": whole(1, 64),
        "latent_channels": optional(whole(1, 64**3)),
        "sample_size": optional(_SIDE),
        "scaling_factor": number(above=0),
    },
    "DDIMScheduler": _SCHEDULER,
    "DDPMScheduler": _SCHEDULER,
    "DPMSolverMultistepScheduler": _SCHEDULER,
    "DPMSolverSinglestepScheduler": _SCHEDULER,
}


def check_config(class_name: str, config: Mapping[str, Any]) -> None:
    """Check a config against the rules of its class, as far as it has any.

    Args:
        class_name: of the model or scheduler.
        config: its fields; unknown ones are left to the class.

    Raises:
        ValueError: naming the first field that is of another type or size.
    """
    rules = RULES.get(class_name, {})
    for name, rule in rules.items():
        if name in config:
            rule(name, config[name])
    if "block_out_channels" in config and "layers_per_block" in config and rules:
        # The square convolutions alone: two thirds to a quarter of the whole.
        widths, layers = config["block_out_channels"], config["layers_per_block"]
        num_parameters = 9 * (2 * layers + 1) * sum(width**2 for width in widths)
        if num_parameters > MAX_PARAMETERS:
            raise ValueError(
                f"`block_out_channels` {list(widths)} with `layers_per_block` {layers} describe a network of more "
                f"than {num_parameters:.1e} parameters; at most {MAX_PARAMETERS:.1e} are accepted."
            )


def read_config(path: Path, class_name: str | None = None) -> dict[str, Any]:
    """Read a config file of a model, scheduler or image processor and check it.

    Args:
        path: a JSON file.
        class_name: what will be built from it; by default what it says itself.

    Returns:
        Its fields.

    Raises:
        ValueError: naming the file, and the field where there is one.
    """
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ValueError(f"it has {path.stat().st_size} bytes")
        config = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError(f"it holds {_short(config)} instead of an object")
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no config: {' '.join(str(error).split())}.") from error
    try:
        _check_sizes("", config)
        check_config(class_name or str(config.get("_class_name")), config)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be used: {error}") from error
    return config


def _check_sizes(name: str, value: Any) -> None:
    """Bound every number and collection, whatever the field means."""
    if isinstance(value, (dict, list)) and len(value) > _MAX_ENTRIES:
        raise ValueError(f"`{name}` has {len(value)} entries, more than {_MAX_ENTRIES}.")
    if isinstance(value, dict):
        for key, entry in value.items():
            _check_sizes(key, entry)
    elif isinstance(value, list):
        for entry in value:
            _check_sizes(name, entry)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        is_count = isinstance(value, int) and any(word in name for word in ("layers", "depth", "blocks"))
        largest = _MAX_LAYERS if is_count else MAX_SIDE if name in _SIDES else _MAX_NUMBER
        limit = largest if isinstance(value, int) else math.inf  # a DPM-Solver's config holds -Infinity
        if not abs(value) <= limit:
            raise ValueError(f"`{name}` is {_short(value)}, which is no number of at most {limit}.")


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."


def check_guidance_defaults(defaults: Any) -> None:
    """Check the size and type of a checkpoint's recommendations; the counterfactual pipeline checks their meaning.

    Raises:
        ValueError: if they are no mapping of a few plain values.
    """
    if defaults is None:
        return
    if not isinstance(defaults, Mapping) or len(defaults) > 64:
        raise ValueError(f"`guidance_defaults` must be a mapping of at most 64 entries, but is {_short(defaults)}.")
    for name, value in defaults.items():
        for entry in value.values() if isinstance(value, Mapping) else [value]:
            if isinstance(entry, (list, Mapping)) or not isinstance(entry, (str, float, int, type(None))):
                raise ValueError(f"`guidance_defaults[{name!r}]` must be plain values, but is {_short(value)}.")
            if isinstance(entry, (float, int)) and not abs(entry) <= _MAX_NUMBER:
                raise ValueError(f"`guidance_defaults[{name!r}]` must be finite numbers, but is {_short(value)}.")
