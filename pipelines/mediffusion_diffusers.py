"""The models and the scheduler of a Mediffusion checkpoint.

Generated from the package `mediffusion_diffusers` by `make bundle`. Do not edit: edit the package.
Needs torch, diffusers, transformers and pillow alone. Research use only: not a medical device.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from numbers import Integral, Real
from pathlib import Path
from typing import Any, NamedTuple

import huggingface_hub
import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, UNet2DModel
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.models.modeling_utils import ModelMixin
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
from diffusers.utils import BaseOutput, logging
from diffusers.utils.accelerate_utils import apply_forward_hook
from diffusers.utils.torch_utils import randn_tensor
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from torch import nn


# ---- mediffusion_diffusers/privacy.py

_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{30,}")


def without_tokens(text: str, token: str | None = None) -> str:
    """The text with `***` in place of access tokens of the Hub and of the given one."""
    return _TOKEN.sub("***", text if not token else text.replace(token, "***"))


# ---- mediffusion_diffusers/hub.py

# The library below huggingface_hub, requests or httpx by version: the root of its errors, where no answer came.
_TRANSPORT_ERROR: type[Exception] = [
    kind for kind in HfHubHTTPError.__mro__ if kind.__module__.split(".")[0] not in ("huggingface_hub", "builtins")
][-1]
HUB_ERRORS = (OSError, HfHubHTTPError, _TRANSPORT_ERROR)
_CLOSED_CLIENT = "client has been closed"  # older huggingface_hub, when it tries again after a lost connection


class HubFailure(OSError):
    """The Hub could not be read or written; the message says why and what to do."""


@contextmanager
def hub_access(
    source: str | os.PathLike[str] | None, revision: str | None = None, token: Any = None
) -> Iterator[None]:
    """Say in one sentence why reading a model, dataset or file from the Hub failed.

    diffusers and transformers answer most failures with "outgoing traffic has been disabled" or a list of guesses. If
    theirs does not name the cause, the Hub is asked once more what it thinks of the repository.

    Args:
        source: the folder or repository that is read inside the block; errors about folders pass unchanged.
        revision: branch, tag or commit.
        token: the token that is used.

    Raises:
        HubFailure: in place of an error of the Hub or the network.
    """
    try:
        yield
    except HubFailure:
        raise
    except (*HUB_ERRORS, ValueError, RuntimeError) as error:
        if source is None or Path(source).exists() or (isinstance(error, RuntimeError) and not _is_lost(error)):
            raise
        sentence = hub_failure(error, str(source)) or _ask(str(source), revision, token)
        if sentence is None:
            raise
        raise HubFailure(without_tokens(sentence, token if isinstance(token, str) else None)) from error


def hub_failure(error: BaseException | None, source: str | None = None) -> str | None:
    """Why the Hub failed, or `None` if an error and what caused it are not about the Hub.

    Args:
        error: the error.
        source: what was read, if known.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        known = source or getattr(error, "repo_id", None)
        name = "the repository" if known is None else repr(known)
        if isinstance(error, HubFailure):
            return str(error)
        if isinstance(error, OfflineModeIsEnabled):
            return f"Offline mode is on, and {name} is not on this machine. Unset HF_HUB_OFFLINE, or name a folder."
        if isinstance(error, HFValidationError):
            return f"Neither a folder here nor a name on the Hub, such as 'organisation/name': {name}."
        response = getattr(error, "response", None)
        if isinstance(error, HfHubHTTPError) and response is not None:
            sentence = _answered(error, int(response.status_code), name)
            return sentence[0].upper() + sentence[1:]
        if _is_lost(error) or (isinstance(error, _TRANSPORT_ERROR) and getattr(error, "response", None) is None):
            return _unanswered(error, source)
        # What was raised `from None` says all there is to say.
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return None


def _answered(error: HfHubHTTPError, status: int, name: str) -> str:
    """What an answer of the Hub means."""
    if isinstance(error, GatedRepoError):
        return (
            f"{name} is gated ({status}): ask for access on its page on the Hub, and use a token of the user who got "
            "it (`hf auth login` or HF_TOKEN)."
        )
    if isinstance(error, RevisionNotFoundError):
        return f"{name} has no such revision on the Hub ({status}). Name one of its branches, tags or commits."
    if isinstance(error, EntryNotFoundError):
        return f"{name} lacks a file that is needed ({status}): {_url_path(error)}. Is it a model of another kind?"
    if isinstance(error, RepositoryNotFoundError) and status == 404:
        return f"{name} is neither a folder here nor a repository on the Hub (404). Check the name."
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"{name} is neither a folder here nor a repository on the Hub that may be read without a login "
            f"({status}). Check the name; if it is private, run `hf auth login` or set HF_TOKEN to a token that may "
            "read it."
        )
    if status == 401:
        return (
            "The Hub does not accept the token (401): it is wrong or has expired. Run `hf auth login` or set HF_TOKEN."
        )
    if status == 403:
        return (
            f"The token has no right to this at {name} (403). Use one of a user who may, with the role that it needs."
        )
    if status == 429:
        return "The Hub asks for fewer requests (429). Wait some minutes, and try again with a token."
    if status >= 500:
        return f"The Hub has a fault of its own ({status}). Try again later; what is done so far is kept."
    return f"The Hub refused the request ({status}): {_url_path(error)}."


def _unanswered(error: BaseException, source: str | None) -> str:
    """What it means that there was no answer."""
    the_hub = "The Hub" if source is None else f"{source!r} is no folder here, and the Hub"
    the_hub = f"{the_hub} at {huggingface_hub.constants.ENDPOINT}"
    if "timeout" in type(error).__name__.lower() or "timed out" in str(error).lower():
        return f"{the_hub} did not answer in time. Try again, or set HF_HUB_DOWNLOAD_TIMEOUT higher."
    reason = " ".join(str(error).split()) or type(error).__name__
    return f"{the_hub} cannot be reached ({reason}). Check the network and its proxy, or name a folder."


def _ask(source: str, revision: str | None, token: Any) -> str | None:
    """Ask the Hub about a repository, and give its refusal as a sentence; `None` if it has no objection."""
    try:
        huggingface_hub.HfApi(token=token).model_info(source, revision=revision, timeout=10)
    except (*HUB_ERRORS, ValueError, RuntimeError) as error:
        return hub_failure(error, source)
    return None


def _is_lost(error: BaseException) -> bool:
    """Whether a connection was lost, which huggingface_hub calls a closed client."""
    return isinstance(error, RuntimeError) and _CLOSED_CLIENT in str(error)


def _url_path(error: HfHubHTTPError) -> str:
    """Path of the request without host and query, which may carry a signature."""
    return str(getattr(getattr(error, "response", None), "url", "")).partition("?")[0]


# ---- mediffusion_diffusers/models/checkpoint_head.py

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


# ---- mediffusion_diffusers/models/classifier_head.py

NORM_TYPES = ("batch_norm",)
# How fast the running statistics follow: a class stage on few labels has some hundred steps.
_BATCH_NORM_MOMENTUM = 0.05


def classifier_head(
    num_features: int, num_labels: int, hidden_size: int, dropout: float = 0.0, norm_type: str | None = None
) -> nn.Sequential:
    """A two-layer MLP with LeakyReLU(0.2) (paper Sec. 3.2 and App. B), or one linear layer.

    The dropout before each linear layer is in the paper's authors' code only; the linear layer alone, which starts at
    zero so that no feature is preferred, and the normalisation are ours.

    Args:
        num_features: length of the pooled features.
        num_labels: number of logits.
        hidden_size: width of the hidden layer; 0 for one linear layer.
        dropout: before each linear layer, in [0, 1).
        norm_type: `"batch_norm"` standardises each feature first, without weights of its own; `None` does not.

    Returns:
        Modules in the order in which they are called.
    """
    layers: list[nn.Module] = []
    if norm_type == "batch_norm":
        layers.append(nn.BatchNorm1d(num_features, affine=False, momentum=_BATCH_NORM_MOMENTUM))
    layers.append(nn.Dropout(dropout))
    if hidden_size == 0:
        last = nn.Linear(num_features, num_labels)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        return nn.Sequential(*layers, last)
    layers += [nn.Linear(num_features, hidden_size), nn.LeakyReLU(0.2), nn.Dropout(dropout)]
    return nn.Sequential(*layers, nn.Linear(hidden_size, num_labels))


# ---- mediffusion_diffusers/options.py


@dataclass(frozen=True)
class Range:
    """Where a number may lie. Infinite numbers and NaN lie nowhere.

    Args:
        above: the number must be larger.
        at_least: the number must be as large or larger.
        below: the number must be smaller.
        at_most: the number must be as small or smaller.
    """

    above: float | None = None
    at_least: float | None = None
    below: float | None = None
    at_most: float | None = None

    def holds(self, value: float) -> bool:
        """Whether a number lies inside; written so that NaN does not."""
        try:
            is_finite = math.isfinite(value)
        except OverflowError:  # a whole number beyond all floats
            return False
        return (
            is_finite
            and (self.above is None or value > self.above)
            and (self.at_least is None or value >= self.at_least)
            and (self.below is None or value < self.below)
            and (self.at_most is None or value <= self.at_most)
        )

    def __str__(self) -> str:
        low = self.above if self.above is not None else self.at_least
        high = self.below if self.below is not None else self.at_most
        if low is None and high is None:
            return "finite"
        if high is None:
            return f"{'above' if self.above is not None else 'at least'} {low:g}"
        if low is None:
            return f"{'below' if self.below is not None else 'at most'} {high:g}"
        return f"in {'(' if self.above is not None else '['}{low:g}, {high:g}{')' if self.below is not None else ']'}"


def check_number(name: str, value: Any, allowed: Range | None = None, whole: bool = False) -> None:
    """Refuse what is not a number, not a whole one, not finite, or outside its range.

    Args:
        name: of the argument, for the message.
        value: what came.
        allowed: where it may lie; `None` lets any finite number pass.
        whole: only whole numbers.

    Raises:
        ValueError: naming the argument, what it must be and what came.
    """
    allowed = Range() if allowed is None else allowed
    is_number = isinstance(value, Integral if whole else Real) and not isinstance(value, bool)
    if not is_number or not allowed.holds(value):
        kind = "a whole number" if whole else "a number"
        raise ValueError(f"`{name}` must be {kind} {allowed}, but got {value!r}.".replace("a number finite", "finite"))


# ---- mediffusion_diffusers/models/feature_pooling.py

POOL_TYPES = ("avg", "avg_std")
_EPSILON = 1e-6  # keeps the gradient of a root finite where a map is constant


def num_pooled_features(channels: Sequence[int], pool_size: int, pool_type: str) -> int:
    """Length of the vector that `pool_maps` makes of maps with these channels."""
    return sum(channels) * (pool_size**2 + (pool_type == "avg_std"))


def pool_maps(maps: Sequence[torch.Tensor], pool_size: int, pool_type: str) -> torch.Tensor:
    """Pool every map and concatenate.

    Args:
        maps: shape `(batch, channels, height, width)` each; a `device_map` may have spread them over devices.
        pool_size: bins per side of which each map's means are taken; 1 is global average pooling.
        pool_type: `"avg"` is the means alone, `"avg_std"` also each whole map's standard deviation, after all means.

    Returns:
        Shape `(batch, num_pooled_features(...))`, on the last map's device.
    """
    device = maps[-1].device
    if pool_size == 1:
        pooled = [features.mean(dim=(2, 3)) for features in maps]
    else:
        pooled = [F.adaptive_avg_pool2d(features, pool_size).flatten(1) for features in maps]
    if pool_type == "avg_std":
        pooled += [(features.var(dim=(2, 3), correction=0) + _EPSILON).sqrt() for features in maps]
    return torch.cat([features.to(device) for features in pooled], dim=1)


# ---- mediffusion_diffusers/models/config_rules.py

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


# ---- mediffusion_diffusers/models/label_calibration.py


def check_label_calibration(calibration: Any, num_labels: int, problem_type: str) -> None:
    """Refuse what is no calibration of so many labels.

    Args:
        calibration: `{"slope": [...], "intercept": [...]}`, or None.
        num_labels: of the model.
        problem_type: with one class per image, only one slope for all and no intercept keep probabilities meaningful.

    Raises:
        ValueError: naming what is wrong.
    """
    if calibration is None:
        return
    given: Mapping[str, Any] = calibration if isinstance(calibration, Mapping) else {}
    slope: Any = given.get("slope")
    intercept: Any = given.get("intercept")
    if not (_are_numbers(slope, num_labels) and _are_numbers(intercept, num_labels) and min(slope) > 0):
        raise ValueError(
            f"`label_calibration` must hold `slope` (above 0) and `intercept`, {num_labels} numbers each, one per "
            f"label, but got {str(calibration)[:60]}."
        )
    if problem_type == "single_label_classification" and (len(set(slope)) > 1 or any(intercept)):
        raise ValueError("`label_calibration` of one class per image must have one slope for all and intercepts of 0.")


def _are_numbers(values: Any, num: int) -> bool:
    return (
        isinstance(values, (list, tuple))
        and len(values) == num
        and all(isinstance(value, Real) and math.isfinite(value) for value in values)
    )


# ---- mediffusion_diffusers/models/label_config.py

PROBLEM_TYPES = ("multi_label_classification", "single_label_classification")


def resolve_label_config(
    num_labels: int,
    problem_type: str,
    id2label: dict[int, str] | None,
    label2id: dict[str, int] | None,
    label_thresholds: list[float] | None,
    label_calibration: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Check the label settings against each other and fill in what was left out.

    Returns:
        `num_labels`, `id2label` with integer keys in order, `label2id`.

    Raises:
        ValueError: for settings of another type or size, or that contradict each other.
    """
    if problem_type not in PROBLEM_TYPES:
        raise ValueError(f"`problem_type` must be one of {PROBLEM_TYPES}, but got {problem_type!r}.")
    if id2label is None and label2id is not None:
        id2label = {index: name for name, index in _names("label2id", label2id).items()}
    if id2label is not None:
        id2label = {_index("id2label", index): str(name) for index, name in _names("id2label", id2label).items()}
        num_labels = len(id2label)
        if sorted(id2label) != list(range(num_labels)) or len(set(id2label.values())) != num_labels:
            raise ValueError(
                f"`id2label` must name every index from 0 to {num_labels - 1} once, with distinct names, but got "
                f"{id2label}."
            )
    whole(1, MAX_LABELS)("num_labels", num_labels)
    least = 2 if problem_type == "single_label_classification" else 1
    if num_labels < least:
        raise ValueError(f"`num_labels` must be at least {least} for {problem_type!r}, but got {num_labels}.")
    id2label = {index: id2label[index] if id2label else f"LABEL_{index}" for index in range(num_labels)}
    names = {name: index for index, name in id2label.items()}
    given = label2id and {str(name): _index("label2id", index) for name, index in _names("label2id", label2id).items()}
    if given is not None and given != names:
        raise ValueError(f"`label2id` must be the inverse of `id2label`, but got {label2id} for {id2label}.")
    if label_thresholds is not None and (
        not isinstance(label_thresholds, (list, tuple))
        or len(label_thresholds) != num_labels
        or not all(isinstance(threshold, Real) and 0 < threshold < 1 for threshold in label_thresholds)
    ):
        raise ValueError(
            f"`label_thresholds` must hold {num_labels} numbers in (0, 1), one per label, but got {label_thresholds}."
        )
    check_label_calibration(label_calibration, num_labels, problem_type)
    return {"num_labels": num_labels, "id2label": id2label, "label2id": names}


def _names(parameter: str, value: Any) -> Mapping[Any, Any]:
    """A mapping between labels and indices, not too large and not nested."""
    if not isinstance(value, Mapping) or not 1 <= len(value) <= MAX_LABELS:
        raise ValueError(
            f"`{parameter}` must be a mapping of 1 to {MAX_LABELS} labels, but is a {type(value).__name__}."
        )
    for part in (*value.keys(), *value.values()):
        if not isinstance(part, (str, int)) or len(str(part)) > MAX_NAME_LENGTH:
            raise ValueError(
                f"`{parameter}` must hold names of at most {MAX_NAME_LENGTH} characters and whole numbers, but holds "
                f"a {type(part).__name__}."
            )
    return value


def _index(parameter: str, value: Any) -> int:
    """A label's index; JSON turns keys into strings."""
    try:
        return int(value)
    except ValueError:
        raise ValueError(f"`{parameter}` must number the labels from 0, but holds {value!r} as a number.") from None


# ---- mediffusion_diffusers/digests.py


def sha256_of(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's content, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


# ---- mediffusion_diffusers/models/model_folder.py

PICKLED_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".msgpack", ".h5")
PREPROCESSOR_FILE = "preprocessor_config.json"
_INDEX_SUFFIX = ".safetensors.index.json"


def safetensors_alone(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a `from_pretrained` with `use_safetensors=True`.

    Raises:
        ValueError: if they ask for pickled weights.
    """
    if kwargs.get("use_safetensors") is False:
        raise ValueError("`use_safetensors` must be True: pickled weights can run code and are never read. " + CONVERT)
    return {**kwargs, "use_safetensors": True}


CONVERT = (
    "Convert them with `save_pretrained(folder, safe_serialization=True)` where you trust their origin, or ask the "
    "publisher for safetensors."
)


def refuse_pickled(names: list[str], source: str) -> None:
    """Refuse a model whose weights are pickled alone.

    Args:
        names: its files.
        source: its folder or repository.

    Raises:
        ValueError: naming a pickled file, if there are no safetensors beside it.
    """
    pickled = [name for name in names if name.endswith(PICKLED_SUFFIXES)]
    if pickled and not any(name.endswith(".safetensors") for name in names):
        raise ValueError(
            f"{source} holds weights only as {pickled[0]}, which may run code when it is read; it was not read. "
            + CONVERT
        )


def check_model_folder(folder: str | os.PathLike[str], subfolder: str | None = None, kind: str | None = None) -> None:
    """Check the config of a model in a local folder, the names of its weights, and in the Hub's cache their digests.

    Args:
        folder: holds `config.json` and weights.
        subfolder: the part of a pipeline folder.
        kind: class that will be built; by default what the config says.

    Raises:
        ValueError: if the config is damaged or asks for too much, or weights are pickled or not those of the Hub.
    """
    folder = Path(folder) / (subfolder or "")
    if (folder / "config.json").exists():
        read_config(folder / "config.json", kind)
    if (folder / PREPROCESSOR_FILE).exists():
        read_config(folder / PREPROCESSOR_FILE)
    if not folder.is_dir():
        return
    refuse_pickled(sorted(path.name for path in folder.iterdir()), str(folder))
    for weights in folder.glob("*.safetensors"):
        check_cached_file(weights)
    for index in folder.glob(f"*{_INDEX_SUFFIX}"):
        shards = read_config(index).get("weight_map")
        names = list(shards.values()) if isinstance(shards, dict) else [None]
        if not all(isinstance(name, str) and name == f"{Path(name).stem}.safetensors" for name in names):
            raise ValueError(
                f"{index} must name safetensors files beside it alone. Get the model from its origin again."
            )


def check_cached_file(path: Path) -> None:
    """Refuse a file in the Hub's cache that is not what was published; the Hub's client compares sizes alone.

    Large files lie there under the SHA-256 of their content. Others, and files elsewhere, are let pass.

    Args:
        path: the file.

    Raises:
        ValueError: naming the file to delete.
    """
    blob = path.resolve()
    if blob.parent.name != "blobs" or re.fullmatch("[0-9a-f]{64}", blob.name) is None:
        return
    state = blob.stat()
    if _digest(blob, state.st_size, state.st_mtime_ns) != blob.name:
        raise ValueError(
            f"{path.name} was damaged on its way from the Hub or on this disk: its SHA-256 is not the one that was "
            f"published. Delete {blob} and load again."
        )


@lru_cache(maxsize=128)
def _digest(path: Path, size: int, mtime_ns: int) -> str:
    """SHA-256 of a file, computed once as long as it stays as it is."""
    return sha256_of(path)


# ---- mediffusion_diffusers/models/joint_unet_2d.py

MAX_HEAD_PARAMETERS = 2**28


@dataclass
class JointUNet2DOutput(BaseOutput):
    """Output of [`JointUNet2DModel`]; a field that was not asked for is `None` and vanishes.

    Args:
        sample: prediction of the diffusion model, shape `(batch, out_channels, height, width)`.
        logits: class scores before sigmoid or softmax, shape `(batch, num_labels)`.
    """

    sample: torch.Tensor | None = None
    logits: torch.Tensor | None = None


class EncoderOutput(NamedTuple):
    """What the encoder half hands to the classifier and to the decoder half.

    Args:
        sample: output of the middle block (of the last down block, if there is none).
        skips: every encoder output, `conv_in` first: the decoder's skip connections, last first.
        emb: timestep (and conditioning) embedding, shape `(batch, time_embed_dim)`.
        timesteps: one timestep per image, shape `(batch,)`.
    """

    sample: torch.Tensor
    skips: tuple[torch.Tensor, ...]
    emb: torch.Tensor
    timesteps: torch.Tensor


class JointUNet2DModel(UNet2DModel, PeftAdapterMixin):
    r"""[`~diffusers.UNet2DModel`] whose encoder also classifies: `p(y | z_t)` and `eps(z_t)` share their weights.

    The encoder's feature maps (every skip connection and the middle block) are average pooled, concatenated and
    classified by a two-layer MLP with LeakyReLU(0.2) (paper Sec. 3.2 and App. B; the dropout is its authors').
    `sample` equals the parent's output bit for bit.

    Args:
        sample_size: see [`~diffusers.UNet2DModel`], like all arguments up to `num_train_timesteps`.
        num_labels: number of classes or findings; taken from `id2label` when that is given.
        problem_type: `"multi_label_classification"` (independent findings, sigmoid) or
            `"single_label_classification"` (one class per image, softmax), as in transformers.
        id2label: names of the labels; `LABEL_0`, ... when absent.
        label2id: the inverse of `id2label`, derived when absent.
        classifier_pool_size: each feature map is pooled to this many bins per side; 1 is global average pooling.
        classifier_pool_type: `"avg"`: the bins' means; `"avg_std"`: also the standard deviation of each whole map.
        max_classifier_features: upper bound of the concatenated features (paper Sec. 4: 10,000).
        classifier_hidden_size: width of the MLP's hidden layer; 0 for one linear layer, which starts at zero.
        classifier_norm_type: `"batch_norm"` standardises the pooled features first; `None`, as in the paper, does not.
        classifier_dropout: dropout before each of the MLP's linear layers, in [0, 1).
        label_thresholds: probability from which a label counts as present, one per label in (0, 1); written by
            training from the validation split.
        guidance_defaults: defaults of the counterfactual pipeline for this checkpoint, such as `strength` and
            `guidance_scale` (one number, or one for `"towards"` and one for `"away"`): the options that
            `CounterfactualSettings` marks as stored. The guided pipeline takes its scale and mode. Scales and
            strengths belong to a checkpoint and its autoencoder; they do not transfer.
        label_calibration: `slope` and `intercept` of the logits, one per label each; used only by `calibrated=True`.

    Raises:
        ValueError: for label settings that contradict each other or more features than `max_classifier_features`.
    """

    _no_split_modules = ("ResnetBlock2D", "Attention")

    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] | None = None,
        in_channels: int = 3,
        out_channels: int = 3,
        center_input_sample: bool = False,
        time_embedding_type: str = "positional",
        time_embedding_dim: int | None = None,
        freq_shift: int = 0,
        flip_sin_to_cos: bool = True,
        down_block_types: tuple[str, ...] = ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        mid_block_type: str | None = "UNetMidBlock2D",
        up_block_types: tuple[str, ...] = ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        block_out_channels: tuple[int, ...] = (224, 448, 672, 896),
        layers_per_block: int = 2,
        mid_block_scale_factor: float = 1,
        downsample_padding: int = 1,
        downsample_type: str = "conv",
        upsample_type: str = "conv",
        dropout: float = 0.0,
        act_fn: str = "silu",
        attention_head_dim: int | None = 8,
        norm_num_groups: int = 32,
        attn_norm_num_groups: int | None = None,
        norm_eps: float = 1e-5,
        resnet_time_scale_shift: str = "default",
        add_attention: bool = True,
        class_embed_type: str | None = None,
        num_class_embeds: int | None = None,
        num_train_timesteps: int | None = None,
        num_labels: int = 2,
        problem_type: str = "multi_label_classification",
        id2label: dict[int, str] | None = None,
        label2id: dict[str, int] | None = None,
        classifier_pool_size: int = 1,
        classifier_pool_type: str = "avg",
        max_classifier_features: int = 10000,
        classifier_hidden_size: int = 1024,
        classifier_norm_type: str | None = None,
        classifier_dropout: float = 0.3,
        label_thresholds: list[float] | None = None,
        guidance_defaults: dict[str, Any] | None = None,
        label_calibration: dict[str, Any] | None = None,
    ):
        check_config("JointUNet2DModel", locals())
        super().__init__(
            sample_size=sample_size,
            in_channels=in_channels,
            out_channels=out_channels,
            center_input_sample=center_input_sample,
            time_embedding_type=time_embedding_type,
            time_embedding_dim=time_embedding_dim,
            freq_shift=freq_shift,
            flip_sin_to_cos=flip_sin_to_cos,
            down_block_types=tuple(down_block_types),
            mid_block_type=mid_block_type,
            up_block_types=tuple(up_block_types),
            block_out_channels=tuple(block_out_channels),
            layers_per_block=layers_per_block,
            mid_block_scale_factor=mid_block_scale_factor,
            downsample_padding=downsample_padding,
            downsample_type=downsample_type,
            upsample_type=upsample_type,
            dropout=dropout,
            act_fn=act_fn,
            attention_head_dim=attention_head_dim,
            norm_num_groups=norm_num_groups,
            attn_norm_num_groups=attn_norm_num_groups,
            norm_eps=norm_eps,
            resnet_time_scale_shift=resnet_time_scale_shift,
            add_attention=add_attention,
            class_embed_type=class_embed_type,
            num_class_embeds=num_class_embeds,
            num_train_timesteps=num_train_timesteps,
        )
        described = (num_labels, problem_type, id2label, label2id, label_thresholds, label_calibration)
        self.register_to_config(**resolve_label_config(*described))

        num_features = self.num_classifier_features
        if num_features > max_classifier_features:
            raise ValueError(
                f"`classifier_pool_size={classifier_pool_size}` gives {num_features} classifier features, more than "
                f"`max_classifier_features={max_classifier_features}`. Lower the former or raise the latter."
            )
        if num_features * classifier_hidden_size > MAX_HEAD_PARAMETERS:
            raise ValueError(
                f"`classifier_hidden_size` {classifier_hidden_size} times {num_features} features is more than the "
                f"{MAX_HEAD_PARAMETERS} weights that a head may have. Lower it or `classifier_pool_size`."
            )
        self.classifier = self._new_head()

    @property
    def num_classifier_features(self) -> int:
        """Length of the concatenated, pooled feature vector (5,632 at the paper's shape)."""
        config = self.config
        channels = [config.block_out_channels[0]]
        for index, width in enumerate(config.block_out_channels):
            is_last = index == len(config.block_out_channels) - 1
            channels += [width] * (config.layers_per_block + (not is_last))
        if self.mid_block is not None:
            channels.append(config.block_out_channels[-1])
        return num_pooled_features(channels, config.classifier_pool_size, config.classifier_pool_type)

    def _new_head(self) -> nn.Sequential:
        config = self.config
        shape = (self.num_classifier_features, config.num_labels, config.classifier_hidden_size)
        return classifier_head(*shape, config.classifier_dropout, config.classifier_norm_type)

    @property
    def id2label(self) -> dict[int, str]:
        """Label names by index (JSON turns the keys into strings; this turns them back)."""
        return {int(index): name for index, name in self.config.id2label.items()}

    @property
    def label_names(self) -> list[str]:
        """Label names in the order of the logits."""
        return [self.id2label[index] for index in range(self.config.num_labels)]

    def encode(
        self, sample: torch.Tensor, timestep: torch.Tensor | float | int, class_labels: torch.Tensor | None = None
    ) -> EncoderOutput:
        """Run the encoder half: `conv_in`, the down blocks and the middle block.

        Args:
            sample: noisy latents, shape `(batch, in_channels, height, width)`.
            timestep: one number for all images, or shape `(1,)` or `(batch,)`.
            class_labels: *conditioning* of a class-conditional U-Net (not targets), shape `(batch,)`.

        Returns:
            The features for `classify` and `decode`.

        Raises:
            ValueError: if `class_labels` is given without, or missing with, class conditioning.
        """
        if self.config.center_input_sample:
            sample = 2 * sample - 1.0

        if not torch.is_tensor(timestep):
            timestep = torch.tensor(timestep, dtype=torch.long)
        # A single number stays where it is: to copy it would make the host wait for an accelerator.
        timesteps = timestep.reshape(()) if timestep.numel() == 1 else timestep.reshape(-1).to(sample.device)
        timesteps = timesteps * torch.ones(sample.shape[0], dtype=timesteps.dtype, device=sample.device)
        emb = self.time_embedding(self.time_proj(timesteps).to(dtype=self.dtype))

        if self.class_embedding is None and class_labels is not None:
            raise ValueError(
                "`class_labels` condition the U-Net and need `num_class_embeds` or `class_embed_type` in its config, "
                "but there is neither. The labels to guide towards are arguments of the pipelines, not of the U-Net."
            )
        if self.class_embedding is not None:
            if class_labels is None:
                raise ValueError("`class_labels` must be given, because this U-Net is conditioned on classes.")
            if self.config.class_embed_type == "timestep":
                class_labels = self.time_proj(class_labels)
            emb = emb + self.class_embedding(class_labels).to(dtype=self.dtype)

        skip_sample = sample
        sample = self.conv_in(sample)
        skips: tuple[torch.Tensor, ...] = (sample,)
        for block in self.down_blocks:
            if hasattr(block, "skip_conv"):
                sample, outputs, skip_sample = block(hidden_states=sample, temb=emb, skip_sample=skip_sample)
            else:
                sample, outputs = block(hidden_states=sample, temb=emb)
            skips += outputs
        if self.mid_block is not None:
            sample = self.mid_block(sample, emb)
        return EncoderOutput(sample, skips, emb, timesteps)

    def pool_features(self, encoded: EncoderOutput) -> torch.Tensor:
        """Pool every encoder map and concatenate: shape `(batch, num_classifier_features)`."""
        maps = encoded.skips if self.mid_block is None else (*encoded.skips, encoded.sample)
        return pool_maps(maps, self.config.classifier_pool_size, self.config.classifier_pool_type)

    def classify(self, encoded: EncoderOutput) -> torch.Tensor:
        """Run the classifier head on encoder features: logits of shape `(batch, num_labels)`."""
        return self.classifier(self.pool_features(encoded))

    def decode(self, encoded: EncoderOutput) -> torch.Tensor:
        """Run the decoder half: the diffusion model's prediction, shape `(batch, out_channels, height, width)`."""
        sample, skips, emb, timesteps = encoded
        skip_sample = None
        for block in self.up_blocks:
            count = len(block.resnets)
            skips, block_skips = skips[:-count], skips[-count:]
            if hasattr(block, "skip_conv"):
                sample, skip_sample = block(sample, block_skips, emb, skip_sample)
            else:
                sample = block(sample, block_skips, emb)

        sample = self.conv_out(self.conv_act(self.conv_norm_out(sample)))
        if skip_sample is not None:
            sample = sample + skip_sample
        if self.config.time_embedding_type == "fourier":
            sample = sample / timesteps.reshape(-1, *([1] * (sample.ndim - 1)))
        return sample

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        class_labels: torch.Tensor | None = None,
        return_sample: bool = True,
        return_logits: bool = True,
        return_dict: bool = True,
        detach_decoder: bool = False,
    ) -> JointUNet2DOutput | tuple[torch.Tensor, ...]:
        """Predict the noise, the class logits, or both from one encoder pass.

        Args:
            sample: noisy latents, shape `(batch, in_channels, height, width)`.
            timestep: one number for all images, or shape `(1,)` or `(batch,)`.
            class_labels: conditioning of a class-conditional U-Net, shape `(batch,)`; not the classifier's targets.
            return_sample: run the decoder half.
            return_logits: run the classifier head.
            return_dict: return a [`JointUNet2DOutput`] rather than a tuple without the missing fields.
            detach_decoder: run the decoder half without a graph, on detached features. Guidance needs the gradient
                of the logits alone, and this saves the decoder's activations.

        Returns:
            `sample` and `logits`, as asked for.

        Raises:
            ValueError: if neither output is asked for, or as in `encode`.
        """
        if not (return_sample or return_logits):
            raise ValueError("At least one of `return_sample` and `return_logits` must be True.")
        encoded = self.encode(sample, timestep, class_labels)
        logits = self.classify(encoded) if return_logits else None
        prediction = None
        if return_sample and detach_decoder:
            with torch.no_grad():
                skips = tuple(skip.detach() for skip in encoded.skips)
                prediction = self.decode(encoded._replace(sample=encoded.sample.detach(), skips=skips))
        elif return_sample:
            prediction = self.decode(encoded)
        if not return_dict:
            return tuple(value for value in (prediction, logits) if value is not None)
        return JointUNet2DOutput(sample=prediction, logits=logits)

    @classmethod
    def from_unet(cls, unet: UNet2DModel, **classifier_kwargs: Any) -> JointUNet2DModel:
        """Build a joint model from any [`~diffusers.UNet2DModel`], copying its weights; the head starts fresh.

        Args:
            unet: the diffusion model to extend. If it is a joint model, its head is copied too, unless the new head
                has another shape.
            classifier_kwargs: any of this class's own arguments (`num_labels`, `id2label`, `problem_type`, ...).

        Returns:
            A new model with the dtype and device of `unet`.

        Raises:
            ValueError: if an argument changes the shape of the U-Net itself, so that its weights no longer fit.
        """
        config = {name: value for name, value in unet.config.items() if not name.startswith("_")}
        if {"num_labels", "id2label"} & classifier_kwargs.keys():  # new labels: the old names and thresholds are void
            for name in ("num_labels", "id2label", "label2id", "label_thresholds", "label_calibration"):
                config.pop(name, None)
        model = cls(**{**config, **classifier_kwargs})
        weights = fitting_weights(model.state_dict(), unet.state_dict(), sorted(classifier_kwargs))
        model.load_state_dict(weights, strict=False)
        model = model.to(unet.device)
        # ModelMixin.to warns about every cast.
        return model if model.dtype == unet.dtype else model.to(unet.dtype)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike | None, **kwargs: Any
    ) -> JointUNet2DModel | tuple[JointUNet2DModel, dict[str, Any]]:
        """Load a joint model; see [`~diffusers.ModelMixin.from_pretrained`].

        A head that the checkpoint lacks, or holds for another number of labels, would be left as uninitialised
        memory by the parent; here it is refused, unless the caller asks for a fresh one.

        Args:
            pretrained_model_name_or_path: folder or Hub repository.
            kwargs: as for the parent, and config overrides such as `num_labels`. `ignore_mismatched_sizes=True`
                (transformers' argument) initialises a missing or mismatched head afresh, with a warning.

        Raises:
            ValueError: if the head's weights are missing or of another shape, there are pickled weights alone, or a
                file is damaged.
        """
        kwargs = safetensors_alone(kwargs)
        source, subfolder = str(pretrained_model_name_or_path), kwargs.get("subfolder")
        if os.path.isdir(source):
            check_model_folder(source, subfolder)
        fresh_head = kwargs.pop("ignore_mismatched_sizes", False)
        output_loading_info = kwargs.pop("output_loading_info", False)
        kwargs = with_label_defaults(kwargs)
        try:
            with hub_access(source, kwargs.get("revision"), kwargs.get("token")):
                model, info = super().from_pretrained(
                    pretrained_model_name_or_path, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
                )
        except NotImplementedError as error:
            if kwargs.get("device_map") is None:
                raise
            # The parent moves the model to its devices before it reports what is missing.
            raise ValueError(
                f"Checkpoint {source!r} lacks weights, probably those of the classifier "
                "head, and cannot be spread by `device_map`. Load it without `device_map` to see which."
            ) from error
        if not is_whole(info, source, model.config.num_labels, fresh_head):
            warn_about_fresh_head()
            model.classifier = model._new_head().to(model.conv_in.weight)
        return (model, info) if output_loading_info else model


# ---- mediffusion_diffusers/models/autoencoder_space_to_depth.py


class PointDistribution:
    """The posterior of a deterministic encoder: all mass at one point.

    Args:
        parameters: the latents, shape `(batch, latent_channels, height, width)`.
    """

    def __init__(self, parameters: torch.Tensor):
        self.parameters = parameters

    def mode(self) -> torch.Tensor:
        """The latents."""
        return self.parameters

    def sample(self, generator: torch.Generator | None = None) -> torch.Tensor:
        """The latents; `generator` is not needed."""
        return self.parameters

    def kl(self) -> torch.Tensor:
        """Zero per image: there is no noise to pay for."""
        return self.parameters.new_zeros(len(self.parameters))


class SpaceToDepthAutoencoder(ModelMixin, ConfigMixin):
    """A parameter-free autoencoder with the interface of [`~diffusers.AutoencoderKL`] that loses nothing.

    Blocks of `block_size x block_size` pixels become channels, so that a 1x32x32 image is a 4x16x16 latent and the
    U-Net's first level is spared. It keeps small-image experiments free of reconstruction error.

    Args:
        in_channels: channels of the images.
        out_channels: the same, kept for the interface of `AutoencoderKL`.
        block_size: side of the blocks; the image's sides must be multiples of it.
        latent_channels: channels of the latents, `in_channels * block_size**2`; may be left out.
        sample_size: side of the images in pixels, if fixed.
        scaling_factor: the U-Net sees latents times this factor.
    """

    @register_to_config
    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 1,
        block_size: int = 2,
        latent_channels: int | None = None,
        sample_size: int | None = None,
        scaling_factor: float = 1.0,
    ):
        check_config("SpaceToDepthAutoencoder", locals())
        super().__init__()
        if in_channels != out_channels:
            raise ValueError(f"`in_channels` ({in_channels}) and `out_channels` ({out_channels}) must be equal.")
        if latent_channels not in (None, in_channels * block_size**2):
            raise ValueError(
                f"`latent_channels` follows from the others and must be {in_channels * block_size**2}, but got "
                f"{latent_channels}. Leave it out."
            )
        self.register_to_config(latent_channels=in_channels * block_size**2)
        # `dtype` and `device` of a model are those of its parameters, and a checkpoint must hold at least one.
        self.marker = nn.Parameter(torch.zeros(1), requires_grad=False)

    @apply_forward_hook
    def encode(self, x: torch.Tensor, return_dict: bool = True) -> AutoencoderKLOutput | tuple[PointDistribution]:
        """Encode images of shape `(batch, in_channels, height, width)` in [-1, 1].

        Raises:
            ValueError: if a side is no multiple of `block_size`.
        """
        block = self.config.block_size
        if x.shape[-1] % block or x.shape[-2] % block:
            raise ValueError(f"The image's sides must be multiples of {block}, but it is {tuple(x.shape[-2:])}.")
        posterior = PointDistribution(F.pixel_unshuffle(x, block))
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    @apply_forward_hook
    def decode(
        self, z: torch.Tensor, return_dict: bool = True, generator: torch.Generator | None = None
    ) -> DecoderOutput | tuple[torch.Tensor]:
        """Decode latents of shape `(batch, latent_channels, height, width)`; the exact inverse of `encode`."""
        sample = F.pixel_shuffle(z, self.config.block_size)
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    def forward(self, sample: torch.Tensor, return_dict: bool = True) -> DecoderOutput | tuple[torch.Tensor]:
        """Encode and decode: returns `sample` unchanged."""
        return self.decode(self.encode(sample).latent_dist.mode(), return_dict=return_dict)


# ---- mediffusion_diffusers/guidance/formulas.py


def predict_original_sample(
    model_output: torch.Tensor, sample: torch.Tensor, alpha_prod_t: torch.Tensor, prediction_type: str = "epsilon"
) -> torch.Tensor:
    """The clean latents z_0 that a prediction implies (Eq. 12 of DDIM, "predicted x_0"); same shape."""
    if prediction_type == "epsilon":
        return (sample - (1 - alpha_prod_t).sqrt() * model_output) / alpha_prod_t.sqrt()
    if prediction_type == "v_prediction":
        return alpha_prod_t.sqrt() * sample - (1 - alpha_prod_t).sqrt() * model_output
    return model_output


# ---- mediffusion_diffusers/schedulers/scheduling_multistep_ddim.py


class MultistepDDIMScheduler(DDIMScheduler):
    """DDIM between the points of a chosen grid: upwards it inverts an image, downwards it denoises.

    Counterfactuals start at a partial noise level and take few steps, which `DDIMScheduler` cannot express: its grid
    always spans the whole schedule. Clean latents count as level t = 0, DDIM's convention with
    `set_alpha_to_one=False`. `clip_sample` and `thresholding` of the config are not applied: an inversion could not
    undo them.

    With `solver_order=2` the step uses `1.5 e_i - 0.5 e_(i-1)` instead of the noise prediction `e_i` (Adams-Bashforth
    in the grid's own parameter): second order without another evaluation of the model. Make one from any DDIM or DDPM
    scheduler with `MultistepDDIMScheduler.from_config(scheduler.config)`.
    """

    def set_grid(
        self,
        num_inference_steps: int,
        max_timestep: int,
        inverse: bool = False,
        solver_order: int = 2,
        device: str | torch.device | None = None,
    ) -> None:
        """Choose the grid and forget all earlier steps.

        Args:
            num_inference_steps: number of steps; the grid has one point more. At most `max_timestep`.
            max_timestep: noisiest level, in [1, num_train_timesteps).
            inverse: climb from 0 to `max_timestep` instead of descending to 0.
            solver_order: 1 is plain DDIM on a uniform grid; 2 uses the grid `t = max_timestep * u^1.5`, u uniform.
            device: of `timesteps`.

        Raises:
            ValueError: for numbers outside these ranges.
        """
        if solver_order not in (1, 2):
            raise ValueError(f"`solver_order` must be 1 (DDIM) or 2 (Adams-Bashforth), but got {solver_order}.")
        grid = time_grid(num_inference_steps, max_timestep, power=1.0 if solver_order == 1 else 1.5)
        if max_timestep >= self.config.num_train_timesteps:
            raise ValueError(
                f"`max_timestep` must be below `num_train_timesteps` ({self.config.num_train_timesteps}), but got "
                f"{max_timestep}."
            )
        grid = grid if inverse else grid[::-1].copy()
        self.grid = torch.from_numpy(grid).to(device)
        self.timesteps = self.grid[:-1]
        self.num_inference_steps = num_inference_steps
        self.solver_order = solver_order
        self.step_index = 0
        self.last_epsilon: torch.Tensor | None = None

    def skip_step(self) -> None:
        """Go on to the next grid point with the sample as it is."""
        self.step_index += 1

    def noise_weight(self) -> torch.Tensor:
        """What the noise adds to the next sample, dz / d eps, at the current step taken in first order; a scalar."""
        alpha_prod_t, alpha_prod_next = (
            self.alphas_cumprod[int(self.grid[index])] for index in (self.step_index, self.step_index + 1)
        )
        return (1 - alpha_prod_next).sqrt() - (alpha_prod_next * (1 - alpha_prod_t) / alpha_prod_t).sqrt()

    def step(  # type: ignore[override]
        self,
        model_output: torch.Tensor,
        timestep: int | torch.Tensor,
        sample: torch.Tensor,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        variance_noise: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> DDIMSchedulerOutput | tuple[torch.Tensor, torch.Tensor]:
        """Move `sample` from this grid point to the next (Eq. 12 and 16 of DDIM).

        Args:
            model_output: prediction at `timestep`, in the config's `prediction_type`.
            timestep: the grid point where `sample` is; steps must be taken in order.
            sample: latents, shape `(batch, channels, height, width)`.
            eta: share of fresh noise in [0, 1]; 1 is ancestral sampling (DDPM). Descending, first order only.
            generator: source of that noise.
            variance_noise: that noise itself, instead of a generator's.
            return_dict: return a `DDIMSchedulerOutput` rather than a tuple.

        Returns:
            The latents at the next grid point and the predicted clean latents.

        Raises:
            ValueError: if no grid is set or it is finished, `timestep` is not the current point, or `eta` cannot be
                used.
        """
        if not hasattr(self, "grid"):
            raise ValueError("Call `set_grid` before `step`.")
        if self.step_index == self.num_inference_steps:
            raise ValueError("The grid has been walked to its end. Call `set_grid` to start again.")
        if int(timestep) != int(self.grid[self.step_index]):
            raise ValueError(
                f"`timestep` must be {int(self.grid[self.step_index])}, the grid's point number {self.step_index}, "
                f"but got {int(timestep)}. Steps are taken in order; call `set_grid` to start again."
            )
        following = int(self.grid[self.step_index + 1])
        if eta > 0 and (self.solver_order != 1 or following > int(timestep)):
            raise ValueError("`eta` > 0 needs `solver_order=1` and a descending grid.")
        # In full precision whatever the latents' dtype: half precision rounds 1 - abar_t away near t = 0.
        # Where they are, since single numbers need no copy, for which the host would wait for an accelerator.
        alpha_prod_t = self.alphas_cumprod[int(timestep)]
        alpha_prod_next = self.alphas_cumprod[following]

        pred_original_sample = predict_original_sample(model_output, sample, alpha_prod_t, self.config.prediction_type)
        if self.config.prediction_type == "epsilon":
            epsilon = model_output
        else:
            epsilon = (sample - alpha_prod_t.sqrt() * pred_original_sample) / (1 - alpha_prod_t).sqrt()

        if self.solver_order == 2:
            previous, self.last_epsilon = self.last_epsilon, epsilon
            if previous is not None:
                epsilon = 1.5 * epsilon - 0.5 * previous
                pred_original_sample = predict_original_sample(epsilon, sample, alpha_prod_t)

        # Eq. 16 of DDIM: sigma_t(eta); Eq. 12: the step.
        variance = (1 - alpha_prod_next) / (1 - alpha_prod_t) * (1 - alpha_prod_t / alpha_prod_next)
        sigma = eta * variance.clamp(min=0).sqrt()
        direction = (1 - alpha_prod_next - sigma**2).sqrt() * epsilon
        prev_sample = alpha_prod_next.sqrt() * pred_original_sample + direction
        if eta > 0:
            if variance_noise is None:
                place: dict[str, Any] = {"device": sample.device, "dtype": sample.dtype}
                variance_noise = randn_tensor(sample.shape, generator=generator, **place)
            prev_sample = prev_sample + sigma * variance_noise
        self.step_index += 1
        if not return_dict:
            return (prev_sample, pred_original_sample)
        return DDIMSchedulerOutput(prev_sample=prev_sample, pred_original_sample=pred_original_sample)


def time_grid(num_steps: int, max_timestep: int, power: float = 1.0) -> np.ndarray:
    """Rising grid `max_timestep * u^power` for uniform u in [0, 1], rounded to distinct timesteps.

    Args:
        num_steps: number of intervals, in [1, max_timestep].
        max_timestep: last point; the first is 0.
        power: at least 1; larger puts more points near 0.

    Returns:
        Integers of shape `(num_steps + 1,)`, strictly increasing.

    Raises:
        ValueError: if `num_steps` is outside its range.
    """
    if not 1 <= num_steps <= max_timestep:
        raise ValueError(
            f"The number of steps must lie in [1, {max_timestep}] (one per timestep below the start at most), but got "
            f"{num_steps}."
        )
    grid = np.round(max_timestep * np.linspace(0, 1, num_steps + 1) ** power).astype(np.int64)
    # A convex curve lies below the line, so pushing points apart from 0 upwards never passes `max_timestep`.
    for index in range(1, num_steps + 1):
        grid[index] = max(grid[index], grid[index - 1] + 1)
    return grid
