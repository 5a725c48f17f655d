"""Explain a decision by the image that would change it (paper Sec. 3.5, App. F).

Generated from the package `mediffusion_diffusers` by `make bundle`. Do not edit: edit the package.
Needs torch, diffusers, transformers and pillow alone. Research use only: not a medical device.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import math
import os
import re
import textwrap
import threading
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from numbers import Integral, Real
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, Union, get_args, get_type_hints

import huggingface_hub
import numpy as np
import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    UNet2DModel,
)
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines import pipeline_loading_utils
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
from diffusers.utils import BaseOutput, logging, replace_example_docstring
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
from PIL import ExifTags, Image
from safetensors import SafetensorError, safe_open
from torch import nn
from torch.autograd.graph import saved_tensors_hooks


# Classes of other files and bases of the class below are known here by their parents.
JointUNet2DModel = UNet2DModel
SpaceToDepthAutoencoder = ModelMixin
MediffusionPipeline = DiffusionPipeline


# ---- mediffusion_diffusers/device.py


def memory_format_for(device: torch.device) -> torch.memory_format:
    """The order in which the convolutions of a device read weights and images best.

    A CPU reads (batch, height, width, channels). On a GPU group normalisation, of which the U-Net has one before each
    convolution, brings its input back to (batch, channels, height, width).

    Args:
        device: where the convolutions run.
    """
    return torch.channels_last if device.type == "cpu" else torch.contiguous_format


# ---- mediffusion_diffusers/guidance/freezing.py


def hold_saved_tensors() -> saved_tensors_hooks:
    """Keep for the backward pass the weights that the forward pass used.

    Layerwise casting and group offloading exchange a parameter's data right after its forward; a graph that refers to
    the parameter would find the small or absent copy.
    """
    return saved_tensors_hooks(lambda tensor: tensor.detach(), lambda tensor: tensor)


@dataclass
class _Held:
    """What a module was before the first of those who sample with it.

    Args:
        training: its mode.
        frozen: names of its own parameters that carried a gradient.
        num_holders: how many are sampling with it.
    """

    training: bool
    frozen: list[str]
    num_holders: int = 0


_held: dict[nn.Module, _Held] = {}
_lock = threading.Lock()


@contextmanager
def sampling_mode(*modules: nn.Module) -> Iterator[None]:
    """Put modules in evaluation mode and freeze their parameters; the last one to leave restores both.

    Several threads may sample with the same modules: each is changed by the first and restored by the last of them.
    """
    parts = list(dict.fromkeys(part for root in modules for part in root.modules()))
    with _lock:
        for part in parts:
            _hold(part)
    try:
        yield
    finally:
        with _lock:
            for part in parts:
                _let_go(part)


def _hold(module: nn.Module) -> None:
    held = _held.get(module)
    if held is None:
        # By name: sequential offloading puts new parameters in the place of the old ones.
        own = module.named_parameters(recurse=False)
        held = _held[module] = _Held(module.training, [name for name, parameter in own if parameter.requires_grad])
        module.training = False
        for name in held.frozen:
            getattr(module, name).requires_grad_(False)
    held.num_holders += 1


def _let_go(module: nn.Module) -> None:
    held = _held[module]
    held.num_holders -= 1
    if held.num_holders > 0:
        return
    del _held[module]
    module.training = held.training
    for name in held.frozen:
        getattr(module, name).requires_grad_(True)


# ---- mediffusion_diffusers/choices.py

# Where the classifier is asked: the model's own, in three places (see `guidance.predict_guided`).
OwnGuidanceMode = Literal["zt", "x0_detached", "x0"]


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


def option(default: Any, help: str, **metadata: Any) -> Any:
    """A dataclass field with its help text.

    Args:
        default: its default; a list or dict is copied for each instance.
        help: one or two sentences, for `--help`, docstrings and cards.
        metadata: more for the command line (see `option_parser`): `positional`, `aliases`, `metavar`, or `const`, the
            value of an option that is named without one.
    """
    metadata = {"help": help, **metadata}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


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


def check_options(options: Any) -> None:
    """Check every field of a dataclass whose type states a range or choices; lists and dicts item by item.

    Args:
        options: an instance.

    Raises:
        ValueError: for the first field that does not hold what its type says.
    """
    hints = typing.get_type_hints(type(options), include_extras=True)
    for entry in fields(options):
        _check(entry.name, getattr(options, entry.name), hints[entry.name])


def range_of(options_class: type, name: str) -> Range | None:
    """The range in a field's type, if it states one."""
    return range_in(typing.get_type_hints(options_class, include_extras=True)[name])


def range_in(hint: Any) -> Range | None:
    """The range in a type, or in one of a union's, if it states one."""
    stated = [extra for part in (hint, *_members(hint)) for extra in getattr(part, "__metadata__", ())]
    return next((extra for extra in stated if isinstance(extra, Range)), None)


def plain_types(hint: Any) -> tuple[Any, ...]:
    """The types of a union, `None` among them, or of another type that alone; all without `Annotated`."""
    return tuple(map(_bare, _members(hint)))


def _members(hint: Any) -> tuple[Any, ...]:
    plain = _bare(hint)
    return typing.get_args(plain) if typing.get_origin(plain) in (Union, types.UnionType) else (plain,)


def _bare(hint: Any) -> Any:
    return typing.get_args(hint)[0] if hasattr(hint, "__metadata__") else hint


def _check(name: str, value: Any, hint: Any) -> None:
    allowed = range_in(hint)
    members = plain_types(hint)
    if value is None and type(None) in members:
        return
    choices = [choice for member in members for choice in _choices(member)]
    if Any in members and not isinstance(value, str):
        return
    if bool in members and not isinstance(value, bool):
        raise ValueError(f"`{name}` must be True or False, but got {value!r}.")
    if choices and not (value in choices if isinstance(value, str) else False):
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, choices))}, but got {value!r}.")
    if allowed is None:
        return
    whole = int in members or any(int in typing.get_args(member) for member in members)
    whole = whole and not (float in members or any(float in typing.get_args(member) for member in members))
    for item in _items(value, members):
        check_number(name, item, allowed, whole)


def _choices(member: Any) -> list[Any]:
    return list(typing.get_args(member)) if typing.get_origin(member) is Literal else []


def _items(value: Any, members: Sequence[Any]) -> list[Any]:
    """The numbers in a list or dict where the type has one, else the value itself."""
    containers = [typing.get_origin(member) or member for member in members]
    if isinstance(value, Mapping) and any(_is_subclass(kind, Mapping) for kind in containers):
        return list(value.values())
    if isinstance(value, (list, tuple)) and any(_is_subclass(kind, Sequence) for kind in containers):
        return list(value)
    return [value]


def _is_subclass(kind: Any, parent: type) -> bool:
    return isinstance(kind, type) and kind is not str and issubclass(kind, parent)


# ---- mediffusion_diffusers/models/classifier_head.py

NORM_TYPES = ("batch_norm",)


# ---- mediffusion_diffusers/models/feature_pooling.py

POOL_TYPES = ("avg", "avg_std")


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
PIPELINE_PARTS = {"vae", "unet", "scheduler"}  # of every pipeline here
_LIBRARIES = ("diffusers", "mediffusion_diffusers")
# What transformers raises for a config or weights that do not make sense to it.
_LOADING_ERRORS = (OSError, ValueError, TypeError, KeyError, AttributeError, ZeroDivisionError, RuntimeError)
# Room for a head that a checkpoint of a backbone lacks.
_SPARE_PARAMETERS = 2**24


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


def check_pipeline_folder(folder: str | os.PathLike[str]) -> None:
    """Check the configs and the names of the weights of a pipeline's parts, before one of them is loaded.

    Raises:
        ValueError: as `check_model_folder`, and for a pipeline, or a part of it, that is no class of a known library.
    """
    folder = Path(folder)
    if not (folder / "model_index.json").exists():
        return
    index = read_config(folder / "model_index.json")
    if not index.get("_class_name"):
        raise ValueError(f"{folder / 'model_index.json'} cannot be used: it names no pipeline (`_class_name`).")
    for name in sorted(PIPELINE_PARTS & index.keys()):
        _check_part(folder / "model_index.json", name, index[name])
    for name, entry in index.items():
        part = folder / name
        if name.startswith("_") or not isinstance(entry, list) or name != os.path.basename(name):
            continue
        kind = entry[-1] if entry and isinstance(entry[-1], str) else None
        check_model_folder(part, kind=kind)
        if (part / "scheduler_config.json").exists():
            read_config(part / "scheduler_config.json", kind)


def _check_part(path: Path, name: str, entry: Any) -> None:
    """Refuse what names no class: diffusers looks up, in whatever module an entry names, whatever it says there."""
    is_pair = isinstance(entry, list) and len(entry) == 2
    is_left_out = is_pair and entry == [None, None]
    if not is_left_out and not (is_pair and entry[0] in _LIBRARIES and isinstance(entry[1], str)):
        raise ValueError(
            f"{path} cannot be used: `{name}` must be [library, class] with a library of {', '.join(_LIBRARIES)}, but "
            f"is {entry!r:.200}."
        )


def local_model(
    source: str | os.PathLike[str], subfolder: str | None = None, revision: str | None = None, token: Any = None
) -> Path:
    """Folder of a model with its config and safetensors, checked; from the Hub they alone are downloaded.

    Args:
        source: a folder, or a repository of the Hub.
        subfolder: the part of a pipeline.
        revision: branch, tag or commit.
        token: a token that may read it.

    Raises:
        ValueError: as `check_model_folder`.
        HubFailure: if it is no folder and cannot be read on the Hub.
    """
    folder = Path(source)
    if not folder.is_dir():
        from huggingface_hub import HfApi

        api, repo_id, prefix = HfApi(token=token), str(source), f"{subfolder}/" if subfolder else ""
        with hub_access(repo_id, revision, token):
            weights = ("diffusion_pytorch_model", "model")
            patterns = [f"{prefix}*.json", *(f"{prefix}{name}.safetensors" for name in weights)]
            patterns += [f"{prefix}{name}-*-of-*.safetensors" for name in weights]
            ignored = None if subfolder else ["*/*"]
            folder = Path(
                api.snapshot_download(repo_id, revision=revision, allow_patterns=patterns, ignore_patterns=ignored)
            )
            if not any((folder / prefix).glob("*.safetensors")):
                names = api.list_repo_files(repo_id, revision=revision)
                names = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
                refuse_pickled([name for name in names if "/" not in name], repo_id)
    check_model_folder(folder, subfolder)
    return folder / (subfolder or "")


def check_finite(module: Any, source: Any) -> None:
    """Refuse a model with NaN or infinite weights, which would answer with nonsense.

    Args:
        module: the loaded model; other than `torch.nn.Module` are let pass.
        source: where it came from, for the message.

    Raises:
        ValueError: naming the first such parameter.
    """
    if not isinstance(module, torch.nn.Module):
        return
    named = [
        (name, value)
        for name, value in module.named_parameters()
        if value.is_floating_point() and not value.is_meta and value.element_size() > 1
    ]
    if not named:
        return
    sums = torch.stack([value.detach().isfinite().all().to(named[0][1].device) for _, value in named])
    bad = [name for (name, _), is_finite in zip(named, sums.tolist(), strict=True) if not is_finite]
    if bad:
        raise ValueError(
            f"The weights in {str(source)!r} hold NaN or infinite numbers, as {bad[0]!r} does: the file is damaged or "
            "its training diverged. Get it from its origin again, or save the model from an earlier checkpoint."
        )


def load_transformers(auto_class: Any, source: str | os.PathLike[str], **kwargs: Any) -> Any:
    """Load a model of transformers by one of its `Auto...` classes; nothing pickled, nothing larger than its weights.

    Args:
        auto_class: such as `AutoModelForImageClassification`.
        source: a folder or a repository of the Hub.
        kwargs: for its `from_pretrained`.

    Returns:
        The model, in evaluation mode.

    Raises:
        ValueError: if its files are damaged, pickled, ask for too much or hold NaN.
        HubFailure: as `local_model`.
    """
    from transformers import AutoConfig

    folder = local_model(
        source, kwargs.pop("subfolder", None), kwargs.pop("revision", None), kwargs.pop("token", None)
    )
    kwargs = {"trust_remote_code": False, **safetensors_alone(kwargs)}
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=kwargs["trust_remote_code"])
        num_described = _num_described(auto_class, config)
        num_stored = sum(_num_stored(path) for path in folder.glob("*.safetensors"))
        if num_described > 2 * num_stored + _SPARE_PARAMETERS:
            raise ValueError(f"its config describes {num_described} weights, but its files hold {num_stored}.")
        model = auto_class.from_pretrained(folder, **kwargs)
    except (*_LOADING_ERRORS, SafetensorError) as error:
        raise ValueError(f"The model in {str(source)!r} cannot be used: {' '.join(str(error).split())}") from error
    check_finite(model, source)
    return model.eval()


def _num_described(auto_class: Any, config: Any) -> int:
    """Number of weights of the model that a config describes, without allocating them; 0 if that cannot be told."""
    try:
        with torch.device("meta"):
            return sum(value.numel() for value in auto_class.from_config(config).parameters())
    except (NotImplementedError, RuntimeError):  # a model that computes with numbers while it is built
        return 0


def _num_stored(path: Path) -> int:
    """Numbers in a safetensors file, by its header."""
    with safe_open(path, "pt") as file:
        shapes = [file.get_slice(name).get_shape() for name in list(file.keys())]
    return sum(torch.Size(shape).numel() for shape in shapes)


# ---- mediffusion_diffusers/guidance/formulas.py


def guide_model_output(
    model_output: torch.Tensor,
    log_prob_grad: torch.Tensor,
    alpha_prod_t: torch.Tensor,
    guidance_scale: float | torch.Tensor,
    prediction_type: str = "epsilon",
) -> torch.Tensor:
    r"""Shift a prediction towards a target: Eq. 2 with a scale s, for every `prediction_type`.

    eps'(z_t) = eps(z_t) - s * sqrt(1 - abar_t) * grad_{z_t} log g(y | z_t)

    `z_t = sqrt(abar_t) z_0 + sqrt(1 - abar_t) eps` carries the shift of eps over to the predicted `z_0`
    (`"sample"`) and to `v = sqrt(abar_t) eps - sqrt(1 - abar_t) z_0`.

    Args:
        model_output: prediction of the U-Net, shape `(batch, channels, height, width)`.
        log_prob_grad: gradient of the *summed* log-probability with respect to z_t, same shape; in float32 where the
            prediction has half precision.
        alpha_prod_t: abar_t in [0, 1], a scalar. At 0 (zero terminal SNR) z_t holds nothing of an image, and the
            prediction of `z_0` or v stays unguided.
        guidance_scale: s >= 0, no unit, a number or one per image; 0 is unguided (unlike classifier-free guidance,
            where 1 is).
        prediction_type: `"epsilon"`, `"sample"` or `"v_prediction"`.

    Returns:
        Guided prediction, same shape and dtype.

    Raises:
        ValueError: if the shapes differ, the scale is negative or the prediction type unknown.
    """
    if model_output.shape != log_prob_grad.shape:
        raise ValueError(
            f"`log_prob_grad` must have the shape of `model_output`, {tuple(model_output.shape)}, but got "
            f"{tuple(log_prob_grad.shape)}."
        )
    is_tensor = isinstance(guidance_scale, torch.Tensor)
    scale: Any = guidance_scale if is_tensor else torch.tensor(guidance_scale, dtype=torch.float64)
    if not (scale >= 0).all():
        raise ValueError(
            f"`guidance_scale` must be at least 0, but got {guidance_scale}. To lower a label's probability name it "
            "in `away`."
        )
    is_pure_noise = bool(alpha_prod_t == 0)
    scale = scale.to(log_prob_grad, non_blocking=True)
    shift = -scale.reshape(-1, 1, 1, 1) * (1 - alpha_prod_t).sqrt() * log_prob_grad
    if prediction_type == "epsilon":
        return (model_output + shift).to(model_output.dtype)
    if is_pure_noise:
        return model_output.clone()
    if prediction_type == "v_prediction":
        return (model_output + shift / alpha_prod_t.sqrt()).to(model_output.dtype)
    if prediction_type == "sample":
        return (model_output - shift * ((1 - alpha_prod_t) / alpha_prod_t).sqrt()).to(model_output.dtype)
    raise ValueError(f"`prediction_type` must be 'epsilon', 'sample' or 'v_prediction', but got {prediction_type!r}.")


def predict_original_sample(
    model_output: torch.Tensor, sample: torch.Tensor, alpha_prod_t: torch.Tensor, prediction_type: str = "epsilon"
) -> torch.Tensor:
    """The clean latents z_0 that a prediction implies (Eq. 12 of DDIM, "predicted x_0"); same shape."""
    if prediction_type == "epsilon":
        return (sample - (1 - alpha_prod_t).sqrt() * model_output) / alpha_prod_t.sqrt()
    if prediction_type == "v_prediction":
        return alpha_prod_t.sqrt() * sample - (1 - alpha_prod_t).sqrt() * model_output
    return model_output


def predict_epsilon(
    model_output: torch.Tensor, sample: torch.Tensor, alpha_prod_t: torch.Tensor, prediction_type: str = "epsilon"
) -> torch.Tensor:
    """The noise eps that a prediction implies: `(z_t - sqrt(abar_t) z_0) / sqrt(1 - abar_t)`; same shape."""
    if prediction_type == "epsilon":
        return model_output
    z_0 = predict_original_sample(model_output, sample, alpha_prod_t, prediction_type)
    return (sample - alpha_prod_t.sqrt() * z_0) / (1 - alpha_prod_t).sqrt()


# ---- mediffusion_diffusers/guidance/targets.py

# One image's labels: a name, an index, or several of them.
Labels = str | int | Sequence[str | int]


@dataclass(frozen=True)
class GuidanceTarget:
    """Where guidance pushes each image's labels, and how firmly it holds the others.

    Args:
        direction: shape `(batch, num_labels)`: +1 towards a label, -1 away from it, 0 leaves it alone.
        problem_type: as in the model's config.
        hold: weight of the penalty on changes of the logits that are not targeted; 0 lets them go.
        reference_logits: where those logits are held, shape `(batch, num_labels)`.
    """

    direction: torch.Tensor
    problem_type: str
    hold: float = 0.0
    reference_logits: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.direction)

    def select(self, rows: torch.Tensor) -> GuidanceTarget:
        """The target of some of the images, without references."""
        return GuidanceTarget(self.direction[rows], self.problem_type, self.hold)

    def to(self, device: torch.device | str) -> GuidanceTarget:
        """The target on a device."""
        return replace(self, direction=self.direction.to(device))

    def clone(self) -> GuidanceTarget:
        """Tensors of its own, outside of any inference mode."""
        reference = self.reference_logits
        return replace(
            self,
            direction=self.direction.clone(),
            reference_logits=None if reference is None else reference.clone(),
        )

    def objective(self, logits: torch.Tensor) -> torch.Tensor:
        r"""What guidance raises: `log g(y | .) - hold * mean_j (l_j - l_j^ref)^2`, j over the labels not targeted.

        With one class per image only the odds among the other classes are held: their logits count from their mean.

        Args:
            logits: shape `(batch, num_labels)`.

        Returns:
            Shape `(batch,)`.

        Raises:
            ValueError: if there is a `hold` but no `reference_logits`.
        """
        log_prob = self.log_prob(logits)
        if self.hold == 0:
            return log_prob
        if self.reference_logits is None:
            raise ValueError(
                "`hold` above 0 needs `reference_logits`, where the other labels are held (see `hold_at`)."
            )
        is_other = (self.direction == 0).to(logits)
        count = is_other.sum(1).clamp_min(1)
        change = logits - self.reference_logits.to(logits)
        if self.problem_type == "single_label_classification":
            change = change - (change * is_other).sum(1, keepdim=True) / count[:, None]
        return log_prob - self.hold * (change.square() * is_other).sum(1) / count

    def log_prob(self, logits: torch.Tensor) -> torch.Tensor:
        r"""Log-probability of the target under the classifier: the `log g(y | .)` of Eq. 2.

        Several labels add up. Independent findings (sigmoid) give `log p` towards and `log(1 - p)` away; one class
        per image (softmax) gives the log of the wanted class and `log(1 - p)` of the unwanted ones.

        Args:
            logits: shape `(batch, num_labels)`.

        Returns:
            Shape `(batch,)`, at most 0.
        """
        direction = self.direction.to(logits)
        if self.problem_type == "multi_label_classification":
            return (F.logsigmoid(direction * logits) * direction.abs()).sum(dim=1)
        log_p, log_not_p = _log_probs(logits)
        return (torch.where(direction > 0, log_p, log_not_p) * direction.abs()).sum(dim=1)

    def log_odds(self, logits: torch.Tensor) -> torch.Tensor:
        """Log-odds of the target under the classifier: `log p - log(1 - p)` towards a label, its negative away.

        Those of several labels add up.

        Args:
            logits: shape `(batch, num_labels)`.

        Returns:
            Shape `(batch,)`.
        """
        direction = self.direction.to(logits)
        if self.problem_type == "multi_label_classification":
            return (direction * logits).sum(dim=1)
        log_p, log_not_p = _log_probs(logits)
        return (direction * (log_p - log_not_p)).sum(dim=1)


def _log_probs(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`log p` and `log(1 - p)` of each class, one class per image; shape of `logits` each."""
    log_p = F.log_softmax(logits, dim=1)
    # log(1 - p_k) = logsumexp of the other log-probabilities: exact where 1 - p would underflow.
    others = torch.eye(logits.shape[1], dtype=torch.bool, device=logits.device)
    return log_p, log_p[:, None, :].masked_fill(others, -torch.inf).logsumexp(dim=2)


def build_target(
    towards: Labels | Sequence[Labels] | None,
    away: Labels | Sequence[Labels] | None,
    batch_size: int,
    label_names: Sequence[str],
    problem_type: str,
    hold: float = 0.0,
) -> GuidanceTarget:
    """Turn label names or indices into a target.

    A single label or a flat list holds for every image; a list of lists gives one list of labels per image (an empty
    one leaves that image without).

    Args:
        towards: labels to make more probable.
        away: labels to make less probable.
        batch_size: number of images.
        label_names: the model's labels in order.
        problem_type: as in the model's config.
        hold: weight of the penalty on changes of the other labels' logits, at least 0.

    Returns:
        The target, on the CPU.

    Raises:
        ValueError: for an unknown label, a label named towards and away, no label at all, several classes towards
            for a single-label model, or a list of lists whose length is not `batch_size`.
    """
    direction = torch.zeros(batch_size, len(label_names))
    for name, labels, sign in (("towards", towards, 1.0), ("away", away, -1.0)):
        for row, row_labels in enumerate(_labels_per_image(name, labels, batch_size)):
            for label in row_labels:
                column = _label_index(name, label, label_names)
                if direction[row, column] == -sign:
                    raise ValueError(
                        f"Label {label_names[column]!r} is named in both `towards` and `away` for the same image. "
                        "Name it in one of them."
                    )
                direction[row, column] = sign
    if not direction.any(dim=1).all():
        raise ValueError(
            "Every image needs at least one label in `towards` or `away`, but some have none. "
            f"Known labels: {', '.join(label_names)}."
        )
    if problem_type == "single_label_classification" and ((direction > 0).sum(dim=1) > 1).any():
        raise ValueError(
            "This model knows one class per image, so `towards` must name one class for each image, but it names "
            "several."
        )
    return GuidanceTarget(direction, problem_type, hold)


def count_label_rows(labels: Labels | Sequence[Labels] | None) -> int | None:
    """Number of lists in a list of lists of labels; None where the labels hold for every image."""
    if not isinstance(labels, (list, tuple)):
        return None
    return len(labels) if any(isinstance(item, (list, tuple)) for item in labels) else None


def _labels_per_image(name: str, labels: Any, batch_size: int) -> list[list[str | int]]:
    """Spread `towards` or `away` over the batch."""
    if labels is None:
        return [[] for _ in range(batch_size)]
    if isinstance(labels, (str, int, Integral)):
        return [[labels]] * batch_size  # type: ignore[list-item]
    if hasattr(labels, "tolist"):  # of numpy or torch
        labels = labels.tolist()
    if not isinstance(labels, (list, tuple, set, frozenset)):
        raise ValueError(
            f"`{name}` must be a label, a list of labels or a list of such lists, but got {labels!r}. Name labels to "
            "add in `towards` and labels to remove in `away`."
        )
    nested = [isinstance(item, (list, tuple)) for item in labels]
    if not any(nested):
        return [list(labels)] * batch_size
    if not all(nested) or len(labels) != batch_size:
        raise ValueError(
            f"`{name}` as a list of lists must hold one list of labels for each of the {batch_size} images, but it "
            f"holds {len(labels)} items: {labels!r}."
        )
    return [list(item) for item in labels]


def _label_index(name: str, label: str | int, label_names: Sequence[str]) -> int:
    """Index of a label given by name or index."""
    if isinstance(label, str) and label in label_names:
        return list(label_names).index(label)
    if isinstance(label, (int, Integral)) and not isinstance(label, bool) and 0 <= label < len(label_names):
        return int(label)
    raise ValueError(
        f"`{name}` names the unknown label {label!r}. Known labels: "
        f"{', '.join(f'{known} ({index})' for index, known in enumerate(label_names))}."
    )


# ---- mediffusion_diffusers/guidance/prediction.py

# The model's own classifier, in three places; and a classifier of pixels, through the decoder (App. H).
OWN_GUIDANCE_MODES = get_args(OwnGuidanceMode)
GUIDANCE_MODES = (*OWN_GUIDANCE_MODES, "external")

# Size at which gradients are passed backwards, as a power of two: far below what float16 holds (2^16), and far above
# what pooling divides by.
_BACKWARD_EXPONENT = 6
_SMALLEST_EXPONENT = -100  # of a gradient: below, the target is certain to all ends

# Clean latents to logits, differentiable: the decoder followed by a classifier of pixels.
LatentClassifier = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class GuidedPrediction:
    """One guided evaluation of the model, without a graph.

    Args:
        model_output: the guided prediction in the scheduler's `prediction_type`, shape of the latents.
        logits: class scores that the gradient was taken of, shape `(batch, num_labels)`.
        unguided: the prediction before it was shifted, shape of the latents.
        log_prob_grad: gradient of `log g` alone, where what guides holds other labels too; else None.
    """

    model_output: torch.Tensor
    logits: torch.Tensor
    unguided: torch.Tensor
    log_prob_grad: torch.Tensor | None = None


def predict_guided(
    unet: JointUNet2DModel,
    sample: torch.Tensor,
    timestep: torch.Tensor,
    target: GuidanceTarget,
    guidance_scale: float | torch.Tensor,
    alpha_prod_t: torch.Tensor,
    prediction_type: str = "epsilon",
    mode: str = "zt",
    classifier: LatentClassifier | None = None,
) -> GuidedPrediction:
    """Predict the noise and steer it by the gradient of a classifier (Eq. 2 and 7).

    The classifier is asked in one of four places:

    - `"zt"`: the model's own head at z_t and its timestep, Eq. 2 as printed. One shared encoder pass gives logits,
      gradient and skips; the decoder runs without a graph.
    - `"x0_detached"`: the own head at the predicted clean latents and t = 0 with eps held constant, so that
      d z_0 / d z_t = 1 / sqrt(abar_t); it may have been trained at t = 0 only.
    - `"x0"`: the same with the gradient through the whole U-Net, as the paper's authors do.
    - `"external"`: `classifier` at the predicted clean latents, eps held constant (App. H).

    Only `sample` carries a gradient; `unet` should be frozen (see `sampling_mode`). Works under
    `torch.inference_mode`.

    Args:
        unet: the joint model.
        sample: z_t, shape `(batch, channels, height, width)`.
        timestep: t, a scalar.
        target: labels to push, one row per image.
        guidance_scale: s >= 0, a number or one per image, shape `(batch,)`.
        alpha_prod_t: abar_t, a scalar.
        prediction_type: of the scheduler.
        mode: see above.
        classifier: for `"external"`.

    Returns:
        Guided and unguided prediction and logits.

    Raises:
        ValueError: for an unknown mode, a missing `classifier`, and as `guide_model_output`.
    """
    _check_mode(mode, classifier)
    with torch.inference_mode(False), torch.enable_grad(), hold_saved_tensors():
        # Clones, because tensors made under an outer inference mode can never carry a gradient.
        z_t, t, alpha = sample.detach().clone(), timestep.clone(), alpha_prod_t.clone()
        target = target.clone()
        if mode == "zt":
            leaf = z_t.requires_grad_()
            output = unet(leaf, t, detach_decoder=True)
            model_output, logits = output.sample, output.logits
        elif mode == "x0":
            leaf = z_t.requires_grad_()
            model_output = unet(leaf, t, return_logits=False).sample
            z_0 = predict_original_sample(model_output, leaf, alpha, prediction_type)
            logits = unet(z_0, 0, return_sample=False).logits
        else:
            with torch.no_grad():
                model_output = unet(z_t, t, return_logits=False).sample
            leaf = predict_original_sample(model_output, z_t, alpha, prediction_type).requires_grad_()
            logits = unet(leaf, 0, return_sample=False).logits if classifier is None else classifier(leaf)
        is_held = target.hold > 0
        gradient = gradient_of(target.objective, logits, leaf, retain_graph=is_held)
        log_prob_grad = gradient_of(target.log_prob, logits, leaf) if is_held else None
        if mode in ("x0_detached", "external"):
            root = alpha.to(gradient.dtype).sqrt()  # d z_0 / d z_t = 1 / sqrt(abar_t)
            gradient = gradient / root
            log_prob_grad = None if log_prob_grad is None else log_prob_grad / root
    unguided = model_output.detach()
    guided = guide_model_output(unguided, gradient, alpha_prod_t, guidance_scale, prediction_type)
    return GuidedPrediction(guided, logits.detach(), unguided, log_prob_grad)


def gradient_of(
    objective: Callable[[torch.Tensor], torch.Tensor],
    logits: torch.Tensor,
    leaf: torch.Tensor,
    retain_graph: bool = False,
) -> torch.Tensor:
    """Gradient of a sum of objectives that half precision cannot round to 0.

    Where a target is almost certain its gradient is tiny. So the gradient with respect to the logits is taken in
    float32, brought to about 2^`_BACKWARD_EXPONENT` by a power of two for each image, passed backwards, and brought
    back: in float32 the same bit for bit.

    Args:
        objective: of logits in float32, shape `(batch,)`. They add up: images must not dilute one another.
        logits: shape `(batch, num_labels)`, with a graph to `leaf`.
        leaf: shape `(batch, channels, height, width)`.
        retain_graph: whether the graph will be used again.

    Returns:
        Shape of `leaf`, float32 or better.
    """
    scores = logits.detach().float().requires_grad_()
    (slope,) = torch.autograd.grad(objective(scores).sum(), scores)
    gradient, exponent = gradient_at_size(logits, slope, slope.abs().amax(dim=1), leaf, retain_graph)
    return torch.ldexp(gradient, exponent.view(-1, 1, 1, 1))


def gradient_at_size(
    outputs: torch.Tensor, slope: torch.Tensor, size: torch.Tensor, leaf: torch.Tensor, retain_graph: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pass a gradient backwards at a size that half precision holds, whatever its own.

    Args:
        outputs: with a graph to `leaf`, one row per image.
        slope: gradient with respect to them, shape of `outputs`, float32.
        size: what the gradient of each image is in proportion to, shape `(batch,)`, at least 0.
        leaf: shape `(batch, channels, height, width)`.
        retain_graph: whether the graph will be used again.

    Returns:
        The gradient of each image divided by a power of two, float32 or better, and that power, shape `(batch,)`.
    """
    exponent = torch.where(size > 0, torch.frexp(size).exponent - _BACKWARD_EXPONENT, 0).clamp_min(_SMALLEST_EXPONENT)
    by_row = exponent.view(-1, *[1] * (slope.ndim - 1))
    weighted = torch.ldexp(slope, -by_row).to(outputs)
    (gradient,) = torch.autograd.grad(outputs, leaf, weighted, retain_graph=retain_graph)
    return gradient.to(torch.promote_types(gradient.dtype, torch.float32)), exponent


@torch.no_grad()
def hold_at(
    target: GuidanceTarget,
    unet: JointUNet2DModel,
    sample: torch.Tensor,
    timestep: torch.Tensor,
    model_output: torch.Tensor,
    alpha_prod_t: torch.Tensor,
    prediction_type: str = "epsilon",
    mode: str = "zt",
    classifier: LatentClassifier | None = None,
) -> GuidanceTarget:
    """Hold the labels that are not targeted where these latents, the null edit's, have them.

    Args:
        target: labels to push, one row per image.
        unet: the joint model.
        sample: the null edit's z_t, one per row of `target`.
        timestep: t, a scalar.
        model_output: the model's prediction for them.
        alpha_prod_t: abar_t, a scalar.
        prediction_type: of the scheduler.
        mode: where the classifier is asked, as in `predict_guided`.
        classifier: for `"external"`.

    Returns:
        The target with `reference_logits`.
    """
    _check_mode(mode, classifier)
    if mode == "zt":
        return replace(target, reference_logits=unet(sample, timestep, return_sample=False).logits.float())
    z_0 = predict_original_sample(model_output, sample, alpha_prod_t, prediction_type)
    logits = unet(z_0, 0, return_sample=False).logits if classifier is None else classifier(z_0)
    return replace(target, reference_logits=logits.float())


def _check_mode(mode: str, classifier: LatentClassifier | None) -> None:
    if mode not in GUIDANCE_MODES:
        raise ValueError(f"`guidance_mode` must be one of {GUIDANCE_MODES}, but got {mode!r}.")
    if (mode == "external") != (classifier is not None):
        raise ValueError(
            "`classifier` and `guidance_mode='external'` belong together: pass an image classifier with this mode, "
            f"and none with the others, but the mode is {mode!r} and the classifier "
            f"{'is missing' if classifier is None else type(classifier).__name__}."
        )


# ---- mediffusion_diffusers/guidance/attribution.py


def attribute_change(
    classify: LatentClassifier,
    latents: torch.Tensor,
    deviation: torch.Tensor,
    target: GuidanceTarget,
    num_points: int = 2,
) -> torch.Tensor:
    r"""What each position of a change adds to the log-odds of the target.

    Integrated gradients (Sundararajan et al., 2017, arXiv:1703.01365, Eq. 1) on the straight line from the image to
    its edit, by the midpoint rule:

        r = sum_c d * mean_i grad_z logit g(y | z_0 + a_i d),   a_i = (i - 1/2) / n

    Over all positions r adds up to what the change makes of the log-odds (there: completeness), exactly where these
    are quadratic on the line. Works under `torch.inference_mode`.

    Args:
        classify: logits of clean latents, differentiable, shape `(rows, num_labels)`; its parameters should be frozen.
        latents: z_0, shape `(rows, channels, height, width)`.
        deviation: d, same shape.
        target: labels, one row per image; the log-odds of several add up.
        num_points: n, evaluations of the classifier for each row, at least 1.

    Returns:
        Shape `(rows, 1, height, width)`, float32 or better; above 0 where the change speaks for the target.
    """
    with torch.inference_mode(False), torch.enable_grad(), hold_saved_tensors():
        # Clones, because tensors made under an outer inference mode can never carry a gradient.
        clean, change, target = latents.detach().clone(), deviation.detach().clone(), target.clone()
        total = torch.zeros_like(change)
        for point in range(num_points):
            share = (point + 0.5) / num_points
            leaf = (clean + share * change).to(clean.dtype).requires_grad_()
            total += gradient_of(target.log_odds, classify(leaf), leaf)
    return (change * total / num_points).sum(1, keepdim=True)


# ---- mediffusion_diffusers/guidance/external.py


class ExternalClassifier(nn.Module):
    """Logits of a transformers image classifier for images in the range of the autoencoder, differentiable.

    Resizing, grey to colour and normalisation are done on tensors, as its image processor does them on images, so
    that the gradient reaches the pixels.

    Args:
        model: an image classifier of transformers (`AutoModelForImageClassification.from_pretrained(...)`), or any
            module with its `config` and an output with `logits`.
        image_mean: mean of each channel that the model expects to be subtracted from images in [0, 1].
        image_std: likewise the standard deviation to divide by.
        image_size: side of the images in pixels; by default the config's `image_size`, else they keep their size.

    Raises:
        ValueError: if the model is no image classifier.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self,
        model: nn.Module,
        image_mean: tuple[float, ...] = (0.5, 0.5, 0.5),
        image_std: tuple[float, ...] = (0.5, 0.5, 0.5),
        image_size: int | None = None,
    ):
        super().__init__()
        config = getattr(model, "config", None)
        if config is None or not getattr(config, "id2label", None):
            raise ValueError(
                "`classifier` must be an image classifier of transformers (with `config.id2label`), but got "
                f"{type(model).__name__}."
            )
        self.model = model
        self.image_size = image_size or _side(getattr(config, "image_size", None))
        self.register_buffer("mean", torch.tensor(image_mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(image_std).view(1, -1, 1, 1), persistent=False)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str, **kwargs: Any) -> ExternalClassifier:
        """Load model and preprocessing of a folder or a Hub repository; `kwargs` go to both.

        Raises:
            ValueError: if their files are damaged, pickled, ask for too much or hold NaN.
            HubFailure: if it is no folder and cannot be read on the Hub.
        """
        from transformers import AutoImageProcessor, AutoModelForImageClassification

        model = load_transformers(AutoModelForImageClassification, pretrained_model_name_or_path, **kwargs)
        processor = AutoImageProcessor.from_pretrained(pretrained_model_name_or_path, **kwargs)
        size = getattr(processor, "crop_size", None) or getattr(processor, "size", None) or {}
        side = _side(size.get("height") or size.get("shortest_edge")) if hasattr(size, "get") else None
        mean, std = (getattr(processor, name, None) or (0.5, 0.5, 0.5) for name in ("image_mean", "image_std"))
        several(number(), 4)("image_mean", mean)
        several(number(above=0), 4)("image_std", std)
        return cls(model, tuple(mean), tuple(std), side)

    @property
    def label_names(self) -> list[str]:
        """The model's labels in the order of its logits."""
        id2label = {int(index): name for index, name in self.model.config.id2label.items()}  # type: ignore
        return [id2label[index] for index in sorted(id2label)]

    @property
    def problem_type(self) -> str:
        """As in transformers; without it the classes exclude one another."""
        return getattr(self.model.config, "problem_type", None) or "single_label_classification"

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Classify images.

        Args:
            pixels: shape `(batch, channels, height, width)` in [-1, 1], the autoencoder's range.

        Returns:
            Logits of shape `(batch, num_labels)`.
        """
        return self.model(self.prepare(pixels)).logits.to(pixels.device)

    def prepare(self, pixels: torch.Tensor) -> torch.Tensor:
        """Images as the model takes them: its size, channels and normalisation.

        Args:
            pixels: as for `forward`.

        Returns:
            Shape `(batch, model's channels, height, width)`, on the model's device and in its precision.
        """
        weight = next((each for each in self.model.parameters() if each.is_floating_point()), pixels)
        images = (pixels.to(weight) + 1) / 2  # the model may lie elsewhere, or compute in another precision
        channels = self.mean.numel()
        if images.shape[1] != channels:
            # Grey images are repeated, colour images of a grey classifier averaged.
            images = images.mean(1, keepdim=True).expand(-1, channels, -1, -1)
        if self.image_size is not None and images.shape[-2:] != (self.image_size, self.image_size):
            size = (self.image_size, self.image_size)
            images = F.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)
        mean, std = (buffer.to(images) for buffer in (self.mean, self.std))
        return (images - mean) / std


def _side(size: Any) -> int | None:
    """One side of a square size, however it is written."""
    if isinstance(size, (list, tuple)):
        size = size[0]
    return None if size is None else int(size)


# ---- mediffusion_diffusers/guidance/fading.py

_NUM_NEWTON_STEPS = 20


def fading_factor(log_prob: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    """Mean push over a step, as a share of the push at its beginning.

    Args:
        log_prob: log g at the beginning, at most 0.
        gain: what log g would gain over the step to first order, at least 0; same shape.

    Returns:
        In (0, 1], same shape, float64; 1 where there is no push.
    """
    log_prob, gain = log_prob.double(), gain.double()
    rest = -torch.expm1(log_prob)  # 1 - g
    has_push = (rest > 0) & (gain > 0)
    rest = torch.where(has_push, rest, 0.5)
    start = torch.log(rest) - torch.where(has_push, log_prob, -0.5)
    strength = torch.where(has_push, gain, 1.0) / rest.square()
    goal = start - torch.exp(-start) - strength
    # m - exp(-m) is concave and rises: from a point below the root, Newton's method climbs to it.
    end = torch.where(goal > 0, goal, -torch.log1p(-goal.clamp(max=0)))
    for _ in range(_NUM_NEWTON_STEPS):
        end = end - (end - torch.exp(-end) - goal) / (1 + torch.exp(-end))
    factor = (start - end) / (strength * rest)
    return torch.where(has_push, factor.clamp(0, 1), 1.0)


def fade(
    predicted: GuidedPrediction,
    sample: torch.Tensor,
    target: GuidanceTarget,
    guidance_scale: float | torch.Tensor,
    alpha_prod_t: torch.Tensor,
    noise_weight: torch.Tensor,
    prediction_type: str = "epsilon",
) -> torch.Tensor:
    """The guided prediction with the push that is the mean over the step.

    Args:
        predicted: guided and unguided prediction, and logits.
        sample: z_t, shape `(batch, channels, height, width)`.
        target: labels that were pushed.
        guidance_scale: s, a number or one per image.
        alpha_prod_t: abar_t, a scalar.
        noise_weight: what the noise adds to the next sample, dz / d eps, a scalar (below 0 on the way down).
        prediction_type: of the predictions.

    Returns:
        The prediction, shape of the latents.
    """
    if alpha_prod_t == 0:  # nothing is pushed: z_t holds nothing of an image
        return predicted.model_output
    place = (sample, alpha_prod_t, prediction_type)
    shift = predict_epsilon(predicted.model_output, *place) - predict_epsilon(predicted.unguided, *place)
    # shift = -s sqrt(1 - abar) grad log g, and the step moves z by noise_weight * shift.
    scale = torch.as_tensor(guidance_scale, dtype=torch.float64).to(shift.device, non_blocking=True)
    per_gradient = -scale * (1 - alpha_prod_t.double()).sqrt()
    push, held = predicted.model_output - predicted.unguided, None
    if predicted.log_prob_grad is None:
        size = shift.double().flatten(1).square().sum(1)
    else:
        own_shift = per_gradient.reshape(-1, 1, 1, 1) * predicted.log_prob_grad.double()
        size = (own_shift * shift.double()).flatten(1).sum(1)
        own = (predicted.log_prob_grad, alpha_prod_t, guidance_scale, prediction_type)
        own_push = guide_model_output(torch.zeros_like(push), *own)
        push, held = own_push, push - own_push
    gain = torch.where(per_gradient < 0, noise_weight.double() / per_gradient, 0.0) * size
    factor = fading_factor(target.log_prob(predicted.logits.float()), gain)
    faded = predicted.unguided + factor.to(push).reshape(-1, 1, 1, 1) * push
    return faded if held is None else faded + held


# ---- mediffusion_diffusers/guidance/scales.py

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


# ---- mediffusion_diffusers/item_boundary.py

# Where an object lies in memory differs from run to run, and a reason should not.
_ADDRESS = re.compile(r" ?<[\w.]+ object at 0x[0-9a-f]+>")


def reason(error: Exception) -> str:
    """An error on one line, in words that are the same in every run."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)  # without its path
    text = " ".join(_ADDRESS.sub("", text).split())
    if isinstance(error, MemoryError):
        return f"it does not fit into memory ({text or 'MemoryError'})"
    return text or type(error).__name__


# ---- mediffusion_diffusers/image_processor.py

ImageInput = (
    Image.Image | np.ndarray | torch.Tensor | list[Image.Image] | list[np.ndarray] | list[torch.Tensor]
)  # the types that diffusers calls `PipelineImageInput`

# ITU-R 601-2 luma, the weights of PIL's own conversion to "L".
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
# How to undo each EXIF orientation; 1 is upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION_KEPT_IN = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")  # entries of `Image.info`
_PREMULTIPLIED = {"La": "LA", "RGBa": "RGBA"}
_PIXELS_AT_ONCE = 2**20


def normalize(images: torch.Tensor) -> torch.Tensor:
    """Map images from [0, 1] to the model's range [-1, 1]."""
    return images * 2.0 - 1.0


def denormalize(images: torch.Tensor) -> torch.Tensor:
    """Map images from the model's range [-1, 1] to [0, 1], clamping what lies outside."""
    return (images * 0.5 + 0.5).clamp(0.0, 1.0)


def upright(image: Image.Image, name: str | None = None) -> Image.Image:
    """Decode a picture of one frame and turn it as its EXIF orientation says.

    Of a phone's multi-picture file (MPO) the primary image counts; the others are previews or depths of the same
    view. A broken EXIF says nothing of the picture and is passed over.

    Args:
        image: an opened picture; it is not changed.
        name: what to call it in an error message; by default its file name.

    Returns:
        The picture itself where nothing is to be turned.

    Raises:
        ValueError: for a file that cannot be decoded, or several frames.
    """
    name = name or getattr(image, "filename", "")
    try:
        num_frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
        image.load()
    except Exception as error:  # decoders raise what the damage leads them to
        raise ValueError(
            f"Cannot decode {name or 'the image'}: the file is corrupt or truncated ({reason(error)})."
        ) from error
    if num_frames > 1:
        raise ValueError(
            f"{name or 'The image'} holds {num_frames} frames, but one frame is expected. Choose one, for example "
            "`image.seek(0); image = image.copy()`."
        )
    try:
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:
        turn = None
    if turn is None:
        return image
    turned = image.transpose(turn)
    for key in _ORIENTATION_KEPT_IN:
        turned.info.pop(key, None)
    return turned


def pil_to_tensor(image: Image.Image, channels: int, height: int, width: int) -> torch.Tensor:
    """Decode a picture as `pil_to_float_array` does, and resize it as `resize` does.

    A large picture is never held in floating point as a whole: 48 megapixels of colour would take 576 MB. Resizing is
    separable, so that its strips of rows may be made narrower one by one, and the result shorter at the end.

    Args:
        image: a single-frame picture.
        channels: 1 (grey) or 3 (RGB).
        height: of the result in pixels.
        width: likewise.

    Returns:
        Shape `(channels, height, width)`, float32 in [0, 1].

    Raises:
        ValueError: as `pil_to_float_array`.
    """
    image = upright(image)
    strips = []
    for rows in float_strips(image, channels):
        pixels = torch.from_numpy(np.ascontiguousarray(rows)).permute(2, 0, 1)[None]
        if len(rows) == image.height:
            return resize(pixels, height, width)[0]
        strips.append(resize(pixels, len(rows), width))
    return resize(torch.cat(strips, dim=2), height, width)[0]


def float_strips(image: Image.Image, channels: int) -> Iterator[np.ndarray]:
    """A decoded, upright picture from top to bottom, some rows at a time, as one strip if it is of ordinary size.

    Yields:
        Arrays of shape `(rows, width, channels)`, float32 in [0, 1].
    """
    if channels not in (1, 3):
        raise ValueError(f"`channels` must be 1 (grey) or 3 (RGB), but got {channels}.")
    num_rows = max(1, _PIXELS_AT_ONCE // image.width)
    for top in range(0, image.height, num_rows):
        bottom = min(top + num_rows, image.height)
        whole = bottom - top == image.height
        yield _to_floats(image if whole else image.crop((0, top, image.width, bottom)), channels)


def _to_floats(image: Image.Image, channels: int) -> np.ndarray:
    """Pixels of any mode as float32 `(height, width, channels)` in [0, 1]."""
    if image.mode in ("I", "I;16", "I;16B", "I;16L", "I;16N"):
        levels = np.asarray(image)
        if levels.min() < 0 or levels.max() > 65535:
            raise ValueError(
                f"A picture of mode {image.mode!r} must hold values in [0, 65535], but got "
                f"[{levels.min()}, {levels.max()}]. Rescale it first."
            )
        floats = levels.astype(np.uint16) / np.float32(65535)
    elif image.mode == "F":
        floats = np.array(image, dtype=np.float32)
        if not (np.isfinite(floats).all() and floats.min() >= 0 and floats.max() <= 1):
            raise ValueError("A floating-point picture (mode 'F') must be finite and lie in [0, 1]. Rescale it first.")
    else:
        if image.mode in _PREMULTIPLIED:
            image = image.convert(_PREMULTIPLIED[image.mode])
        if "A" in image.getbands() or "transparency" in image.info:
            rgba = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", rgba.size, (0, 0, 0, 255)), rgba).convert("RGB")
        elif image.mode != "L":
            image = image.convert("RGB")
        floats = np.asarray(image) / np.float32(255)
    return _match_channels(floats[..., None] if floats.ndim == 2 else floats, channels)


def _match_channels(array: np.ndarray, channels: int) -> np.ndarray:
    """Turn `(..., 1 or 3)` into `(..., channels)`: luma for colour to grey, repetition for grey to colour."""
    if array.shape[-1] == channels:
        return array
    if channels == 1:
        return (array @ _LUMA)[..., None]
    return np.repeat(array, 3, axis=-1)


class MediffusionImageProcessor(ConfigMixin):
    """Turn PIL images, arrays or tensors of any size into model input, and model output back.

    Accepted by `preprocess`, alone or as a list (sizes may differ within a list):

    - PIL images of any mode, 16-bit included;
    - numpy arrays `(height, width)`, `(height, width, channels)` or `(batch, height, width, channels)`, uint8, uint16
      or floating point in [0, 1];
    - tensors `(height, width)`, `(channels, height, width)` or `(batch, channels, height, width)`, uint8 or floating
      point in [0, 1].

    Args:
        channels: input channels of the model: 1 (grey) or 3 (RGB). The other kind is converted.
    """

    config_name = "image_processor_config.json"

    @register_to_config
    def __init__(self, channels: int = 1):
        super().__init__()
        if channels not in (1, 3):
            raise ValueError(f"`channels` must be 1 (grey) or 3 (RGB), but got {channels}.")

    def preprocess(self, images: ImageInput, height: int, width: int) -> torch.Tensor:
        """Read, convert and resize images.

        Args:
            images: see the class.
            height: height of the result in pixels.
            width: width of the result in pixels.

        Returns:
            Tensor of shape `(batch, channels, height, width)`, float32 in [-1, 1].

        Raises:
            ValueError: for no image, a wrong number of channels, values that are NaN, infinite or outside their range.
        """
        return normalize(torch.stack([self._to_tensor(image, height, width) for image in _as_list(images)]))

    def postprocess(
        self, images: torch.Tensor, output_type: str = "pil"
    ) -> list[Image.Image] | np.ndarray | torch.Tensor:
        """Turn model output into pictures.

        Args:
            images: shape `(batch, channels, height, width)` in [-1, 1].
            output_type: `"pil"`, `"np"` (`(batch, height, width, channels)`) or `"pt"`.

        Returns:
            Pictures in [0, 1] (8 bit for `"pil"`).

        Raises:
            ValueError: for an unknown `output_type`.
        """
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f"`output_type` must be 'pil', 'np' or 'pt', but got {output_type!r}.")
        images = denormalize(images.detach().float())
        if output_type == "pt":
            return images
        array = images.cpu().permute(0, 2, 3, 1).numpy()
        return array if output_type == "np" else numpy_to_pil(array)

    def _to_tensor(self, image: Any, height: int, width: int) -> torch.Tensor:
        """One picture of any accepted kind as float32 `(self.channels, height, width)` in [0, 1]."""
        if isinstance(image, Image.Image):
            return pil_to_tensor(image, self.config.channels, height, width)
        pixels = torch.from_numpy(np.ascontiguousarray(self._to_array(image))).permute(2, 0, 1)[None]
        return resize(pixels, height, width)[0]

    def _to_array(self, image: Any) -> np.ndarray:
        """An array or tensor as float32 `(height, width, self.channels)` in [0, 1]."""
        if isinstance(image, torch.Tensor):
            tensor = image.detach().cpu()
            array = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
            array = array.transpose(1, 2, 0) if array.ndim == 3 else array
            layout = "(channels, height, width)"
        elif isinstance(image, np.ndarray):
            array, layout = np.asarray(image), "(height, width, channels)"  # what a mask hides counts too
        else:
            raise ValueError(
                f"An image must be a PIL image, a numpy array or a torch tensor, but got {type(image).__name__}."
            )
        array = array[..., None] if array.ndim == 2 else array
        if array.ndim != 3 or array.shape[-1] not in (1, 3):
            raise ValueError(
                f"An image must have 1 (grey) or 3 (RGB) channels in the layout {layout}, but got shape "
                f"{tuple(image.shape)}."
            )
        if array.size == 0:
            raise ValueError(f"An image must have a height and a width above 0, but got shape {tuple(image.shape)}.")
        return _match_channels(_to_unit_range(array), self.config.channels)


def numpy_to_pil(array: np.ndarray) -> list[Image.Image]:
    """Turn `(batch, height, width, 1 or 3)` in [0, 1] into 8-bit pictures of mode "L" or "RGB"."""
    pixels = (array * 255.0).round().clip(0, 255).astype(np.uint8)
    return [Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image) for image in pixels]


def resize(images: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Resize `(batch, channels, H, W)` bilinearly, with antialiasing when it shrinks; the identity at equal size."""
    if images.shape[-2:] == (height, width):
        return images
    return F.interpolate(images, size=(height, width), mode="bilinear", align_corners=False, antialias=True)


def _as_list(images: Any) -> list[Any]:
    """Flatten any accepted input into a list of single pictures."""
    items = list(images) if isinstance(images, (list, tuple)) else [images]
    flat: list[Any] = []
    for item in items:
        flat.extend(item if isinstance(item, (np.ndarray, torch.Tensor)) and item.ndim == 4 else [item])
    if not flat:
        raise ValueError("At least one image is expected, but the list is empty.")
    return flat


def _to_unit_range(array: np.ndarray) -> np.ndarray:
    """Bring integer or floating-point pixels to float32 in [0, 1], refusing what is not a picture."""
    if array.dtype.kind == "u" and array.dtype.itemsize <= 2:  # of either byte order
        return (array / np.float32(np.iinfo(array.dtype).max)).astype(np.float32)
    if not np.issubdtype(array.dtype, np.floating):
        raise ValueError(
            f"An image array must be uint8, uint16 or floating point in [0, 1], but its dtype is {array.dtype}."
        )
    if not np.isfinite(array).all():
        raise ValueError("The image holds NaN or infinite values. Fill or mask them before calling the pipeline.")
    if not (array.min() >= -1e-4 and array.max() <= 1 + 1e-4):
        raise ValueError(
            f"A floating-point image must lie in [0, 1], but its values span [{array.min():.3g}, {array.max():.3g}]. "
            "Rescale it (for example `(image + 1) / 2` from [-1, 1], or `image / 255`)."
        )
    return array.astype(np.float32)


# ---- mediffusion_diffusers/latents.py


def vae_scale_factor(vae: Any) -> int:
    """Pixels per latent position along a side."""
    block_size = getattr(vae.config, "block_size", None)
    return int(block_size or 2 ** (len(vae.config.block_out_channels) - 1))


def encode_pixels(vae: Any, pixels: torch.Tensor) -> torch.Tensor:
    """Encode deterministically: the posterior's mode, shifted and scaled as the autoencoder's config says.

    Args:
        vae: `AutoencoderKL` or `SpaceToDepthAutoencoder`.
        pixels: shape `(batch, channels, height, width)` in [-1, 1], on any device.

    Returns:
        Latents of about unit variance, shape `(batch, latent_channels, height / f, width / f)`.
    """
    latents = vae.encode(pixels.to(dtype=vae.dtype)).latent_dist.mode()
    return (latents - _shift(vae)) * vae.config.scaling_factor


def decode_latents(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """Decode scaled latents into pixels of about [-1, 1]; the inverse of `encode_pixels`."""
    latents = latents.to(dtype=vae.dtype) / vae.config.scaling_factor + _shift(vae)
    return vae.decode(latents, return_dict=False)[0]


def _shift(vae: Any) -> float:
    """The config's `shift_factor`, which many autoencoders leave out."""
    return getattr(vae.config, "shift_factor", None) or 0.0


# ---- mediffusion_diffusers/pipelines/call_state.py


@dataclass
class CallState:
    """What a call shows of itself, and what its callback may change.

    Args:
        guidance_scale: of the next step, a number or one per image.
        num_timesteps: number of denoising steps.
        interrupt: whether to skip the remaining steps.
        is_running: whether the call has not ended yet.
        num_evaluations: on how many latents the U-Net was evaluated, where it was `counted`.
    """

    guidance_scale: Any = 0.0
    num_timesteps: int = 0
    interrupt: bool = False
    is_running: bool = False
    num_evaluations: int = 0

    def counted(self, unet: Callable[..., Any]) -> Callable[..., Any]:
        """The U-Net, counting this call's evaluations; other calls may use the same one at the same time."""

        def evaluate(sample: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            self.num_evaluations += len(sample)
            return unet(sample, *args, **kwargs)

        return evaluate

    def steps(self, timesteps: torch.Tensor, shown: Callable[[Any], Iterable[Any]]) -> Iterator[tuple[int, Any]]:
        """Number and timestep of each denoising step, until a callback interrupts.

        Args:
            timesteps: on the CPU, so that no step waits for a device.
            shown: wraps them into a progress bar.
        """
        self.num_timesteps = len(timesteps)
        for step, t in enumerate(shown(timesteps)):
            if not self.interrupt:
                yield step, t


class ThreadCalls(threading.local):
    """The running or last call of each thread."""

    def __init__(self) -> None:
        self.current = CallState()

    def __reduce__(self) -> tuple[Any, ...]:  # a copied pipeline begins without calls
        return ThreadCalls, ()


def changed_by_callback(
    callback: Callable[..., Any] | None,
    pipe: Any,
    step: int,
    timestep: int,
    tensors: Mapping[str, torch.Tensor],
    names: Iterable[str],
) -> Mapping[str, torch.Tensor]:
    """Call a `callback_on_step_end`; what it does not return stays as it is, and so does all where it returns nothing.

    Args:
        callback: of the user, or None.
        pipe: its first argument.
        step: number of the step.
        timestep: where the step began.
        tensors: what the pipeline offers, by name.
        names: what the callback asked for.

    Raises:
        ValueError: if it returns anything but a dict of tensors of the same shapes, or new ones that are not finite.
    """
    changed = None if callback is None else callback(pipe, step, timestep, {name: tensors[name] for name in names})
    if changed is None:
        return tensors
    if not isinstance(changed, Mapping):
        raise ValueError(
            "`callback_on_step_end` must return a dict of the tensors that it changed, or None, but returned "
            f"{type(changed).__name__}."
        )
    result = {name: changed.get(name, tensor) for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        if not isinstance(result[name], torch.Tensor) or result[name].shape != tensor.shape:
            raise ValueError(
                f"`callback_on_step_end` must return {name!r} as a tensor of shape {tuple(tensor.shape)}, but "
                f"returned {getattr(result[name], 'shape', type(result[name]).__name__)}."
            )
        if result[name] is not tensor and not torch.isfinite(result[name]).all():
            raise ValueError(
                f"`callback_on_step_end` returned {name!r} with NaN or infinite values after step {step}."
            )
    return result


# ---- mediffusion_diffusers/registration.py

LIBRARY_NAME = "mediffusion_diffusers"
# What a `model_index.json` may name of this package, and the module that has it.
LOADABLE_CLASSES = {
    "JointUNet2DModel": "mediffusion_diffusers.models",
    "MultistepDDIMScheduler": "mediffusion_diffusers.schedulers",
    "SpaceToDepthAutoencoder": "mediffusion_diffusers.models",
}


# ---- mediffusion_diffusers/pipelines/components.py

# So that diffusers looks for this package where a checkpoint carries no code of its models, and names it if it is
# missing.
pipeline_loading_utils.LOADABLE_CLASSES.setdefault(LIBRARY_NAME, {})

# Schedulers with `alphas_cumprod`, whole timesteps and a free choice of them, on latents of unit variance.
SCHEDULERS = (DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, DPMSolverSinglestepScheduler)

# As diffusers reads them off `__init__` when it loads a pipeline: its older versions know neither `X | Y` nor
# annotations that are strings.
Autoencoder = Union[AutoencoderKL, SpaceToDepthAutoencoder]  # noqa: UP007
Scheduler = Union[DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, DPMSolverSinglestepScheduler]  # noqa: UP007


def with_own_classes(model_index: Mapping[str, Any]) -> dict[str, Any]:
    """A `model_index.json` whose entries name the modules of the installed package.

    A published checkpoint carries the code of its models for those without this package. diffusers prefers that file,
    `unet/mediffusion_diffusers.py`, to the library of its name, and asks to trust it. The package takes its own code:
    no checkpoint holds files with its modules' names.

    Args:
        model_index: as it was read.
    """
    if not __name__.startswith(f"{LIBRARY_NAME}."):  # this very code came with a checkpoint
        return dict(model_index)
    return {
        name: [LOADABLE_CLASSES[entry[1]], entry[1]]
        if isinstance(entry, list) and len(entry) == 2 and entry[0] == LIBRARY_NAME and entry[1] in LOADABLE_CLASSES
        else entry
        for name, entry in model_index.items()
    }


def check_components(vae: Any, unet: Any, scheduler: Any) -> None:
    """Refuse components that do not fit one another; None stands for one that is not there.

    Raises:
        ValueError: naming the component.
    """
    if unet is not None and not hasattr(unet, "label_names"):
        raise ValueError(
            f"`unet` must be a JointUNet2DModel, but got {type(unet).__name__}, which has no classifier head. "
            "Extend it with `JointUNet2DModel.from_unet(unet, num_labels=...)` and train the head."
        )
    if vae is not None and "latent_channels" not in vae.config:
        raise ValueError(
            f"`vae` must be an AutoencoderKL or a SpaceToDepthAutoencoder, but got {type(vae).__name__}. Use the "
            "autoencoder that the U-Net was trained with."
        )
    if vae is not None and unet is not None and vae.config.latent_channels != unet.config.in_channels:
        raise ValueError(
            f"`unet` takes {unet.config.in_channels} latent channels, but `vae` makes "
            f"{vae.config.latent_channels}. Use the autoencoder that the U-Net was trained with."
        )
    if vae is not None and vae.config.in_channels not in (1, 3):
        raise ValueError(f"`vae` must take 1 (grey) or 3 (RGB) channels, but takes {vae.config.in_channels}.")
    if scheduler is not None and not isinstance(scheduler, SCHEDULERS):
        raise ValueError(
            f"`scheduler` must be one of {', '.join(kind.__name__ for kind in SCHEDULERS)}, which can start at "
            f"any timestep, but got {type(scheduler).__name__}. Make one with "
            "`DDIMScheduler.from_config(scheduler.config)`."
        )


# ---- mediffusion_diffusers/pipelines/base.py

Generators = torch.Generator | list[torch.Generator] | None


def check_output_type(output_type: Any, known: Sequence[str] = ("pil", "np", "pt", "latent")) -> None:
    """Refuse an unknown `output_type`."""
    if not isinstance(output_type, str) or output_type not in known:
        raise ValueError(f"`output_type` must be one of {tuple(known)}, but got {output_type!r}.")


def check_switch(name: str, value: Any) -> None:
    """Refuse what is neither true nor false."""
    if not isinstance(value, bool):
        raise ValueError(f"`{name}` must be True or False, but got {value!r}.")


def check_latents(name: str, latents: Any, shape: Sequence[int]) -> None:
    """Refuse given latents or noise of another shape, or with NaN or infinite values.

    Raises:
        ValueError: naming the argument.
    """
    if not isinstance(latents, torch.Tensor) or not latents.is_floating_point():
        raise ValueError(f"`{name}` must be a tensor of floating-point numbers, but got {type(latents).__name__}.")
    if tuple(latents.shape) != tuple(shape):
        raise ValueError(f"`{name}` must have the latents' shape {tuple(shape)}, but got {tuple(latents.shape)}.")
    if not torch.isfinite(latents).all():
        raise ValueError(f"`{name}` must be finite, but holds NaN or infinite values.")


class NotFiniteError(ValueError):
    """A model returned NaN or infinite values."""


def check_results(results: Iterable[torch.Tensor], guidance_scale: Any, hold: float = 0.0) -> None:
    """Refuse to show what is beyond all numbers.

    Args:
        results: latents and what was decoded of them.
        guidance_scale: that they were made with, a number or one per image.
        hold: weight of the penalty beside it, which is multiplied by the scale.

    Raises:
        NotFiniteError: naming `guidance_scale`, and `hold`, if there was guidance.
    """
    if all(bool(torch.isfinite(tensor).all()) for tensor in results):
        return
    scales = torch.as_tensor(guidance_scale)
    if not scales.any():
        raise NotFiniteError("The model returned NaN or infinite values unguided: check its weights and precision.")
    advice = f" with `hold={hold:g}`. Choose a smaller product of both." if hold else ". Choose a smaller one."
    raise NotFiniteError(
        f"The model returned NaN or infinite values under guidance, at a `guidance_scale` of up to "
        f"{float(scales.max()):g}{advice}"
    )


def scheduler_step_kwargs(scheduler: Any, **kwargs: Any) -> dict[str, Any]:
    """Those of `kwargs` that the scheduler's `step` takes (DDPM knows no `eta`)."""
    parameters = inspect.signature(scheduler.step).parameters
    return {name: value for name, value in kwargs.items() if name in parameters}


def own_generator(generator: Generators) -> Generators:
    """The given generators, or a new one seeded by torch's global generator, so that it can be cloned."""
    if generator is None:
        return torch.Generator().manual_seed(int(torch.randint(2**63 - 1, ())))
    return generator


def clone_generator(generator: Generators) -> Generators:
    """Generators that will draw the same numbers as these, independently of them."""
    if generator is None:
        return None
    originals = generator if isinstance(generator, list) else [generator]
    clones = {id(original): torch.Generator(original.device) for original in originals}
    for original in originals:
        clones[id(original)].set_state(original.get_state())
    return [clones[id(original)] for original in generator] if isinstance(generator, list) else clones[id(generator)]


def scores_to_output(scores: torch.Tensor, output_type: str) -> Any:
    """Scores as a tensor on the CPU for `"pt"` and `"latent"`, as an array otherwise."""
    scores = scores.detach().float().cpu()
    return scores if output_type in ("pt", "latent") else scores.numpy()


# ---- mediffusion_diffusers/regions.py

_FULL_LEVELS = (255, 65535)  # of grey pictures of 8 and 16 bits
_GREY_MODES = ("1", "L", "I", "F", "I;16", "I;16B", "I;16L", "I;16N")


def prepare_region(region: Any, num_rows: int, image_size: tuple[int, int], latent_size: tuple[int, int]) -> Any:
    """Bring a region to the latents' grid; a latent position is inside if any of its pixels is.

    Args:
        region: a PIL image, array or tensor of shape `(height, width)`, `(1, height, width)` or
            `(rows, [1,] height, width)`: 0 where the image must stay, 1 where it may change, in between they blend.
            Whole numbers are 0 and 1 too, or grey levels up to 255 (8 bits) or 65,535 (16 bits). Or boxes, a list of
            `{"x", "y", "width", "height"}` in relative units; or a list of any of these, one per row.
        num_rows: number of counterfactuals.
        image_size: height and width of the model's images; other masks are resized.
        latent_size: height and width of the latents.

    Returns:
        Shape `(num_rows or 1, 1, *latent_size)` in [0, 1].

    Raises:
        ValueError: for shapes, values or boxes that cannot be used.
    """
    if region is None or isinstance(region, (str, bytes, Mapping)):
        raise ValueError(
            f"`mask` must be a mask, boxes, or a list with one of them per counterfactual, not {region!r}."
        )
    if isinstance(region, (list, tuple)) and not (region and isinstance(region[0], Mapping)):
        if len(region) != num_rows:
            raise ValueError(f"`mask` as a list must hold one mask per counterfactual, {num_rows}, not {len(region)}.")
        return torch.cat([prepare_region(item, 1, image_size, latent_size) for item in region])
    mask = boxes_to_mask(region, *image_size) if isinstance(region, (list, tuple)) else _mask_values(region)
    mask = mask.reshape(1, 1, *mask.shape) if mask.ndim == 2 else mask
    mask = mask[:, None] if mask.ndim == 3 else mask
    if mask.ndim != 4 or not mask.numel() or mask.shape[1] != 1 or len(mask) not in (1, num_rows):
        raise ValueError(
            f"`mask` must have shape (height, width) or ({num_rows}, 1, height, width), but got {tuple(mask.shape)}."
        )
    if not torch.isfinite(mask).all() or mask.min() < 0 or mask.max() > 1:
        raise ValueError("`mask` must lie in [0, 1]: 0 where the image must stay, 1 where it may change.")
    if mask.shape[-2:] not in (image_size, latent_size):
        mask = F.interpolate(mask, image_size, mode="bilinear", align_corners=False)
    return F.adaptive_max_pool2d(mask, latent_size)


def _mask_values(region: Any) -> torch.Tensor:
    """A mask's numbers as float32, 1 where the image may change, still to be checked for shape and range."""
    if isinstance(region, torch.Tensor):
        values, is_whole, is_real = region, not region.is_floating_point(), not region.is_complex()
    else:
        try:
            array = _stored_levels(region) if isinstance(region, Image.Image) else np.asarray(region)
        except (TypeError, RuntimeError) as error:
            raise ValueError(f"`mask` must be a picture, array, tensor or boxes, not {region!r}: {error}.") from None
        is_whole, is_real = array.dtype.kind in "biu", array.dtype.kind in "biuf"
        values = torch.from_numpy(array.astype(np.float32)) if is_real else torch.zeros(0)
    if not is_real:
        dtype = f" of {region.dtype}" if hasattr(region, "dtype") else ""
        raise ValueError(
            "`mask` must be a picture, boxes, or an array or tensor of real numbers or booleans, but got "
            f"{type(region).__name__}{dtype}."
        )
    values = values.float()
    largest = float(values.max()) if is_whole and values.numel() else 1.0
    if largest <= 1:
        return values
    if largest not in _FULL_LEVELS:
        raise ValueError(
            "`mask` of whole numbers must be 0 where the image must stay and 1, 255 or 65535 where it may change, but "
            f"its largest is {largest:g}. Of a map of labels take one, `mask == {largest:g}`; divide other levels "
            "yourself."
        )
    return values / largest


def _stored_levels(picture: Image.Image) -> np.ndarray:
    """A picture's pixels as they are stored, if they are grey and opaque: of others nothing says what may change."""
    if picture.mode in _GREY_MODES:
        return np.asarray(picture)
    colours = np.asarray(picture.convert("RGBA"))
    if (colours[..., 3] != 255).any() or (colours[..., :3] != colours[..., :1]).any():
        raise ValueError(
            f"`mask` must be grey, but is a picture of mode {picture.mode} with colours or transparency. Choose what "
            'says where the image may change, such as `mask.convert("L")` or `mask.getchannel("A")`.'
        )
    return colours[..., 0]


def boxes_to_mask(boxes: Sequence[Mapping[str, float]], height: int, width: int) -> torch.Tensor:
    """1 inside any of the boxes, 0 elsewhere; shape `(height, width)`.

    Args:
        boxes: `x`, `y` of the upper left corner, `width` and `height`, in relative units in [0, 1].
        height: of the mask in pixels.
        width: of the mask in pixels.

    Raises:
        ValueError: for a box that lacks a side, covers nothing, or is told in pixels.
    """
    mask = torch.zeros(height, width)
    for box in boxes:
        try:
            sides = [float(box[name]) for name in ("x", "y", "width", "height")]
        except KeyError as error:
            raise ValueError(
                f"A box of `mask` needs x, y, width and height in relative units, but {dict(box)} lacks {error}."
            ) from None
        except (TypeError, ValueError):
            sides = [math.nan]
        if not all(map(math.isfinite, sides)):
            raise ValueError(f"x, y, width and height of a box of `mask` must be finite numbers, but got {box!r}.")
        if max(sides[2:]) > 1 + 1e-3:
            raise ValueError(
                f"x, y, width and height of a box of `mask` are relative, in [0, 1], but got {dict(box)}. Divide "
                "pixels by the image's width and height."
            )
        rows = _covered(sides[1], sides[3], height)
        columns = _covered(sides[0], sides[2], width)
        if not mask[rows, columns].numel():
            raise ValueError(f"The box {dict(box)} covers no pixel; x, y, width and height are relative, in [0, 1].")
        mask[rows, columns] = 1
    return mask


def _covered(start: float, length: float, num_pixels: int) -> slice:
    """The pixels along one side that a box touches; none where it ends before it begins, or before the image does."""
    if length <= 0:
        return slice(0)
    first, last = math.floor(start * num_pixels), math.ceil((start + length) * num_pixels)
    return slice(max(first, 0), max(last, 0))


def region_of_change(deviation: torch.Tensor, energy_share: float = 0.5) -> torch.Tensor:
    """Where an edit changed the latents most: the smallest region that holds a share of the change's energy.

    So a finding in one place gets a small region, and one that is everywhere a large one.

    Args:
        deviation: counterfactual minus null edit, shape `(rows, channels, height, width)`.
        energy_share: of the squared change (its mean over channels, averaged over 3 x 3 positions), in (0, 1].

    Returns:
        1 inside, 0 outside, shape `(rows, 1, height, width)`; 0 everywhere where nothing changed.
    """
    size = _mean_3x3(deviation.float().abs().mean(1, keepdim=True))
    return _smallest_region(size.square(), energy_share).to(deviation)


def region_of_evidence(
    evidence: torch.Tensor, share: float = 0.6, in_one_place: torch.Tensor | None = None
) -> torch.Tensor:
    """Where a change convinced a classifier: the smallest region with a share of the evidence, and its surroundings.

    A change may well be larger than its reason: what is removed from one lung is faintly mended in the other as well,
    where the classifier sees nothing. What speaks against the target counts as nothing.

    What convinces lies densest in the middle of a finding, which reaches further: the region grows by one position,
    and its border is soft.

    An average over noises hedges, moreover: a finding that might be added in either lung comes half in both. It must
    be taken away wherever it is, but one place is enough to have it: the connected part with most of the evidence.

    Args:
        evidence: what each position adds to the log-odds of the target, shape `(rows, 1, height, width)`; see
            [`~mediffusion_diffusers.guidance.attribute_change`].
        share: of the evidence above 0 (averaged over 3 x 3 positions), in (0, 1]; with what lies around the region may
            hold more, and one place less.
        in_one_place: rows of which only one connected part stays, bool, shape `(rows,)`.

    Returns:
        The region, grown by one position and then averaged over 3 x 3, shape `(rows, 1, height, width)`, in [0, 1]; 0
        everywhere where nothing speaks for the target.
    """
    density = _mean_3x3(evidence.float()).clamp_min(0)
    region = _smallest_region(density, share)
    if in_one_place is not None:
        region = torch.where(in_one_place.view(-1, 1, 1, 1), _strongest_part(region, density), region)
    return _mean_3x3(F.max_pool2d(region, 3, stride=1, padding=1)).to(evidence)


def _strongest_part(region: torch.Tensor, density: torch.Tensor) -> torch.Tensor:
    """Of a region of ones the connected part, diagonals included, with the largest sum; same shape.

    On the CPU, since each round asks whether there is another; what is asked is as small as latents.
    """
    device, region, density = region.device, region.cpu(), density.cpu()
    numbers = torch.arange(1, region[0].numel() + 1, dtype=torch.float32).view_as(region[0])
    parts = numbers * region  # 0 outside
    for _ in range(region[0].numel()):  # the largest number in reach, at most once around each position
        spread = F.max_pool2d(parts, 3, stride=1, padding=1) * region
        if torch.equal(spread, parts):
            break
        parts = spread
    places = parts.flatten(1).long()
    sums = torch.zeros(len(places), places.shape[1] + 1)
    sums = sums.scatter_add(1, places, (density * region).flatten(1))
    strongest = sums[:, 1:].argmax(1) + 1
    return (region * (parts == strongest.view(-1, 1, 1, 1))).to(device)


def _smallest_region(density: torch.Tensor, share: float) -> torch.Tensor:
    """1 where a density is largest, such that its sum there is a share of the whole, and 0 elsewhere; same shape."""
    values, places = density.flatten(1).sort(dim=1, descending=True)
    before = values.cumsum(1) - values  # what larger ones hold together
    is_inside = (before < share * values.sum(1, keepdim=True)) & (values > 0)
    return torch.zeros_like(values).scatter(1, places, is_inside.to(values)).view_as(density)


def _mean_3x3(values: torch.Tensor) -> torch.Tensor:
    """Mean over each position and its neighbours, of those that exist; same shape."""
    return F.avg_pool2d(values, 3, stride=1, padding=1, count_include_pad=False)


# ---- mediffusion_diffusers/pipelines/outputs.py

Images = list[Image.Image] | np.ndarray | torch.Tensor
Scores = np.ndarray | torch.Tensor


@dataclass
class ControlEdit:
    """A change of the size (L1) of a counterfactual, to compare it with; see `mediffusion_diffusers.controls`.

    Args:
        images: the changed images.
        probabilities: the model's probabilities for them, shape `(batch, num_labels)`.
        high_frequency_share: share of the change's energy above half of the highest frequency, shape `(batch,)`.
    """

    images: Images
    probabilities: Scores
    high_frequency_share: Scores


@dataclass
class MediffusionCounterfactualPipelineOutput(BaseOutput):
    """Output of [`MediffusionCounterfactualPipeline`].

    The *null edit* has the same start, timesteps and noise as the counterfactual, at guidance scale 0: what it changes
    is due to the autoencoder and the noise, not to the explanation. With `detail="keep"` it is the image itself, and
    both differences are the explanation alone.

    Args:
        images: the counterfactuals, in the asked-for `output_type`.
        null_images: the null edits.
        originals: the given images at the model's size.
        difference: counterfactual minus original, signed, in units of the full intensity range ([-1, 1]); shape of
            the images as arrays (tensors for `"pt"` and `"latent"`; for `"latent"` the difference of the latents).
        null_difference: counterfactual minus null edit, likewise: the explanation alone.
        probabilities_before: the model's probabilities for the originals, shape `(batch, num_labels)`.
        probabilities_after: for the counterfactuals as returned.
        probabilities_null: for the null edits as returned.
        label_names: names of the columns.
        timesteps: timesteps of the guided evaluations, noisiest first.
        image_size: height and width of the results; images of other sizes were resized.
        settings: the options used, after the checkpoint's defaults, by name; `mask` is `"auto"`, `"everywhere"` or
            `"given"`. See `CounterfactualSettings.to_dict`.
        guidance_scales: the scale of each counterfactual, as given or found.
        strengths: likewise.
        reached: of a search: whether the counterfactual, as returned, reaches the target probability; bool.
        plain_gradient_images: each image changed as much (L1) as its counterfactual by the model's plain gradient, in
            the same region; None, like all of the controls, for `controls=False` and `output_type="latent"`.
        plain_gradient_probabilities: the model's probabilities for them.
        random_noise_images: each image changed as much by white noise.
        random_noise_probabilities: the model's probabilities for them.
        l1: mean absolute change of each counterfactual, in units of the full intensity range.
        high_frequency_shares: share of the change's energy above half of the highest frequency, of the
            counterfactual, the plain gradient and the noise (0.80), shape `(batch, 3)`.
        region: where the image was allowed to change, on the latents' grid, in [0, 1]; None for everywhere.
        agreement: with `start="noised_paths"`: how far its noises agree on the change of each place, on the latents'
            grid, shape `(batch, 1, *latent_size)`, in [0, 1]: 1 where all of them make the same change, about
            `1 / sqrt(num_noises)` where they have nothing in common. None with other starts.
        unet_evaluations: evaluations of the U-Net that the edit of one counterfactual took, in the mean: the start,
            the steps and the trials of a search, not the classification of pictures and not the controls.
        external_probabilities_before: the external classifier's probabilities for the originals.
        external_probabilities_after: for the counterfactuals.
        external_probabilities_null: for the null edits.
        external_label_names: names of their columns.

    Several counterfactuals of one image repeat its original and its scores, so that all fields have one entry per
    counterfactual.
    """

    images: Images
    null_images: Images
    originals: Images
    difference: Scores
    null_difference: Scores
    probabilities_before: Scores
    probabilities_after: Scores
    probabilities_null: Scores
    label_names: list[str]
    timesteps: list[int]
    image_size: tuple[int, int]
    settings: dict[str, Any]
    guidance_scales: Scores | None = None
    strengths: Scores | None = None
    reached: np.ndarray | None = None
    plain_gradient_images: Images | None = None
    plain_gradient_probabilities: Scores | None = None
    random_noise_images: Images | None = None
    random_noise_probabilities: Scores | None = None
    l1: Scores | None = None
    high_frequency_shares: Scores | None = None
    region: np.ndarray | None = None
    agreement: np.ndarray | None = None
    unet_evaluations: float | None = None
    external_probabilities_before: Scores | None = None
    external_probabilities_after: Scores | None = None
    external_probabilities_null: Scores | None = None
    external_label_names: list[str] | None = None

    def settings_of(self, row: int) -> dict[str, Any]:
        """The settings of one counterfactual: its own scale and strength, of a list or found, in place of the call's.

        Args:
            row: of the counterfactual.
        """
        own = {"guidance_scale": self.guidance_scales, "strength": self.strengths}
        return {**self.settings, **{name: _plain(values, row) for name, values in own.items() if values is not None}}

    @property
    def controls(self) -> dict[str, ControlEdit] | None:
        """The counterfactual, the plain gradient and the noise, by name, side by side; None without controls."""
        if self.plain_gradient_images is None:
            return None
        changes = {
            "counterfactual": (self.images, self.probabilities_after),
            "plain_gradient": (self.plain_gradient_images, self.plain_gradient_probabilities),
            "random_noise": (self.random_noise_images, self.random_noise_probabilities),
        }
        return {
            name: ControlEdit(*change, self.high_frequency_shares[:, column])  # type: ignore
            for column, (name, change) in enumerate(changes.items())
        }


def _plain(values: Scores, row: int) -> float:
    """A number of single precision as it is written: 0.3, not 0.30000001192092896."""
    return float(str(torch.as_tensor(values)[row].cpu().numpy()))


# ---- mediffusion_diffusers/controls.py

HIGH_FREQUENCY = 0.25  # cycles per pixel, half of what the grid can hold
_NO_CHANGE = 1e-5  # root mean square below which a change is rounding
_BISECTIONS = 40
_MAX_STRETCH = 64  # how much further than without clamping `change_by` goes to make up for it


def ascend_log_probability(
    latents: torch.Tensor,
    size: torch.Tensor,
    log_probability: Callable[[torch.Tensor], torch.Tensor],
    num_steps: int = 5,
    mask: torch.Tensor | float = 1.0,
) -> torch.Tensor:
    """The plain gradient in latent space: ascent towards a target with steps of equal length, without any diffusion.

    Args:
        latents: shape `(num, channels, height, width)`.
        size: length (2-norm) of the whole change if all steps go the same way, per image, shape `(num,)`.
        log_probability: log-probability of what is wanted of each image, shape `(num,)`, from latents; differentiable.
        num_steps: gradient evaluations.
        mask: where it may change the latents, shape `(num or 1, 1, height, width)` in [0, 1].

    Returns:
        Changed latents, same shape. Where the gradient vanishes the image stays as it is.
    """
    changed = latents.clone()
    for _ in range(num_steps):
        gradient = mask * _ascent(changed, log_probability)
        length = gradient.flatten(1).norm(dim=1).clamp_min(1e-20)
        step = (size.to(length) / num_steps / length).view(-1, 1, 1, 1) * gradient
        changed = (changed + step).to(latents.dtype)
    return changed


def change_by(originals: torch.Tensor, direction: torch.Tensor, l1: torch.Tensor) -> torch.Tensor:
    """Go along `direction` until the clamped change has the wanted size.

    Args:
        originals: shape `(num, channels, height, width)` in [0, 1].
        direction: same shape; where it is zero everywhere, or the wanted size cannot be reached within [0, 1], the
            change is as large as it can be.
        l1: mean absolute change per image, shape `(num,)`.

    Returns:
        Changed images in [0, 1].
    """
    size = direction.abs().flatten(1).mean(1).clamp_min(1e-20)
    unit = direction / size.view(-1, 1, 1, 1)
    low, high = torch.zeros_like(size), _MAX_STRETCH * l1.to(size)
    for _ in range(_BISECTIONS):  # the clamped change grows with the scale
        middle = (low + high) / 2
        reached = _changed(originals, unit, middle).sub(originals).abs().flatten(1).mean(1)
        is_small = reached < l1.to(size)
        low, high = torch.where(is_small, middle, low), torch.where(is_small, high, middle)
    return _changed(originals, unit, (low + high) / 2)


def high_frequency_share(difference: np.ndarray) -> np.ndarray:
    """Share of a change's energy above `HIGH_FREQUENCY`, its mean left out; NaN for no change.

    Anatomical edits are smooth; of white noise, 0.80 lies above (the share of the frequency plane).

    Args:
        difference: shape `(num, channels, height, width)`.

    Returns:
        Shape `(num,)`, in [0, 1].
    """
    height, width = difference.shape[-2:]
    energy = (np.abs(np.fft.fft2(difference)) ** 2).sum(1)
    energy[:, 0, 0] = 0
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
    total = energy.sum((1, 2))
    with np.errstate(invalid="ignore"):
        is_change = total > (height * width * _NO_CHANGE) ** 2
        return np.where(is_change, energy[:, radius > HIGH_FREQUENCY].sum(1) / total, np.nan)


def _ascent(images: torch.Tensor, log_probability: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Direction of the gradient of each log-probability, in float32 or better; works under `torch.inference_mode`.

    Its length means nothing. Of a probability g near 1 it is in proportion to 1 - g.
    """
    with torch.inference_mode(False), torch.enable_grad(), hold_saved_tensors():
        leaf = images.detach().clone().requires_grad_(True)
        log_prob = log_probability(leaf).float()
        rest = -torch.expm1(log_prob.detach())
        return gradient_at_size(log_prob, torch.ones_like(log_prob), rest, leaf)[0]


def _changed(originals: torch.Tensor, unit: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return (originals + scale.view(-1, 1, 1, 1) * unit).clamp(0, 1)


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


# ---- mediffusion_diffusers/counterfactual_options.py


class Stored:
    """In an option's type: a checkpoint may hold its own default of it, in its `guidance_defaults`."""


@dataclass(frozen=True, eq=False)
class CounterfactualOptions:
    """How a counterfactual is made, as it is asked for.

    The pipeline's signature and docstring, [`~mediffusion_diffusers.requests.counterfactuals.ExplanationRequest`], the
    scripts' options and the model card's table all follow from the fields of this class. Where a type has several
    members, the first is what a command line takes.
    """

    strength: Annotated[float, Range(above=0, at_most=1), Stored] = option(
        0.3, "How far to go back in the noise schedule; t = strength * 1000 (paper: 0.05 to 0.3)."
    )
    guidance_scale: Annotated[float | Sequence[float] | Mapping[str, float], Range(at_least=0), Stored] = option(
        10.0,
        "Scale s of Eq. 2; a list gives one per counterfactual, so that several for one image make a sweep (Fig. 7); "
        '`{"towards": ..., "away": ...}` gives one per direction, of which the smaller holds for a counterfactual '
        "with both. It belongs to a checkpoint (the paper's 500 and 200 to its own).",
    )
    num_inference_steps: Annotated[int, Range(at_least=1), Stored] = option(
        10,
        "Guided steps actually taken from the start to the clean image, whatever the strength (unlike diffusers' "
        "image-to-image pipelines, which take `strength` times as many).",
    )
    start: Annotated[Literal["inversion", "noise", "noised_paths"], Stored] = option(
        "inversion",
        '`"inversion"` climbs to the noise level by deterministic inversion, which keeps the image\'s identity; '
        '`"noise"` adds random noise, as the paper does; `"noised_paths"` noises the image afresh at every step, '
        "`num_noises` times, and averages by how much guidance deviates from that: closest to the truth, and without "
        "guidance the image itself.",
    )
    guidance_mode: Annotated[OwnGuidanceMode | Literal["external"], Stored] = option(
        "zt",
        'Where the classifier is asked: `"zt"`, `"x0_detached"`, `"x0"` (the paper\'s authors) or `"external"` '
        "(App. H); see [`~mediffusion_diffusers.guidance.predict_guided`].",
    )
    num_inversion_steps: Annotated[int | None, Range(at_least=0)] = option(
        None, "Steps of the inversion, by default `num_inference_steps`."
    )
    solver_order: Annotated[int, Range(at_least=1, at_most=2)] = option(
        2, "2 (Adams-Bashforth, few steps suffice) or 1 (plain DDIM); unused with other schedulers."
    )
    eta: Annotated[float | None, Range(at_least=0, at_most=1)] = option(
        None,
        'Share of fresh noise of DDIM, by default 1 with `start="noised_paths"` and else 0; above 0 it implies first '
        "order and needs one of the starts with noise.",
    )
    start_snr: Annotated[float | None, Range(above=0)] = option(
        None,
        "The noise level by its signal-to-noise ratio instead of `strength`; it means the same for other noise "
        "schedules.",
    )
    follow_inversion: Annotated[bool, Stored] = option(
        False,
        "Keep to the inversion's own path on the way back and integrate the deviation alone. The null edit is then "
        "the encoded image itself and costs nothing, and fewer steps suffice. Needs DDIM and as many steps up as "
        "down.",
    )
    hold: Annotated[float, Range(at_least=0)] = option(
        0.0,
        "Weight of the penalty on changes of the logits that are not targeted; 0 lets them go. The penalty is "
        "multiplied by the scale, and stiff: begin with 0.3 / scale, and take more steps for more.",
    )
    target_probability: Annotated[float | None, Range(above=0, below=1)] = option(
        None,
        "Find for each image the smallest scale, then strength, that brings every label in `away` to this probability "
        "or below, and every label in `towards` to its complement or above (0.1 and 0.9 mean the same). "
        "`guidance_scale` and `strength` are where the search begins.",
    )
    max_guidance_scale: Annotated[float | None, Range(above=0)] = option(
        None, "Largest scale of the search, by default 32 times the first."
    )
    max_strength: Annotated[float | None, Range(above=0, at_most=1)] = option(
        None, "Largest strength of the search, by default `strength`: only the scale is searched."
    )
    stop_probability: Annotated[float | Mapping[str, float] | None, Range(above=0, below=1), Stored] = option(
        None,
        "How far a change goes: it is shortened to the share of it that brings every label in `away` to this "
        "probability or below, and every label in `towards` to its complement or above; one that does not get there "
        'stays whole. `{"towards": ..., "away": ...}` gives one per direction, as it is; one that is missing does not '
        "stop. A checkpoint's gives way to a call's `guidance_scale` or `target_probability`.",
    )
    mask: Annotated[Literal["auto", "everywhere"] | Any, Stored] = option(
        "everywhere",
        "Where the image may change: a mask, boxes, or one of them per counterfactual (see "
        '[`~mediffusion_diffusers.regions.prepare_region`]); `"auto"`: where an edit without a mask changes most (the '
        "smallest region with half of its energy; with noised paths where it convinces the classifier, the smallest "
        "with 0.6 of the integrated gradients for the target, of which the strongest connected part if one finding is "
        'added, and what lies around it); or `"everywhere"`. '
        'Outside, the latents stay those of the null edit, bit for bit; and with `detail="keep"` the image itself '
        "stays outside a given mask.",
    )
    fade_guidance: Annotated[bool, Stored] = option(
        False,
        "Let the push fade within each step as the target becomes certain, instead of holding it as Eq. 2 does. Large "
        "scales then overshoot far less in few steps. Needs DDIM and `eta=0`; a scale calibrated without it is too "
        "small with it.",
    )
    quality: Annotated[Literal["fast", "best"] | None, Stored] = option(
        None,
        'One word for `start="noised_paths"`, its `num_noises` and its `num_inference_steps`: `"fast"` takes 24 '
        'evaluations of the U-Net, `"best"` 78. Options that are named themselves come first.',
    )
    num_noises: Annotated[int | None, Range(at_least=1, at_most=1000), Stored] = option(
        4, 'With `start="noised_paths"`: noised copies per step, in pairs of a noise and its opposite.'
    )
    views: Annotated[Literal["shifts", "shifts_and_flips", "none"] | None, Stored] = option(
        "shifts",
        'With `start="noised_paths"`: how each copy is shown to the model, shifted by up to a latent position, and '
        "mirrored where anatomy allows (not a chest: it moves the heart); deviations are averaged in the image's own "
        "place.",
    )
    detail: Annotated[Literal["keep", "decoded"], Stored] = option(
        "keep",
        '`"keep"` adds what guidance changed to the image itself, so that the autoencoder and the noise change '
        'nothing and the null edit is the image; `"decoded"` shows the decoded latents, as the paper does.',
    )


def stored_options() -> tuple[str, ...]:
    """Names of the options that a checkpoint may store in its `guidance_defaults`."""
    hints = get_type_hints(CounterfactualOptions, include_extras=True)
    return tuple(name for name, hint in hints.items() if Stored in hint.__metadata__)


def describe_options(indent: str) -> str:
    """Name and help of every option, as the lines of a docstring's `Args:`, the first without its indent."""
    lines = []
    for entry in fields(CounterfactualOptions):
        text = entry.metadata["help"]
        allowed = range_of(CounterfactualOptions, entry.name)
        text = f"{entry.name}: {text}" if allowed is None else f"{entry.name}: {text} A number {allowed}."
        lines.append(textwrap.fill(text, 119, initial_indent=indent, subsequent_indent=indent + "    "))
    return "\n".join(lines).lstrip()


# ---- mediffusion_diffusers/pipelines/counterfactual/quality.py

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


# ---- mediffusion_diffusers/pipelines/counterfactual/settings.py

logger = logging.get_logger(__name__)


@dataclass(frozen=True, eq=False)
class CounterfactualSettings(CounterfactualOptions):
    """How a counterfactual is made: the options of [`CounterfactualOptions`], resolved and checked together."""

    @classmethod
    def resolve(
        cls, call: Mapping[str, Any], checkpoint: Mapping[str, Any] | None, scheduler: Any
    ) -> CounterfactualSettings:
        """The settings of a call: what it gives, else what the checkpoint stores, else the defaults above.

        What the checkpoint alone asks for gives way where the call or the scheduler cannot do it; what the call asks
        for does not.

        Args:
            call: options by name; `None` leaves one to the checkpoint.
            checkpoint: its `guidance_defaults`.
            scheduler: of the pipeline.

        Raises:
            ValueError: for a value outside its range, or settings that contradict each other or the scheduler.
        """
        given = _given(call)
        unknown = sorted(given.keys() - {entry.name for entry in fields(cls)})
        if unknown:
            raise ValueError(f"The counterfactual pipeline has no options {unknown}.")
        if not isinstance(checkpoint, Mapping | None):
            raise ValueError(f"The checkpoint's `guidance_defaults` must be a dict, but are {checkpoint!r}.")
        stored = _given(checkpoint or {})
        foreign = sorted(stored.keys() - set(stored_options()))
        if foreign:
            logger.warning(f"The checkpoint's `guidance_defaults` hold {foreign}, which this version does not know.")
        stored = {name: value for name, value in stored.items() if name not in foreign}
        if given.keys() & {"guidance_scale", "target_probability"}:  # how far to go is said already
            stored.pop("stop_probability", None)
        try:
            _checked(cls(**stored))
        except ValueError as error:
            raise ValueError(f"The checkpoint's `guidance_defaults` cannot be used: {error}") from None
        _checked(cls(**given))
        settings = _checked(cls(**spell_out(given, stored)))
        stored_start = cls(**spell_out({}, stored)).start
        if settings.start != stored_start and "guidance_scale" in stored.keys() - given.keys():
            logger.warning(
                f"The checkpoint's `guidance_scale`, {stored['guidance_scale']}, was chosen for "
                f"`start={stored_start!r}` and means something else to {settings.start!r}: give a `guidance_scale`."
            )
        return settings._at_a_strength(given, scheduler)._completed(given, scheduler)

    def check(self, scheduler: Any) -> None:
        """Refuse resolved settings that contradict each other or the scheduler.

        Raises:
            ValueError: naming the option.
        """
        max_timestep = timestep_of(self.strength, scheduler)
        for name in ("num_inference_steps", "num_inversion_steps"):
            steps = getattr(self, name)
            if name == "num_inversion_steps" and self.start != "inversion":
                continue
            if not 1 <= steps <= max_timestep:
                raise ValueError(
                    f"`{name}` counts the steps between the start and the clean image and must lie in "
                    f"[1, {max_timestep}] at `strength={self.strength}`, but got {steps}."
                )
        if self.start == "inversion" and (isinstance(scheduler, DDPMScheduler) or self.eta):
            raise ValueError(
                "`start='inversion'` needs deterministic steps, but the scheduler is DDPM or `eta` is above 0. Use "
                "`start='noise'` or `start='noised_paths'`, or a DDIMScheduler with `eta=0`."
            )
        for name in ("strength", "max_strength"):
            strength = getattr(self, name)
            if strength is None or scheduler.config.prediction_type != "epsilon":
                continue
            if scheduler.alphas_cumprod[timestep_of(strength, scheduler)] == 0:
                raise ValueError(
                    f"`{name}={strength}` starts at pure noise (zero terminal SNR), where a predicted noise says "
                    f"nothing of the image. Choose a smaller `{name}`, or a model that predicts v."
                )
        if self.target_probability is None and (self.max_guidance_scale, self.max_strength) != (None, None):
            raise ValueError("`max_guidance_scale` and `max_strength` bound a search: give `target_probability`.")
        if self.target_probability is not None and self.stop_probability is not None:
            raise ValueError(
                "`target_probability` searches the scale that suffices, `stop_probability` shortens a change to what "
                "suffices: give one of them."
            )
        if self.max_strength is not None and self.max_strength < self.strength:
            raise ValueError(
                f"`max_strength` must be at least {self.strength}, where the search begins, but got "
                f"{self.max_strength}."
            )

    @property
    def finds_region(self) -> bool:
        """Whether a first edit finds where the second may change the image."""
        return isinstance(self.mask, str) and self.mask == "auto"

    def to_dict(self) -> dict[str, Any]:
        """The options that are set, as plain values for JSON; `mask` is `"given"` where it is no word."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        values["mask"] = self.mask if isinstance(self.mask, str) else "given"
        return {name: value for name, value in values.items() if value is not None}

    def _at_a_strength(self, given: Mapping[str, Any], scheduler: Any) -> CounterfactualSettings:
        """With `start_snr` told as a strength."""
        if self.start_snr is None:
            return self
        if "strength" in given:
            raise ValueError("`strength` and `start_snr` both choose the noise level: give one of them.")
        return replace(self, strength=strength_of_snr(self.start_snr, scheduler), start_snr=None)

    def _completed(self, given: Mapping[str, Any], scheduler: Any) -> CounterfactualSettings:
        """With every option that depends on others settled, and checked."""
        steps = self.num_inference_steps if self.num_inversion_steps is None else self.num_inversion_steps
        has_paths = self.start == "noised_paths"
        eta = float(has_paths) if self.eta is None else self.eta
        settings = replace(
            self,
            num_inversion_steps=steps if self.start == "inversion" else 0,
            eta=eta,
            solver_order=1 if eta > 0 or has_paths else self.solver_order,
        )
        settings.check(scheduler)
        is_ddim = isinstance(scheduler, DDIMScheduler)
        needs_paths = {"`start='noised_paths'`": has_paths}
        needs = {
            "quality": needs_paths,
            "num_noises": needs_paths,
            "views": needs_paths,
            "follow_inversion": {
                "`start='inversion'`": self.start == "inversion",
                "a DDIMScheduler": is_ddim,
                "`num_inversion_steps` equal to `num_inference_steps`": steps == self.num_inference_steps,
            },
            "fade_guidance": {
                "a DDIMScheduler and `eta=0`, whose steps are known in advance": is_ddim and eta == 0,
                "`start='inversion'` or `start='noise'`": not has_paths,
            },
        }
        impossible: dict[str, Any] = {}
        for name, conditions in needs.items():
            missing = [need for need, is_met in conditions.items() if not is_met]
            if missing and given.get(name):
                raise ValueError(f"`{name}` needs {' and '.join(missing)}.")
            if missing:
                impossible[name] = False if isinstance(getattr(self, name), bool) else None
        return replace(settings, **impossible)


def timestep_of(strength: float, scheduler: Any) -> int:
    """The noise level of a strength, as a timestep in [1, num_train_timesteps)."""
    num_train_timesteps = scheduler.config.num_train_timesteps
    return min(max(round(strength * num_train_timesteps), 1), num_train_timesteps - 1)


def strength_of_snr(start_snr: float, scheduler: Any) -> float:
    """The strength whose noise level has this signal-to-noise ratio, abar_t / (1 - abar_t).

    Latents have unit variance after the autoencoder's `scaling_factor`, so that the ratio, unlike a timestep, means
    the same for other noise schedules.

    Raises:
        ValueError: if it is not above 0 or lies outside the schedule.
    """
    alphas = scheduler.alphas_cumprod.double().cpu()
    ratios = alphas / (1 - alphas)
    check_number("start_snr", start_snr)
    if not ratios[-1] <= start_snr <= ratios[1] or start_snr == 0:
        raise ValueError(
            f"`start_snr` must lie in [{float(ratios[-1]):.3g}, {float(ratios[1]):.3g}], what this noise schedule "
            f"offers, but got {start_snr}."
        )
    timestep = int((ratios.log() - math.log(start_snr)).abs().argmin())
    return timestep / scheduler.config.num_train_timesteps


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    """What is not `None`, with numbers of Python instead of numpy's and torch's."""
    return {
        name: value if name == "mask" else plain_scale(value) for name, value in values.items() if value is not None
    }


def _checked(settings: CounterfactualSettings) -> CounterfactualSettings:
    """The settings, if each option by itself holds what its type says."""
    check_options(settings)
    values_of_scale(settings.guidance_scale)
    if settings.stop_probability is not None:
        values_of_scale(settings.stop_probability, "stop_probability")
    return settings


# ---- mediffusion_diffusers/pipelines/counterfactual/question.py


@dataclass(frozen=True)
class Question:
    """The counterfactuals to make, one per row; several of them may belong to one image.

    Args:
        image_index: image of each row, shape `(rows,)`, on the CPU.
        target: what is wanted of each row.
        scales: guidance scale of each row, shape `(rows,)`, on the CPU, so that no step waits for a device.
        region: where rows may change, shape `(rows or 1, 1, *latent_size)` in [0, 1]; None for everywhere.
    """

    image_index: torch.Tensor
    target: GuidanceTarget
    scales: torch.Tensor
    region: torch.Tensor | None = None

    @classmethod
    def of(
        cls,
        num_images: int,
        towards: Labels | Sequence[Labels] | None,
        away: Labels | Sequence[Labels] | None,
        settings: CounterfactualSettings,
        label_names: Sequence[str],
        problem_type: str,
    ) -> Question:
        """The rows that labels, scales and images ask for together.

        Args:
            num_images: images given.
            towards: labels to add, as for the pipeline.
            away: labels to remove.
            settings: resolved ones.
            label_names: of the classifier that guides.
            problem_type: of the classifier that guides.

        Raises:
            ValueError: if their numbers do not fit together, a label is unknown, or a direction has no scale.
        """
        scale = settings.guidance_scale
        num_rows = count_rows(
            num_images,
            towards=count_label_rows(towards),
            away=count_label_rows(away),
            guidance_scale=len(scale) if isinstance(scale, (list, tuple)) else None,
        )
        target = build_target(towards, away, num_rows, label_names, problem_type, settings.hold)
        scales = torch.tensor(scales_of_rows(scale, target.direction), dtype=torch.float64)
        return cls(torch.arange(num_images).repeat_interleave(num_rows // num_images), target, scales)

    def __len__(self) -> int:
        return len(self.image_index)

    @property
    def guidance_scale(self) -> float | torch.Tensor:
        """One number if it holds for all rows, else one per row."""
        return float(self.scales[0]) if len(self.scales.unique()) == 1 else self.scales

    def select(self, rows: torch.Tensor) -> Question:
        """Some of the rows; `rows` is on the CPU."""
        region = self.region if self.region is None or len(self.region) == 1 else self.region[rows]
        return Question(self.image_index[rows], self.target.select(rows), self.scales[rows], region)

    def repeat(self, num_times: int) -> Question:
        """All rows, so many times one after another, without a region."""
        rows = torch.arange(len(self)).repeat(num_times)
        return Question(self.image_index[rows], self.target.select(rows), self.scales[rows])

    def at_scales(self, scales: torch.Tensor) -> Question:
        """The same at other scales, shape `(rows,)`."""
        return replace(self, scales=scales)

    def within(self, region: Any) -> Question:
        """The same where only a region may change."""
        return replace(self, region=region)

    def to(self, latents: torch.Tensor) -> Question:
        """With the tensors that every step needs beside these latents; index and scales stay."""
        target = self.target.to(latents.device)
        return replace(self, target=target, region=None if self.region is None else self.region.to(latents))


def count_rows(num_images: int, **per_row: int | None) -> int:
    """Number of counterfactuals of a call: of one image, or of each, there may be several.

    Args:
        num_images: images given.
        per_row: by argument, how many entries it has, or None where it holds for all.

    Returns:
        The number of rows; image i has the rows `i * rows / num_images` and following.

    Raises:
        ValueError: if the numbers do not fit together.
    """
    given = {name: count for name, count in per_row.items() if count is not None}
    num_rows = max([num_images, *given.values()])
    for name, count in given.items():
        if count != num_rows or num_rows % num_images:
            raise ValueError(
                f"`{name}` as a list of lists must hold one list of labels for each of the {num_images} images (or "
                f"the same number of them for every image), but it holds {count} items."
                if name != "guidance_scale"
                else f"`guidance_scale` as a list must hold one scale per counterfactual, {num_rows}, or the same "
                f"number of them for each of the {num_images} images, but it holds {count}."
            )
    return num_rows


# ---- mediffusion_diffusers/pipelines/counterfactual/start.py


@dataclass(frozen=True)
class Start:
    """Where the way back begins.

    Args:
        latents: one per image, at the noise level.
        strength: the noise level as a share of the schedule.
        timestep: the same as a timestep.
        path_latents: the latents at each grid point, clean ones first; empty without a path. Noised paths have a first
            dimension more, the noises, at all points but the clean one.
        path_epsilons: the noise predicted at each of them but the last; noised paths have none for the clean one.
    """

    latents: torch.Tensor
    strength: float
    timestep: int
    path_latents: tuple[torch.Tensor, ...] = ()
    path_epsilons: tuple[torch.Tensor, ...] = ()


class Inversion:
    """Climb deterministically from clean latents to a noise level, and remember the path.

    Args:
        unet: the joint model.
        scheduler: of the pipeline.
        settings: resolved ones.
        latents: clean, one per image.
    """

    def __init__(self, unet: Any, scheduler: Any, settings: CounterfactualSettings, latents: torch.Tensor):
        self.unet, self.scheduler, self.settings, self.latents = unet, scheduler, settings, latents

    def begin(self, images: torch.Tensor, strength: float, shown: Callable[[Any], Iterable[Any]]) -> Start:
        """Take some of the images there.

        Args:
            images: their indices, on the CPU.
            strength: share of the noise schedule.
            shown: wraps the timesteps into a progress bar.
        """
        latents, timestep = self.latents[images], timestep_of(strength, self.scheduler)
        scheduler = MultistepDDIMScheduler.from_config(self.scheduler.config)
        num_steps, order = self.settings.num_inversion_steps, self.settings.solver_order
        assert num_steps is not None  # resolved
        scheduler.set_grid(num_steps, timestep, inverse=True, solver_order=order)
        path_latents, path_epsilons = [latents], []
        for t in shown(scheduler.timesteps):
            model_output = self.unet(latents, t, return_logits=False).sample
            alpha = scheduler.alphas_cumprod[t]
            path_epsilons.append(predict_epsilon(model_output, latents, alpha, scheduler.config.prediction_type))
            latents = scheduler.step(model_output, t, latents).prev_sample
            path_latents.append(latents)
        if not self.settings.follow_inversion:
            return Start(latents, strength, timestep)
        return Start(latents, strength, timestep, tuple(path_latents), tuple(path_epsilons))


class AddedNoise:
    """Jump to a noise level with random noise, as the paper does.

    Args:
        scheduler: of the pipeline.
        latents: clean, one per image.
        noise: of the same shape.
    """

    def __init__(self, scheduler: Any, latents: torch.Tensor, noise: torch.Tensor):
        self.scheduler, self.latents, self.noise = scheduler, latents, noise.to(latents)

    def begin(self, images: torch.Tensor, strength: float, shown: Callable[[Any], Iterable[Any]]) -> Start:
        """Take some of the images there; as for `Inversion`."""
        timestep = timestep_of(strength, self.scheduler)
        level = torch.full((len(images),), timestep, device=self.latents.device)
        # The forward process is the same for all schedulers; DPM-Solver's own method needs its timesteps to be set.
        scheduler = DDPMScheduler.from_config(self.scheduler.config)
        return Start(scheduler.add_noise(self.latents[images], self.noise[images], level), strength, timestep)


class Way(Protocol):
    """To a noise level: `Inversion`, `AddedNoise` or `NoisedPaths`."""

    def begin(self, images: torch.Tensor, strength: float, shown: Callable[[Any], Iterable[Any]]) -> Start:
        """Take some of the images there; as for `Inversion`."""


# ---- mediffusion_diffusers/pipelines/counterfactual/editor.py

# Called after each step with its number, its timestep, the edited and the null latents; returns both.
OnStep = Callable[[int, int, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Watch:
    """How an edit is watched from outside.

    Args:
        state: of the call.
        shown: wraps timesteps into a progress bar.
        on_step: the user's callback, or None.
    """

    state: CallState
    shown: Callable[[Any], Iterable[Any]]
    on_step: OnStep | None = None

    def silent(self) -> Watch:
        """For a search, which shows one bar for itself and calls back for none of its trials."""
        return Watch(self.state, iter)

    def after(
        self, step: int, t: torch.Tensor, latents: torch.Tensor, null_latents: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Both latents as the callback leaves them."""
        return (latents, null_latents) if self.on_step is None else self.on_step(step, int(t), latents, null_latents)


@dataclass(frozen=True)
class Edit:
    """Edited latents, and how each came about.

    Args:
        latents: of the counterfactuals, shape `(rows, channels, height, width)`.
        null_latents: of the null edits, which several counterfactuals may share.
        null_index: null edit of each row, shape `(rows,)`, on the CPU.
        guidance_scales: scale of each row, shape `(rows,)`.
        strengths: strength of each row, shape `(rows,)`.
        reached: whether a search reached its goal, bool, shape `(rows,)`; None without a search.
        region: where rows could change, shape `(rows or 1, 1, *latent_size)` in [0, 1]; None for everywhere.
        agreement: of several noises on the change of each position, shape `(rows, 1, *latent_size)`; None without.
    """

    latents: torch.Tensor
    null_latents: torch.Tensor
    null_index: torch.Tensor
    guidance_scales: torch.Tensor
    strengths: torch.Tensor
    reached: torch.Tensor | None = None
    region: torch.Tensor | None = None
    agreement: torch.Tensor | None = None


class Editor:
    """What both ways back share: the models, the steps, and one guided evaluation.

    Args:
        unet: the joint model.
        scheduler: of the pipeline.
        settings: resolved ones.
        classifier: of clean latents, for `guidance_mode="external"`.
    """

    def __init__(
        self,
        unet: Any,
        scheduler: Any,
        settings: CounterfactualSettings,
        classifier: LatentClassifier | None = None,
    ):
        self.unet, self.scheduler, self.settings, self.classifier = unet, scheduler, settings, classifier
        self.prediction_type = scheduler.config.prediction_type
        self.alphas_cumprod = scheduler.alphas_cumprod.cpu()  # no step waits for a device

    def edit(self, start: Start, question: Question, generator: Generators, watch: Watch) -> Edit:
        """Denoise the rows under guidance, and the null edit of each image from the same start without.

        Args:
            start: where the way back begins, for each image.
            question: the rows.
            generator: of step noise, where the scheduler adds some.
            watch: of the call.
        """
        watch.state.guidance_scale = question.guidance_scale
        latents, null_latents = self._denoise(start, question.to(start.latents), generator, watch)
        return self._edit_of(start, question, latents, null_latents)

    def _edit_of(self, start: Start, question: Question, latents: torch.Tensor, null_latents: torch.Tensor) -> Edit:
        """Edited latents with what is known of each row."""
        strengths = torch.full((len(question),), float(start.strength))
        scales, region = question.scales.float(), question.region
        return Edit(latents, null_latents, question.image_index, scales, strengths, region=region)

    def timesteps(self, start: Start) -> list[int]:
        """Of the guided evaluations, noisiest first."""
        return self._descent(start).timesteps.tolist()

    def classify(self, latents: torch.Tensor) -> torch.Tensor:
        """Logits of clean latents, of the classifier that guides; differentiable, shape `(rows, num_labels)`."""
        if self.classifier is not None:
            return self.classifier(latents)
        return self.unet(latents, 0, return_sample=False).logits

    def _denoise(
        self, start: Start, question: Question, generator: Generators, watch: Watch
    ) -> tuple[torch.Tensor, torch.Tensor]:
        raise NotImplementedError

    def _descent(self, start: Start) -> Any:
        """A fresh scheduler for the way down: DDIM on our grid, any other at chosen timesteps."""
        num_steps = self.settings.num_inference_steps
        if isinstance(self.scheduler, DDIMScheduler):
            scheduler = MultistepDDIMScheduler.from_config(self.scheduler.config)
            scheduler.set_grid(num_steps, start.timestep, solver_order=self.settings.solver_order)
        else:
            scheduler = type(self.scheduler).from_config(self.scheduler.config)
            scheduler.set_timesteps(timesteps=time_grid(num_steps, start.timestep)[:0:-1].tolist())
        return scheduler

    def _predict(self, latents: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """The model's unguided prediction."""
        return self.unet(latents, t, return_logits=False).sample

    def _predict_guided(
        self,
        latents: torch.Tensor,
        t: torch.Tensor,
        question: Question,
        guidance_scale: Any,
        null_latents: torch.Tensor,
        null_output: torch.Tensor | None,
        null_type: str,
        scheduler: Any = None,
    ) -> GuidedPrediction:
        """The guided and the unguided prediction for each row.

        Args:
            latents: z_t of each row.
            t: a scalar.
            question: the rows.
            guidance_scale: of this step.
            null_latents: the null edit's z_t of each row, for labels to hold.
            null_output: the model's unguided prediction there, or None where it is not known.
            null_type: `prediction_type` of that prediction.
            scheduler: at this step, for guidance that fades.
        """
        alpha, target = self.alphas_cumprod[t], question.target
        place = (self.settings.guidance_mode, self.classifier)
        if target.hold > 0:
            if null_output is None:
                null_output, null_type = self._predict(null_latents, t), self.prediction_type
            target = hold_at(target, self.unet, null_latents, t, null_output, alpha, null_type, *place)
        predicted = predict_guided(self.unet, latents, t, target, guidance_scale, alpha, self.prediction_type, *place)
        if not self.settings.fade_guidance:
            return predicted
        step = (alpha, scheduler.noise_weight(), self.prediction_type)
        return replace(predicted, model_output=fade(predicted, latents, target, guidance_scale, *step))


class FollowPath(Editor):
    r"""Integrate only the deviation d = z - z* from the inversion's path z*.

    DDIM's step is linear in (z, eps), so that d takes the same step with `eps'(z* + d) - eps(z*)`. The path needs no
    evaluation but those of the inversion, and whatever the inversion loses it does not lose twice: without guidance d
    stays 0, and the null edit is the encoded image itself.
    """

    def _descent(self, start: Start) -> Any:
        scheduler = MultistepDDIMScheduler.from_config({**self.scheduler.config, "prediction_type": "epsilon"})
        order = self.settings.solver_order
        scheduler.set_grid(self.settings.num_inference_steps, start.timestep, solver_order=order)
        return scheduler

    def _denoise(
        self, start: Start, question: Question, generator: Generators, watch: Watch
    ) -> tuple[torch.Tensor, torch.Tensor]:
        index = question.image_index.to(start.latents.device)
        scheduler = self._descent(start)
        deviation = torch.zeros_like(start.latents[index])
        is_on_path = True  # until a step is guided, or a callback has changed the latents
        for step, t in watch.state.steps(scheduler.timesteps, watch.shown):
            place = len(scheduler.timesteps) - step
            alpha = scheduler.alphas_cumprod[t]
            scale = watch.state.guidance_scale
            is_on_path = is_on_path and is_unguided(scale)
            if alpha == 0:  # z_t is noise alone, whatever the edit: there is nothing to deviate from yet
                scheduler.skip_step()
            else:
                change = torch.zeros_like(deviation)
                if not is_on_path:
                    on_path = start.path_latents[place][index]
                    latents = on_path + deviation
                    epsilon = start.path_epsilons[place][index] if step else None
                    null = (on_path, epsilon, "epsilon")
                    predicted = self._predict_guided(latents, t, question, scale, *null, scheduler)
                    change = predict_epsilon(predicted.model_output, latents, alpha, self.prediction_type)
                    if epsilon is None:  # the top of the path, where z = z*
                        epsilon = predict_epsilon(predicted.unguided, latents, alpha, self.prediction_type)
                    change = change - epsilon
                deviation = scheduler.step(change, t, deviation).prev_sample
            if question.region is not None:
                deviation = deviation * question.region
            if watch.on_step is not None:
                null_latents = start.path_latents[place - 1]
                latents = null_latents[index] + deviation
                changed, _ = watch.after(step, t, latents, null_latents)
                if changed is not latents:
                    deviation, is_on_path = changed - null_latents[index], False
        null_latents = start.path_latents[0]
        return null_latents[index] + deviation, null_latents


class Sample(Editor):
    """Denoise the edited rows and the null edits, each by the scheduler's own steps."""

    def _denoise(
        self, start: Start, question: Question, generator: Generators, watch: Watch
    ) -> tuple[torch.Tensor, torch.Tensor]:
        index = question.image_index.to(start.latents.device)
        null_latents, latents = start.latents, start.latents[index]
        scheduler, null_scheduler = self._descent(start), self._descent(start)
        # The null edit, and every row of an image, get the same step noise.
        null_generator = clone_generator(generator)
        images = question.image_index.tolist()
        if isinstance(generator, list) and images != list(range(len(generator))):
            generator = [clone_generator(generator[image]) for image in images]  # type: ignore[misc]
        eta = self.settings.eta
        step_kwargs = scheduler_step_kwargs(scheduler, eta=eta, generator=generator)
        null_step_kwargs = scheduler_step_kwargs(scheduler, eta=eta, generator=null_generator)
        is_on_null = True  # until a step is guided, or a callback has changed the latents
        for step, t in watch.state.steps(scheduler.timesteps, watch.shown):
            null_output, scale = self._predict(null_latents, t), watch.state.guidance_scale
            is_on_null = is_on_null and is_unguided(scale)
            if is_on_null:
                model_output = null_output[index]
            elif is_unguided(scale):
                model_output = self._predict(latents, t)
            else:
                null = (null_latents[index], null_output[index], self.prediction_type)
                model_output = self._predict_guided(latents, t, question, scale, *null, scheduler).model_output
            latents = scheduler.step(model_output, t, latents, **step_kwargs).prev_sample
            null_latents = null_scheduler.step(null_output, t, null_latents, **null_step_kwargs).prev_sample
            if question.region is not None:
                latents = question.region * latents + (1 - question.region) * null_latents[index]
            before = latents, null_latents
            latents, null_latents = watch.after(step, t, *before)
            is_on_null = is_on_null and latents is before[0] and null_latents is before[1]
        return latents, null_latents


def is_unguided(guidance_scale: Any) -> bool:
    """Whether all scales are 0."""
    return bool((torch.as_tensor(guidance_scale) == 0).all())


class WithinItsRegion:
    """An editor that edits twice: everywhere, to find the region that the second edit is confined to.

    Args:
        editor: makes both edits.
    """

    def __init__(self, editor: Any):
        self.editor = editor

    def edit(self, start: Start, question: Question, generator: Generators, watch: Watch) -> Edit:
        """As for an `Editor`; both edits get the same step noise."""
        found = self.editor.edit(start, question, clone_generator(generator), watch)
        region = region_of_change(found.latents - found.null_latents[found.null_index])
        return self.editor.edit(start, question.within(region), generator, watch)


# ---- mediffusion_diffusers/pipelines/counterfactual/display.py


@dataclass(frozen=True)
class Shown:
    """Pictures as the user gets them, and what they are classified by.

    Args:
        pictures: shape `(num, channels, height, width)` in [-1, 1]; latents, where latents are asked for.
        latents: of these pictures, encoded anew.
    """

    pictures: torch.Tensor
    latents: torch.Tensor


class Display:
    """Shows latents as pictures, with the image's own detail or without.

    Args:
        pipe: the pipeline.
        pixels: of each image, in [-1, 1].
        clean_latents: of each image.
        settings: resolved ones.
        output_type: of the call. Where latents are asked for they are their own picture, and `detail` is unused.
    """

    def __init__(
        self,
        pipe: MediffusionPipeline,
        pixels: torch.Tensor,
        clean_latents: torch.Tensor,
        settings: CounterfactualSettings,
        output_type: str,
    ):
        self.pipe, self.is_latent = pipe, output_type == "latent"
        self.keeps_detail = settings.detail == "keep" and not self.is_latent
        self.is_confined = not isinstance(settings.mask, str)
        self.original = Shown(clean_latents if self.is_latent else pixels.to(clean_latents.device), clean_latents)
        self._last_null: tuple[torch.Tensor, torch.Tensor] | None = None

    def edited(self, edit: Edit, image_index: torch.Tensor) -> Shown:
        """The counterfactuals.

        With detail kept they are `clamp(x + D(z') - D(z_null))`, D the decoder: what both decodings lose, and what the
        null edit changes, cancels out. Where the user has given a mask the change ends at its border, which a decoder
        does not respect.

        Args:
            edit: their latents, and those of the null edits.
            image_index: image of each row, shape `(rows,)`, on the CPU.
        """
        if not self.keeps_detail:
            return self._as_decoded(edit.latents)
        null_latents = edit.null_latents[edit.null_index]
        change = self.pipe.decode_latents(edit.latents).float() - self.null_pictures(edit)[edit.null_index].float()
        # A batch of another size is rounded otherwise; what was not edited has not changed at all.
        is_edited = (edit.latents != null_latents).flatten(1).any(1).view(-1, 1, 1, 1)
        change = torch.where(is_edited, change, 0.0)
        if edit.region is not None and self.is_confined:
            change = change * F.interpolate((edit.region > 0).to(change), self.pipe.image_size, mode="nearest")
        pictures = (self.original.pictures[image_index].float() + change).clamp(-1.0, 1.0)
        return Shown(pictures, self.pipe.encode_pixels(pictures))

    def null(self, edit: Edit, image_index: torch.Tensor) -> tuple[Shown, torch.Tensor]:
        """The null edits, and which of them belongs to each row; with detail kept, the images themselves.

        Args:
            edit: as for `edited`.
            image_index: as for `edited`.
        """
        return (self.original, image_index) if self.keeps_detail else (self._null_as_decoded(edit), edit.null_index)

    def null_pictures(self, edit: Edit) -> torch.Tensor:
        """The null edits as they are decoded; the trials of a search share them."""
        if self._last_null is None or self._last_null[0] is not edit.null_latents:
            is_latent = self.is_latent
            decoded = edit.null_latents if is_latent else self.pipe.decode_latents(edit.null_latents)
            self._last_null = (edit.null_latents, decoded)
        return self._last_null[1]

    def _null_as_decoded(self, edit: Edit) -> Shown:
        pictures = self.null_pictures(edit)
        return Shown(pictures, pictures if self.is_latent else self.pipe.encode_pixels(pictures))

    def _as_decoded(self, latents: torch.Tensor) -> Shown:
        if self.is_latent:
            return Shown(latents, latents)
        pictures = self.pipe.decode_latents(latents)
        return Shown(pictures, self.pipe.encode_pixels(pictures))


# ---- mediffusion_diffusers/pipelines/counterfactual/judge.py


class OwnJudge:
    """The model's own classifier.

    Args:
        pipe: the pipeline.
    """

    latent_classifier: LatentClassifier | None = None  # the U-Net's head needs none

    def __init__(self, pipe: MediffusionPipeline):
        self.pipe = pipe
        self.label_names: list[str] = pipe.label_names
        self.problem_type: str = pipe.unet.config.problem_type

    def logits(self, latents: torch.Tensor) -> torch.Tensor:
        """Of clean latents, differentiable, shape `(num, num_labels)`."""
        return self.pipe.classify_latents(latents)

    def probabilities(self, shown: Shown) -> torch.Tensor:
        """Of pictures, shape `(num, num_labels)`, float32."""
        return self.pipe.logits_to_probabilities(self.logits(shown.latents))


class ExternalJudge:
    """A classifier of pixels.

    Args:
        pipe: the pipeline.
        classifier: the classifier.
    """

    def __init__(self, pipe: MediffusionPipeline, classifier: ExternalClassifier):
        self.pipe, self.classifier = pipe, classifier
        self.label_names: list[str] = classifier.label_names
        self.problem_type: str = classifier.problem_type

    def latent_classifier(self, latents: torch.Tensor) -> torch.Tensor:
        """Logits for guidance, whose gradient must not end where pixels leave [-1, 1]."""
        return self.classifier(decode_latents(self.pipe.vae, latents))

    def logits(self, latents: torch.Tensor) -> torch.Tensor:
        """Of clean latents, as the user sees them decoded; differentiable."""
        return self.classifier(self.pipe.decode_latents(latents))

    def probabilities(self, shown: Shown) -> torch.Tensor:
        """Of pictures; softmax or sigmoid by the classifier's `problem_type`."""
        are_pictures = shown.pictures.shape[-2:] == self.pipe.image_size
        logits = (self.classifier(shown.pictures) if are_pictures else self.logits(shown.latents)).float()
        is_single = self.problem_type == "single_label_classification"
        return logits.softmax(-1) if is_single else logits.sigmoid()


Judge = OwnJudge | ExternalJudge


def as_external(classifier: Any) -> ExternalClassifier | None:
    """An image classifier of transformers as one that takes the autoencoder's pixels; None stays None.

    Raises:
        ValueError: for what is no image classifier.
    """
    is_ready = classifier is None or isinstance(classifier, ExternalClassifier)
    return classifier if is_ready else ExternalClassifier(classifier)


# ---- mediffusion_diffusers/pipelines/counterfactual/controls.py

_NOISE_SEED = 0  # of the random-noise control: the same field for every image


def make_controls(
    pipe: MediffusionPipeline,
    judge: Judge,
    question: Question,
    original: torch.Tensor,
    edited: torch.Tensor,
    latents: torch.Tensor,
    change: torch.Tensor,
    region: torch.Tensor | None,
    output_type: str,
) -> dict[str, Any]:
    """Fields of the output: the plain gradient and noise at each counterfactual's size.

    The gradient climbs in latent space, which costs a few encoder passes of the U-Net and one decoding.

    Args:
        pipe: the pipeline.
        judge: whose log-probability the gradient climbs.
        question: the rows.
        original: pictures of the rows in [-1, 1].
        edited: their counterfactuals.
        latents: of the originals.
        change: of the latents, that the counterfactuals show.
        region: where they could change, or None.
        output_type: of the call.
    """
    question = question.to(latents)
    target = question.target
    originals, counterfactuals = denormalize(original), denormalize(edited)
    l1 = (counterfactuals - originals).abs().flatten(1).mean(1)
    size = change.float().flatten(1).norm(dim=1)

    def log_probability(changed: torch.Tensor) -> torch.Tensor:
        return target.clone().log_prob(judge.logits(changed).float())

    mask = 1.0 if region is None else region.to(latents)
    pushed = ascend_log_probability(latents, size, log_probability, mask=mask)
    # What the autoencoder alone changes is no part of the gradient.
    direction = pipe.decode_latents(pushed) - pipe.decode_latents(latents)
    seeded = torch.Generator().manual_seed(_NOISE_SEED)
    noise = torch.randn(originals[:1].shape, generator=seeded, dtype=torch.float32).to(originals)
    pictures = {
        "counterfactual": counterfactuals,
        "plain_gradient": change_by(originals, direction.float(), l1),
        "random_noise": change_by(originals, noise.expand_as(originals), l1),
    }
    made: dict[str, Any] = {"l1": scores_to_output(l1, output_type)}
    shares = []
    for name, images in pictures.items():
        shares.append(torch.from_numpy(high_frequency_share((images - originals).cpu().numpy())))
        if name != "counterfactual":
            classified = pipe.classify_latents(pipe.encode_pixels(normalize(images)))
            made[f"{name}_images"] = pipe.image_processor.postprocess(normalize(images), output_type)
            made[f"{name}_probabilities"] = scores_to_output(pipe.logits_to_probabilities(classified), output_type)
    made["high_frequency_shares"] = scores_to_output(torch.stack(shares, dim=1), output_type)
    return made


# ---- mediffusion_diffusers/pipelines/counterfactual/assemble.py


def assemble(
    pipe: MediffusionPipeline,
    display: Display,
    question: Question,
    edit: Edit,
    settings: CounterfactualSettings,
    judge: Judge,
    outside: ExternalJudge | None,
    output_type: str,
    with_controls: bool,
    timesteps: list[int],
    num_evaluations: int,
) -> MediffusionCounterfactualPipelineOutput:
    """Decode, classify and compare.

    Args:
        pipe: the pipeline.
        display: how latents are shown.
        question: the counterfactuals.
        edit: their latents.
        settings: of the call.
        judge: who guided.
        outside: another classifier whose probabilities are reported.
        output_type: of the call.
        with_controls: whether to make the controls.
        timesteps: of the guided evaluations.
        num_evaluations: of latents by the U-Net, for the edits.

    Raises:
        ValueError: if guidance has driven the latents beyond all numbers.
    """
    clean, edited = display.original, display.edited(edit, question.image_index)
    null, null_rows = display.null(edit, question.image_index)
    check_results((edit.null_latents, display.null_pictures(edit)), 0.0)
    check_results((edit.latents, edited.pictures), edit.guidance_scales, settings.hold)
    every_row = torch.arange(len(question))
    stages = {"before": (clean, question.image_index), "after": (edited, every_row), "null": (null, null_rows)}

    fields: dict[str, Any] = {}
    for prefix, asked in (("", OwnJudge(pipe)), ("external_", outside)):
        if asked is None:
            continue
        for stage, (shown, rows) in stages.items():
            is_image = stage == "null" and shown is clean  # about which it has been asked
            known = fields.get(f"{prefix}probabilities_before") if is_image else None
            fields[f"{prefix}probabilities_{stage}"] = asked.probabilities(shown)[rows] if known is None else known
    fields = {name: scores_to_output(scores, output_type) for name, scores in fields.items()}
    original, counterfactual, unguided = (shown.pictures[rows].float() for shown, rows in stages.values())
    if with_controls and output_type != "latent":
        latents = clean.latents[question.image_index]
        base = edit.null_latents[edit.null_index] if display.keeps_detail else latents
        pictures = (original, counterfactual, latents, edit.latents - base)
        fields |= make_controls(pipe, judge, question, *pictures, edit.region, output_type)
    return MediffusionCounterfactualPipelineOutput(
        images=_to_images(pipe, counterfactual, output_type),
        null_images=_to_images(pipe, unguided, output_type),
        originals=_to_images(pipe, original, output_type),
        difference=_to_difference(counterfactual - original, output_type),
        null_difference=_to_difference(counterfactual - unguided, output_type),
        label_names=pipe.label_names,
        image_size=pipe.image_size,
        guidance_scales=scores_to_output(edit.guidance_scales, output_type),
        strengths=scores_to_output(edit.strengths, output_type),
        reached=None if edit.reached is None else edit.reached.numpy(),
        timesteps=timesteps,
        settings=settings.to_dict(),
        unet_evaluations=num_evaluations / len(question),
        region=_to_array(edit.region),
        agreement=_to_array(edit.agreement),
        external_label_names=None if outside is None else outside.label_names,
        **fields,
    )


def _to_images(pipe: MediffusionPipeline, pictures: torch.Tensor, output_type: str) -> Any:
    """Pictures in the asked-for type; latents pass unchanged."""
    return pictures if output_type == "latent" else pipe.image_processor.postprocess(pictures, output_type)


def _to_difference(difference: torch.Tensor, output_type: str) -> Any:
    """A signed difference in units of the intensity range (half of the model's range), or of latents."""
    if output_type == "latent":
        return difference
    difference = difference / 2
    return difference if output_type == "pt" else difference.cpu().permute(0, 2, 3, 1).numpy()


def _to_array(latents: torch.Tensor | None) -> np.ndarray | None:
    """A map on the latents' grid, float32."""
    return None if latents is None else latents.float().cpu().numpy()


# ---- mediffusion_diffusers/pipelines/counterfactual/noised_paths.py

# Positions of latents that go through the U-Net at once, if one noise of all rows is not more: 64 latents of 32x32.
_MAX_POSITIONS = 2**16


class NoisedPaths:
    """Noise clean latents afresh for every step, and predict the noise of each: the half that no guidance changes.

    All targets of an image share it, and all trials of a search.

    Args:
        unet: the joint model.
        scheduler: of the pipeline.
        settings: resolved ones.
        latents: clean, one per image.
        generator: one per image.
    """

    def __init__(
        self,
        unet: Any,
        scheduler: Any,
        settings: CounterfactualSettings,
        latents: torch.Tensor,
        generator: Sequence[torch.Generator],
    ):
        self.unet, self.scheduler, self.settings, self.latents = unet, scheduler, settings, latents
        self.generator, self.views = generator, Views(settings.views)

    def begin(self, images: torch.Tensor, strength: float, shown: Callable[[Any], Iterable[Any]]) -> Start:
        """The paths of some of the images; the first step's predictions are left to the guided evaluation.

        Args:
            images: their indices, on the CPU.
            strength: share of the noise schedule where paths begin.
            shown: wraps the timesteps into a progress bar.
        """
        clean, timestep = self.latents[images], timestep_of(strength, self.scheduler)
        scheduler = descent(self.scheduler, self.settings, timestep)
        path_latents, path_epsilons = [], []
        for noise, t in zip(self._noises(images), scheduler.timesteps, strict=True):
            alpha = scheduler.alphas_cumprod[t]
            path_latents.append((alpha.sqrt() * clean.float() + (1 - alpha).sqrt() * noise).to(clean.dtype))
        for step, t in shown(list(enumerate(scheduler.timesteps))[1:]):
            place = (scheduler.alphas_cumprod[t], scheduler.config.prediction_type)
            path_epsilons.append(self._epsilon(path_latents[step], step, t, *place))
        return Start(clean, strength, timestep, (clean, *path_latents[::-1]), tuple(path_epsilons[::-1]))

    def _epsilon(
        self, latents: torch.Tensor, step: int, t: torch.Tensor, alpha: torch.Tensor, prediction_type: str
    ) -> torch.Tensor:
        """The noise that the model sees in latents of shape `(noises, images, ...)`."""
        epsilons = []
        for noises in chunks(latents):
            seen = self.views.show(latents[noises], step, noises.start).flatten(0, 1)
            model_output = self.unet(seen, t, return_logits=False).sample
            epsilon = predict_epsilon(model_output, seen, alpha, prediction_type).unflatten(0, (-1, latents.shape[1]))
            epsilons.append(self.views.put_back(epsilon, step, noises.start))
        return torch.cat(epsilons)

    def _noises(self, images: torch.Tensor) -> torch.Tensor:
        """For each step, antithetic pairs: shape `(steps, noises, images, channels, height, width)`, float32.

        An image's noise depends on its generator alone, and is the same at every strength of a search.
        """
        num_noises, shape = self.settings.num_noises, self.latents.shape[1:]
        assert num_noises is not None  # resolved
        drawn = []
        for image in images.tolist():
            generator = clone_generator(self.generator[image])
            assert isinstance(generator, torch.Generator)
            size = (self.settings.num_inference_steps, (num_noises + 1) // 2, *shape)
            half = torch.randn(size, generator=generator, device=generator.device, dtype=torch.float32)
            drawn.append(torch.stack([half, -half], dim=2).flatten(1, 2)[:, :num_noises])
        return torch.stack(drawn, dim=2).to(self.latents.device)


class FollowNoisedPaths(Editor):
    """Integrate the mean deviation from the noised paths under guidance; takes what any `Editor` takes."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.views = Views(self.settings.views)

    def edit(self, start: Start, question: Question, generator: Generators, watch: Watch) -> Edit:
        """As for any editor; a region that is to be found is found in the edit itself.

        Args:
            start: of `NoisedPaths`.
            question: the rows.
            generator: not used, since the paths have been noised.
            watch: of the call. A callback's latents are the image's with the deviation so far.
        """
        watch.state.guidance_scale = question.guidance_scale
        question, null_latents = question.to(start.latents), start.latents
        each, deviation = self._deviations(start, question, watch)
        region, clean = question.region, null_latents[question.image_index]
        if self.settings.finds_region:
            evidence = attribute_change(self.classify, clean, deviation, question.target)
            region = region_of_evidence(evidence, in_one_place=adds_one_finding(question.target.direction))
            deviation = region * deviation
        latents = (clean.float() + deviation).to(clean.dtype)
        return replace(
            self._edit_of(start, question, latents, null_latents), region=region, agreement=agreement_of(each)
        )

    def _descent(self, start: Start) -> MultistepDDIMScheduler:
        return descent(self.scheduler, self.settings, start.timestep, prediction_type="epsilon")

    def _deviations(self, start: Start, question: Question, watch: Watch) -> tuple[torch.Tensor, torch.Tensor]:
        """What each noise says, shape `(noises, rows, channels, height, width)`, and their mean; float32."""
        index = question.image_index.to(start.latents.device)
        clean, scheduler = start.latents[index], self._descent(start)
        each = torch.zeros_like(start.path_latents[1][:, index], dtype=torch.float32)
        deviation = each[0]
        parts = [(noises, question.repeat(noises.stop - noises.start)) for noises in chunks(each)]
        has_moved = torch.zeros(len(question), dtype=torch.bool)  # by guidance or by a callback
        for step, t in watch.state.steps(scheduler.timesteps, watch.shown):
            has_moved |= torch.as_tensor(watch.state.guidance_scale) != 0
            if scheduler.alphas_cumprod[t] == 0 or not has_moved.any():
                scheduler.skip_step()  # z_t is noise alone, or the image's: there is nothing to deviate from yet
            else:
                scale = watch.state.guidance_scale
                changes = [
                    self._change(start, part, index, noises, deviation, step, t, scale) for noises, part in parts
                ]
                # Where nothing has been pushed, two evaluations of the same latents differ by rounding alone.
                change = torch.cat(changes) * has_moved.to(each, non_blocking=True).view(-1, 1, 1, 1)
                # The noise of Eq. 12 of DDIM is that of the path, so that none comes to the deviation.
                noise: dict[str, Any] = {"eta": self.settings.eta, "variance_noise": torch.zeros(())}
                each = scheduler.step(change, t, each, return_dict=False, **noise)[0]
                each = each if question.region is None else question.region * each
                deviation = each.mean(0)
            if watch.on_step is not None:
                latents = clean + deviation.to(clean.dtype)
                changed, _ = watch.after(step, t, latents, start.latents)
                if changed is not latents:
                    has_moved[:] = True
                    each = each + (changed.float() - clean.float() - deviation)
                    deviation = changed.float() - clean.float()
        return each, deviation

    def _change(
        self,
        start: Start,
        question: Question,
        index: torch.Tensor,
        noises: slice,
        deviation: torch.Tensor,
        step: int,
        t: torch.Tensor,
        guidance_scale: Any,
    ) -> torch.Tensor:
        """By how much guidance and the deviation change the predicted noise of some of the noises; float32."""
        alpha, place = self.alphas_cumprod[t], len(start.path_epsilons) - step
        path = start.path_latents[place + 1][noises][:, index]

        def seen(latents: torch.Tensor) -> torch.Tensor:
            return self.views.show(latents, step, noises.start).flatten(0, 1)

        latents = seen((path + deviation).to(path.dtype))
        epsilon = seen(start.path_epsilons[place][noises][:, index]) if step else None
        if isinstance(guidance_scale, torch.Tensor) and guidance_scale.ndim:
            guidance_scale = guidance_scale.repeat(len(path))
        predicted = self._predict_guided(latents, t, question, guidance_scale, seen(path), epsilon, "epsilon")
        if epsilon is None:  # the top of the paths, where d = 0
            epsilon = predict_epsilon(predicted.unguided, latents, alpha, self.prediction_type)
        guided = predict_epsilon(predicted.model_output, latents, alpha, self.prediction_type)
        change = (guided.float() - epsilon.float()).unflatten(0, path.shape[:2])
        return self.views.put_back(change, step, noises.start)


class Views:
    """How a noised copy is shown to the model: shifted by up to one latent position each way, or mirrored as well.

    A convolutional network with strides sees a shifted image with other eyes, so that what its answers, put back in
    place, have in common belongs to the image rather than to the grid.

    Args:
        kind: `"shifts"`, `"shifts_and_flips"` or `"none"`.
    """

    def __init__(self, kind: str | None):
        self.kind = kind

    def show(self, latents: torch.Tensor, step: int, first: int = 0) -> torch.Tensor:
        """Latents of consecutive noises as the model sees them.

        Args:
            latents: shape `(noises, images, channels, height, width)`.
            step: number of the step, on which views depend too.
            first: number of the first of the noises.
        """
        return torch.stack([self._show(each, first + step + place) for place, each in enumerate(latents)])

    def put_back(self, latents: torch.Tensor, step: int, first: int = 0) -> torch.Tensor:
        """Undo `show`, bit for bit; takes the same arguments."""
        return torch.stack([self._put_back(each, first + step + place) for place, each in enumerate(latents)])

    def _show(self, latents: torch.Tensor, number: int) -> torch.Tensor:
        shift, is_mirrored = self._view(number)
        shifted = latents.roll(shift, (-2, -1)) if any(shift) else latents
        return shifted.flip(-1) if is_mirrored else shifted

    def _put_back(self, latents: torch.Tensor, number: int) -> torch.Tensor:
        (down, right), is_mirrored = self._view(number)
        upright = latents.flip(-1) if is_mirrored else latents
        return upright.roll((-down, -right), (-2, -1)) if down or right else upright

    def _view(self, number: int) -> tuple[tuple[int, int], bool]:
        if self.kind == "none":
            return (0, 0), False
        right, down = number % 2, number // 2 % 2
        return (down, right), self.kind == "shifts_and_flips" and bool(number // 2 % 2)


def descent(scheduler: Any, settings: CounterfactualSettings, timestep: int, **config: Any) -> MultistepDDIMScheduler:
    """A fresh DDIM scheduler of first order for the way down, whatever scheduler the pipeline has.

    Args:
        scheduler: of the pipeline, of which the noise schedule is taken.
        settings: resolved ones.
        timestep: where paths begin.
        config: what replaces entries of the scheduler's config.
    """
    own = MultistepDDIMScheduler.from_config({**scheduler.config, **config})
    own.set_grid(settings.num_inference_steps, timestep, solver_order=1)
    return own


def chunks(latents: torch.Tensor) -> list[slice]:
    """Which noises go through the U-Net at once; latents have the shape `(noises, rows, channels, height, width)`."""
    num_noises, num_rows, _, height, width = latents.shape
    size = max(1, _MAX_POSITIONS // (num_rows * height * width))
    return [slice(first, min(first + size, num_noises)) for first in range(0, num_noises, size)]


def adds_one_finding(direction: torch.Tensor) -> torch.Tensor:
    """Whether all that is asked of a row is to add one finding.

    Args:
        direction: +1 towards, -1 away, 0 not targeted, shape `(rows, num_labels)`.

    Returns:
        Bool, shape `(rows,)`.
    """
    return ((direction > 0).sum(1) == 1) & ~(direction < 0).any(1)


def agreement_of(deviations: torch.Tensor) -> torch.Tensor:
    """How far the noises agree on the change of a position: the size of their mean over their mean size.

    Args:
        deviations: of each noise, shape `(noises, rows, channels, height, width)`.

    Returns:
        Root of the squares summed over channels, shape `(rows, 1, height, width)`, in [0, 1]: 1 where all noises make
        the same change, about `1 / sqrt(noises)` where they have nothing in common, 0 where nothing changed.
    """
    mean = deviations.mean(0).square().sum(1, keepdim=True)
    size = deviations.square().sum(2, keepdim=True).mean(0)
    return torch.where(size > 0, mean / size, 0.0).clamp(max=1.0).sqrt()


# ---- mediffusion_diffusers/pipelines/counterfactual/search.py


class ScaleSearch:
    """Find per row the smallest scale that reaches a goal: doubling or halving, then bisection on a log scale.

    Rows are independent of one another, and leave the search one by one. It assumes that a larger scale reaches
    whatever a smaller one does, which guidance obeys up to its artefacts; what is returned was reached in any case.

        search = ScaleSearch(torch.tensor([10.0, 30.0]), torch.tensor([320.0, 960.0]))
        while len(search.active):
            rows, scales = search.active, search.scales
            search.update(try_scales(rows, scales))

    Args:
        initial_scales: first scale of each row, above 0, shape `(num_rows,)`.
        max_scales: largest scale of each row, same shape.
        tolerance: the answer is at most so many times the smallest scale; above 1.
        range_below: a row that is reached at the first scale divided by this is done.
    """

    def __init__(
        self,
        initial_scales: torch.Tensor,
        max_scales: torch.Tensor,
        tolerance: float = 1.25,
        range_below: float = 64.0,
    ):
        self.max_scales, self.min_scales, self.tolerance = max_scales, initial_scales / range_below, tolerance
        self.low = torch.zeros_like(max_scales)  # largest scale that failed
        self.high = torch.full_like(max_scales, torch.inf)  # smallest that reached
        self._next = torch.minimum(initial_scales, max_scales)

    @property
    def reached(self) -> torch.Tensor:
        """Which rows have reached their goal so far, shape `(num_rows,)`."""
        return self.high.isfinite()

    @property
    def active(self) -> torch.Tensor:
        """Indices of the rows that are still being searched."""
        is_close = self.high <= self.tolerance * self.low
        is_done = is_close | (self.high <= self.min_scales) | (self.low >= self.max_scales)
        return torch.nonzero(~is_done).flatten()

    @property
    def num_solved(self) -> int:
        """How many rows reached their goal and are no longer searched."""
        is_solved = self.reached.clone()
        is_solved[self.active] = False
        return int(is_solved.sum())

    @property
    def scales(self) -> torch.Tensor:
        """The next scale of each active row."""
        return self._next[self.active]

    def accept_without(self, reached: torch.Tensor) -> None:
        """Take rows out of the search that reached their goal without guidance.

        Args:
            reached: bool, shape `(num_rows,)`.
        """
        self.high[reached] = 0.0

    def update(self, reached: torch.Tensor) -> None:
        """Take in whether each active row reached its goal at its scale.

        Args:
            reached: bool, shape of `active`.
        """
        rows, tried = self.active, self.scales
        self.high[rows] = torch.where(reached, tried, self.high[rows])
        self.low[rows] = torch.where(reached, self.low[rows], tried)
        low, high = self.low, self.high
        doubled = torch.minimum(2 * low, self.max_scales)
        halved = torch.maximum(high / 2, self.min_scales)
        self._next = torch.where(high.isinf(), doubled, torch.where(low == 0, halved, (low * high).sqrt()))


class SmallestEdit:
    """An editor that searches scales at each strength in turn; rows that reached their goal leave.

    Only the search ends early, never the denoising: stopped at the crossing, an edit is adversarial.

    Args:
        editor: makes each trial.
        way: to higher noise levels.
        settings: with `target_probability`.
        judge: probabilities of an edit as the user gets to see it, shape `(rows, num_labels)`; takes the image of each
            row too.
        progress_bar: of the pipeline.
    """

    def __init__(
        self,
        editor: Editor,
        way: Way,
        settings: CounterfactualSettings,
        judge: Callable[[Edit, torch.Tensor], torch.Tensor],
        progress_bar: Callable[..., Any],
    ):
        assert settings.target_probability is not None
        self.editor, self.way, self.settings, self.judge = editor, way, settings, judge
        self.goal, self.progress_bar = settings.target_probability, progress_bar

    def edit(self, start: Start, question: Question, generator: Generators, watch: Watch) -> Edit:
        """As for an `Editor`; the question's scales are where the search begins.

        Args:
            start: at the first strength, for all images.
            question: the rows.
            generator: a list of one per image, for step noise, or None.
            watch: of the call; trials are neither shown nor called back for.
        """
        found = FoundEdits(len(question))
        largest = self.settings.max_guidance_scale
        with self.progress_bar(total=len(question)) as bar:
            for strength in strength_ladder(self.settings.strength, self.settings.max_strength):
                pending = torch.nonzero(~found.reached).flatten()
                if not len(pending):
                    break
                # 1. Only the images of unsolved rows go to the next noise level
                images, local = question.image_index[pending].unique(return_inverse=True)
                if strength > start.strength:
                    start = self.way.begin(images, strength, iter)
                part = replace(question.select(pending), image_index=local)
                own = [generator[image] for image in images.tolist()] if isinstance(generator, list) else None

                # 2. The null edit may do already; then scales, until no row is left
                initial = part.scales.float()
                search = ScaleSearch(initial, 32 * initial if largest is None else torch.full_like(initial, largest))
                rows, scales = torch.arange(len(part)), torch.zeros(len(part))
                while len(rows):
                    asked = part.select(rows).at_scales(scales)
                    trial = self.editor.edit(start, asked, clone_generator(own), watch.silent())
                    probabilities = self.judge(trial, images[asked.image_index]).cpu()
                    reached = has_reached(probabilities, asked.target.direction, self.goal)
                    found.take(pending[rows], trial, reached, probabilities.isfinite().all(1))
                    search.update(reached) if scales.any() else search.accept_without(reached)
                    rows, scales = search.active, search.scales
                    bar.update(len(question) - len(pending) + search.num_solved - bar.n)
                found.null_latents.append(trial.null_latents)
        return found.edit(question.region)


class FoundEdits:
    """The best trial of each row: the last that reached the goal, else the last that gave numbers at all.

    Args:
        num_rows: how many rows.
    """

    def __init__(self, num_rows: int):
        self.latents: list[Any] = [None] * num_rows
        self.regions: list[Any] = [None] * num_rows
        self.agreements: list[Any] = [None] * num_rows
        self.scales, self.strengths = torch.zeros(num_rows), torch.zeros(num_rows)
        self.reached = torch.zeros(num_rows, dtype=torch.bool)
        self.null_index = torch.zeros(num_rows, dtype=torch.long)
        self.null_latents: list[torch.Tensor] = []  # of each strength

    def take(self, rows: torch.Tensor, trial: Edit, reached: torch.Tensor, is_finite: torch.Tensor) -> None:
        """Take in a trial.

        Args:
            rows: which rows it was about.
            trial: at the strength whose null edits come next.
            reached: which of them reached their goal.
            is_finite: which of them have probabilities.
        """
        num_nulls = sum(len(null_latents) for null_latents in self.null_latents)
        for place, row in enumerate(rows.tolist()):
            is_first = self.latents[row] is None
            if not (is_first or reached[place] or (is_finite[place] and not self.reached[row])):
                continue
            self.latents[row] = trial.latents[place]
            if trial.region is not None and len(trial.region) == len(rows):
                self.regions[row] = trial.region[place]
            if trial.agreement is not None:
                self.agreements[row] = trial.agreement[place]
            self.scales[row], self.strengths[row] = trial.guidance_scales[place], trial.strengths[place]
            self.null_index[row] = num_nulls + trial.null_index[place]
            self.reached[row] |= reached[place]

    def edit(self, region: torch.Tensor | None) -> Edit:
        """All rows together.

        Args:
            region: that the question was asked within; None for those that the trials found, if any.
        """
        return Edit(
            torch.stack(self.latents),
            torch.cat(self.null_latents),
            self.null_index,
            self.scales,
            self.strengths,
            self.reached,
            _stacked(self.regions) if region is None else region,
            _stacked(self.agreements),
        )


def _stacked(rows: list[Any]) -> torch.Tensor | None:
    return None if any(row is None for row in rows) else torch.stack(rows)


def strength_ladder(strength: float, max_strength: float | None, factor: float = 1.4) -> list[float]:
    """Strengths to try one after another: the given one, then each `factor` times the last, up to the largest."""
    ladder = [strength]
    while max_strength is not None and ladder[-1] < max_strength:
        ladder.append(min(ladder[-1] * factor, max_strength))
    return ladder


def goal_probability(target_probability: float) -> float:
    """How far a label may stay from certainty: 0.1 and 0.9 both mean at most 0.1 away and at least 0.9 towards."""
    return min(target_probability, 1 - target_probability)


def has_reached(probabilities: torch.Tensor, direction: torch.Tensor, target_probability: float) -> torch.Tensor:
    """Whether every targeted label of a row is where it should be; never where a probability is NaN.

    Args:
        probabilities: shape `(rows, num_labels)`.
        direction: +1 towards, -1 away, 0 not targeted; same shape.
        target_probability: in (0, 1), see `goal_probability`.

    Returns:
        Bool, shape `(rows,)`.
    """
    margin = goal_probability(target_probability)
    direction = direction.to(probabilities)
    missing = torch.where(direction > 0, 1 - probabilities, probabilities)
    return ((missing <= margin) | (direction == 0)).all(1)


def check_first_scales(scales: torch.Tensor, settings: CounterfactualSettings) -> None:
    """Refuse scales that a search cannot begin with.

    Args:
        scales: of each row.
        settings: with `target_probability`.

    Raises:
        ValueError: naming the option.
    """
    if not (scales > 0).all() or (isinstance(settings.guidance_scale, (list, tuple)) and len(scales.unique()) > 1):
        raise ValueError(
            "With `target_probability`, `guidance_scale` is the first scale to try: above 0, and no list."
        )
    first, largest = float(scales.max()), settings.max_guidance_scale
    if largest is not None and largest < first:
        raise ValueError(f"`max_guidance_scale` must be at least {first}, where the search begins, but got {largest}.")


# ---- mediffusion_diffusers/pipelines/counterfactual/shorten.py

StopProbability = float | Mapping[str, float]
_NUM_HALVINGS = 4  # so that a change is at most a sixteenth of itself longer than it has to be


class ShortenedEdit:
    """An editor whose changes are shortened to the share that suffices; one that does not suffice stays whole.

    While the classifier is in doubt about noised latents it pushes, whatever has been reached already; so what is
    removed easily is overdone at the scale that stubborn findings need.

    Args:
        editor: makes the edit.
        guided: the editor whose classifier is asked.
        problem_type: of that classifier.
        stop_probability: see `CounterfactualOptions`.
    """

    def __init__(self, editor: Any, guided: Editor, problem_type: str, stop_probability: StopProbability):
        self.editor, self.guided, self.problem_type, self.stop = editor, guided, problem_type, stop_probability

    def edit(self, start: Start, question: Question, generator: Generators, watch: Watch) -> Edit:
        """As for an `Editor`."""
        edit = self.editor.edit(start, question, generator, watch)
        goals = goals_of(self.stop, question.target.direction).to(edit.latents.device)
        if goals.isnan().all():
            return edit
        direction, null_latents = question.target.direction.to(goals), edit.null_latents[edit.null_index]
        change = edit.latents.float() - null_latents.float()
        too_short = torch.zeros(len(question), 1, 1, 1, device=goals.device)
        enough = torch.ones_like(too_short)
        for _ in range(_NUM_HALVINGS):
            share = (too_short + enough) / 2
            probabilities = self._probabilities((null_latents.float() + share * change).to(null_latents.dtype))
            suffices = have_reached(probabilities, direction, goals).view_as(share)
            too_short, enough = torch.where(suffices, too_short, share), torch.where(suffices, share, enough)
        shortened = (null_latents.float() + enough * change).to(null_latents.dtype)
        return replace(edit, latents=torch.where(enough < 1, shortened, edit.latents))

    def _probabilities(self, latents: torch.Tensor) -> torch.Tensor:
        """Of clean latents, shape `(rows, num_labels)`, float32."""
        logits = self.guided.classify(latents).float()
        return logits.softmax(-1) if self.problem_type == "single_label_classification" else logits.sigmoid()


def goals_of(stop_probability: StopProbability, direction: torch.Tensor) -> torch.Tensor:
    """The probability at which each label is where it should be.

    Args:
        stop_probability: one number, 0.1 and 0.9 meaning the same, or one per direction, as it is.
        direction: +1 towards, -1 away, 0 not targeted, shape `(rows, num_labels)`.

    Returns:
        Shape of `direction`, float32; NaN for labels without a goal.
    """
    if not isinstance(stop_probability, Mapping):
        margin = goal_probability(stop_probability)
        stop_probability = {"towards": 1 - margin, "away": margin}
    goals = torch.full(direction.shape, torch.nan)
    for name, sign in zip(SCALE_NAMES, (1, -1), strict=True):
        goals[direction == sign] = stop_probability.get(name, torch.nan)
    return goals


def have_reached(probabilities: torch.Tensor, direction: torch.Tensor, goals: torch.Tensor) -> torch.Tensor:
    """Whether every targeted label of a row is at its goal or beyond; never where one has no goal.

    Args:
        probabilities: shape `(rows, num_labels)`.
        direction: +1 towards, -1 away, 0 not targeted; same shape.
        goals: of `goals_of`, same shape.

    Returns:
        Bool, shape `(rows,)`.
    """
    return ((direction * (probabilities - goals) >= 0) | (direction == 0)).all(1)


# ---- mediffusion_diffusers/pipelines/counterfactual/signature.py


def takes_settings(**first_after: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a method that takes `**options` every setting as an argument that `inspect` and `help` know.

    An option that a checkpoint may store is `None` by default. In the docstring `{options}` becomes the description of
    all options, `{stored}` and `{defaults}` their names and values where a checkpoint may store them.

    Args:
        first_after: where the settings stand among the method's own arguments: by the name of an argument, the setting
            that follows it, and all after that one up to the next named here.
    """

    def decorate(method: Callable[..., Any]) -> Callable[..., Any]:
        signature = _merge(inspect.signature(method), first_after)

        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            return method(**signature.bind(*args, **kwargs).arguments)

        call.__signature__ = signature  # type: ignore[attr-defined]
        call.__doc__ = (method.__doc__ or "").format(options=describe_options(" " * 12), **_defaults())
        return call

    return decorate


def _merge(own: inspect.Signature, first_after: dict[str, str]) -> inspect.Signature:
    """The method's own parameters with those of the settings between them."""
    hints = get_type_hints(CounterfactualOptions)
    runs: dict[str, list[inspect.Parameter]] = {}
    starts = {setting: argument for argument, setting in first_after.items()}
    run: list[inspect.Parameter] = []
    for entry in fields(CounterfactualOptions):
        if entry.name in starts:
            run = runs[starts[entry.name]] = []
        default = None if entry.name in stored_options() else entry.default
        kind, hint = inspect.Parameter.POSITIONAL_OR_KEYWORD, hints[entry.name]
        run.append(
            inspect.Parameter(
                entry.name, kind, default=default, annotation=hint if default is not None else hint | None
            )
        )
    parameters = []
    for parameter in own.parameters.values():
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD:
            parameters += [parameter, *runs.get(parameter.name, [])]
    return own.replace(parameters=parameters)


def _defaults() -> dict[str, str]:
    """The options that a checkpoint may store, in words."""
    default = {entry.name: entry.default for entry in fields(CounterfactualOptions)}
    return {
        "stored": ", ".join(f"`{name}`" for name in stored_options()),
        "defaults": ", ".join(f"{name} {default[name]!r}" for name in stored_options()),
    }


# ---- mediffusion_diffusers/pipelines/counterfactual/pipeline.py

EXAMPLE_DOC_STRING = """
    Examples:
        ```py
        >>> from PIL import Image
        >>> from mediffusion_diffusers import MediffusionCounterfactualPipeline

        >>> pipe = MediffusionCounterfactualPipeline.from_pretrained("org/mediffusion-cxr")
        >>> output = pipe(Image.open("chest.png"), away="Cardiomegaly")
        >>> output.images[0].save("without_cardiomegaly.png")
        >>> output.probabilities_before[0], output.probabilities_after[0]
        ```
"""


class MediffusionCounterfactualPipeline(DiffusionPipeline):
    r"""Counterfactual images: the same image with a finding removed or added, as the model sees it.

    The image is encoded, brought to a partial noise level and denoised under guidance by the model's own classifier.
    Beside it stands the *null edit*: the same start and steps without guidance. It shows what changes this model's
    score; it is not causal, not anatomy and not disease progression.

    Args:
        vae: autoencoder of the checkpoint.
        unet: joint model.
        scheduler: DDIM (deterministic, few steps), DPM-Solver++, or DDPM (the paper's procedure, with
            `start="noise"`).
    """

    model_cpu_offload_seq = "vae->unet->vae"

    def __init__(self, vae: Autoencoder, unet: JointUNet2DModel, scheduler: Scheduler):
        super().__init__()
        check_components(vae, unet, scheduler)
        self.register_modules(vae=vae, unet=unet, scheduler=scheduler)
        self.image_processor = MediffusionImageProcessor(channels=vae.config.in_channels if vae is not None else 1)
        self._calls = ThreadCalls()

    def check_components(self) -> None:
        """Refuse components that were replaced by others since the pipeline was made, and do not fit.

        Raises:
            ValueError: naming the component.
        """
        for name in ("vae", "unet", "scheduler"):
            if getattr(self, name) is None:
                raise ValueError(f"`{name}` is missing: the pipeline was made without it.")
        check_components(self.vae, self.unet, self.scheduler)
        if self.vae.config.in_channels != self.image_processor.config.channels:
            raise ValueError(
                f"`vae` takes {self.vae.config.in_channels} channels, but the pipeline was made for "
                f"{self.image_processor.config.channels}. Make a new one with this autoencoder."
            )

    @contextmanager
    def _running(self, *modules: torch.nn.Module) -> Iterator[CallState]:
        """A call: its own state, and the models in evaluation mode without gradients of their weights.

        Args:
            modules: others that take part.
        """
        outer, state = self._calls.current, CallState(is_running=True)
        self._calls.current = state
        try:
            with sampling_mode(self.vae, self.unet, *modules):
                yield state
        finally:
            state.is_running = False
            if outer.is_running:  # this call came out of a callback of another one
                self._calls.current = outer
        self.maybe_free_model_hooks()

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As [`~diffusers.DiffusionPipeline.from_pretrained`], with weights laid out as the device reads them best.

        On a CPU channels last makes a step about 1.4 times faster, and changes results by rounding alone. A pipeline
        made of components leaves their layout as it is.

        Raises:
            ValueError: if weights are pickled or hold NaN, or a config is damaged or asks for too much.
            HubFailure: if the pipeline is no folder and cannot be read on the Hub.
        """
        source = args[0] if args else kwargs.get("pretrained_model_name_or_path")
        kwargs = safetensors_alone(kwargs)
        if source is not None and os.path.isdir(source):
            check_pipeline_folder(source)
        return super().from_pretrained(*args, **kwargs)  # type: ignore[misc]

    def register_to_config(self, **kwargs: Any) -> None:
        """As [`~diffusers.ConfigMixin.register_to_config`]; diffusers notes here where a loaded pipeline came from.

        Raises:
            ValueError: as `from_pretrained`, for weights and sizes.
        """
        super().register_to_config(**kwargs)  # type: ignore[misc]
        source = kwargs.get("_name_or_path")
        if source is None:
            return
        for module in self.components.values():
            check_finite(module, source)
        if None not in (self.vae, self.unet) and max(self.image_size) > MAX_SIDE:
            raise ValueError(
                f"{str(source)!r} is for images of {self.image_size} pixels; the largest side is {MAX_SIDE}."
            )
        self._lay_out()

    @classmethod
    def load_config(cls, *args: Any, **kwargs: Any) -> Any:
        """As [`~diffusers.ConfigMixin.load_config`], with the models of this package in place of a checkpoint's."""
        config = super().load_config(*args, **kwargs)  # type: ignore[misc]
        return (with_own_classes(config[0]), *config[1:]) if isinstance(config, tuple) else with_own_classes(config)

    @classmethod
    def download(cls, pretrained_model_name: str | os.PathLike, **kwargs: Any) -> Any:
        """As [`~diffusers.DiffusionPipeline.download`]; safetensors alone, and the configs are checked.

        Raises:
            ValueError: as `from_pretrained`.
            HubFailure: as `from_pretrained`.
        """
        kwargs = safetensors_alone(kwargs)
        with hub_access(pretrained_model_name, kwargs.get("revision"), kwargs.get("token")):
            try:
                folder = super().download(pretrained_model_name, **kwargs)  # type: ignore[misc]
            except OSError as error:
                if "`safetensors` weights" not in str(error):
                    raise
                raise ValueError(
                    f"{str(pretrained_model_name)!r} lacks safetensors for one of its models. {CONVERT}"
                ) from error
        check_pipeline_folder(folder)
        return folder

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """As [`~diffusers.DiffusionPipeline.to`]; on an accelerator the weights are laid out as it reads them best."""
        pipe = super().to(*args, **kwargs)  # type: ignore[misc]
        if pipe.device.type != "cpu":
            pipe._lay_out()
        return pipe

    def _lay_out(self) -> None:
        for module in (self.vae, self.unet):
            if isinstance(module, torch.nn.Module):
                module.to(memory_format=memory_format_for(module.device))  # type: ignore[call-overload, arg-type]

    @property
    def vae_scale_factor(self) -> int:
        """Pixels per latent position, along a side."""
        return vae_scale_factor(self.vae)

    @property
    def latent_size(self) -> tuple[int, int]:
        """Height and width of the latents."""
        size = self.unet.config.sample_size
        if size is None:
            raise ValueError("The U-Net's config must state `sample_size`, the height and width of the latents.")
        return (size, size) if isinstance(size, int) else (size[0], size[1])

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images in pixels."""
        height, width = self.latent_size
        return height * self.vae_scale_factor, width * self.vae_scale_factor

    @property
    def label_names(self) -> list[str]:
        """The model's labels in the order of its logits."""
        return self.unet.label_names

    @property
    def guidance_scale(self) -> float | torch.Tensor:
        """Scale of this thread's running or last call, or one per image.

        A callback may set `pipe._guidance_scale` for later steps.
        """
        return self._guidance_scale

    @property
    def num_timesteps(self) -> int:
        """Number of denoising steps of this thread's running or last call."""
        return self._calls.current.num_timesteps

    @property
    def interrupt(self) -> bool:
        """Set `pipe._interrupt = True` in a callback to skip the remaining steps."""
        return self._interrupt

    @property
    def _guidance_scale(self) -> Any:
        return self._calls.current.guidance_scale

    @_guidance_scale.setter
    def _guidance_scale(self, guidance_scale: Any) -> None:
        self._calls.current.guidance_scale = guidance_scale

    @property
    def _interrupt(self) -> bool:
        return self._calls.current.interrupt

    @_interrupt.setter
    def _interrupt(self, interrupt: bool) -> None:
        self._calls.current.interrupt = interrupt

    def encode_images(self, images: ImageInput) -> torch.Tensor:
        """Encode images deterministically (the posterior's mode) into the U-Net's scaled latents.

        Args:
            images: as for [`MediffusionImageProcessor`].

        Returns:
            Shape `(batch, latent_channels, *latent_size)`.
        """
        return self.encode_pixels(self.image_processor.preprocess(images, *self.image_size))

    def encode_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        """As `encode_images`, from a tensor `(batch, channels, *image_size)` in [-1, 1]."""
        return encode_pixels(self.vae, pixels.to(self._execution_device)).to(self.unet.dtype)

    def decode_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Decode the U-Net's latents into pixels, shape `(batch, channels, *image_size)`, clamped to [-1, 1]."""
        return decode_latents(self.vae, latents).clamp(-1.0, 1.0)

    def logits_to_probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """Sigmoid or softmax, by the model's `problem_type`."""
        logits = logits.float()
        if self.unet.config.problem_type == "single_label_classification":
            return logits.softmax(dim=-1)
        return logits.sigmoid()

    def classify_latents(self, latents: torch.Tensor, timestep: int = 0) -> torch.Tensor:
        """Logits of latents at a timestep, shape `(batch, num_labels)`."""
        return self.unet(latents, timestep, return_sample=False).logits.float()

    def clone_scheduler(self) -> Any:
        """A fresh scheduler of the same kind and config, so that calls never change the registered one."""
        return type(self.scheduler).from_config(self.scheduler.config)

    def check_generator(self, generator: Generators, batch_size: int) -> None:
        """Refuse what is no generator, and a list of generators that does not match the batch."""
        members = generator if isinstance(generator, list) else [] if generator is None else [generator]
        if not all(isinstance(member, torch.Generator) for member in members):
            raise ValueError(
                f"`generator` must be a torch.Generator or a list of them, but got {generator!r}. For a seed pass "
                "`torch.Generator().manual_seed(seed)`."
            )
        if isinstance(generator, list) and len(generator) != batch_size:
            raise ValueError(
                f"`generator` as a list must hold one generator per image, {batch_size}, but holds {len(generator)}."
            )

    def check_callback(self, callback: Any, names: Any) -> None:
        """Refuse what cannot be called, and callback inputs that the pipeline does not offer."""
        if callback is not None and not callable(callback):
            raise ValueError(f"`callback_on_step_end` must be a function, but got {callback!r}.")
        is_list = isinstance(names, (list, tuple, set))
        unknown = [name for name in names if name not in self._callback_tensor_inputs] if is_list else names
        if unknown or not is_list:
            raise ValueError(
                f"`callback_on_step_end_tensor_inputs` must be among {self._callback_tensor_inputs}, but got "
                f"{unknown}."
            )

    _callback_tensor_inputs = ["latents", "null_latents"]

    @torch.no_grad()
    @replace_example_docstring(EXAMPLE_DOC_STRING)
    @takes_settings(away="strength", callback_on_step_end_tensor_inputs="start_snr", controls="fade_guidance")
    def __call__(
        self,
        image: ImageInput,
        towards: Labels | Sequence[Labels] | None = None,
        away: Labels | Sequence[Labels] | None = None,
        generator: Generators = None,
        noise: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[Any, int, int, dict[str, Any]], dict[str, Any]] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        classifier: Any = None,
        controls: bool = True,
        **options: Any,
    ) -> MediffusionCounterfactualPipelineOutput | tuple[Any, ...]:
        r"""Edit images until the model would decide otherwise.

        Args:
            image: one image or a list: PIL of any mode, arrays or tensors in [0, 1], grey or colour, of any size.
            towards: labels to add: a name or index, several of them (for all images), or a list of lists: one per
                image, or several per image, which then share its inversion.
            away: labels to remove, likewise. `towards` and `away` may be combined.
            generator: for `start="noise"` and `start="noised_paths"`: one, or one per image. Without one, noised paths
                begin with the same noise in every call.
            noise: for `start="noise"`: noise of the latents' shape instead of a generator's.
            output_type: `"pil"`, `"np"`, `"pt"` or `"latent"`.
            return_dict: return an output object rather than a tuple of its fields.
            callback_on_step_end: called after each step as `callback(pipe, step, timestep, kwargs)`; with
                `mask="auto"` in both edits, the one that finds the region and the one within it (noised paths need one
                edit alone). It returns what it changed of `kwargs`, or nothing.
            callback_on_step_end_tensor_inputs: what it gets in `kwargs`: `"latents"`, `"null_latents"`.
            classifier: an image classifier of transformers, or an [`ExternalClassifier`] with its own preprocessing,
                whose probabilities are reported. With `guidance_mode="external"` it guides, and `towards` and `away`
                name its labels.
            controls: also change each image as much by the plain gradient and by noise, and report both.
            {options}

        Where one of {stored} is `None` the checkpoint's `guidance_defaults` hold, then: {defaults}.

        Examples:

        Returns:
            [`MediffusionCounterfactualPipelineOutput`].

        Raises:
            ValueError: for images or arguments that cannot be used.
        """
        # 1. Resolve what is asked
        self.check_components()
        settings = self.resolve_settings(**options)
        outside = as_external(classifier)
        judge = self._judge(settings, outside)
        pixels = self.image_processor.preprocess(image, *self.image_size)
        question = Question.of(len(pixels), towards, away, settings, judge.label_names, judge.problem_type)
        if not isinstance(settings.mask, str):
            question = question.within(prepare_region(settings.mask, len(question), self.image_size, self.latent_size))
        if settings.target_probability is not None:
            check_first_scales(question.scales, settings)
        self.check_inputs(settings, len(pixels), generator, noise, output_type)
        self.check_callback(callback_on_step_end, callback_on_step_end_tensor_inputs)
        check_switch("return_dict", return_dict)
        check_switch("controls", controls)

        def on_step(step: int, t: int, latents: torch.Tensor, null_latents: torch.Tensor) -> Any:
            tensors = {"latents": latents, "null_latents": null_latents}
            names = callback_on_step_end_tensor_inputs
            return tuple(changed_by_callback(callback_on_step_end, self, step, t, tensors, names).values())

        with self._running(*([] if outside is None else [outside])) as state:
            watch = Watch(state, self.progress_bar, None if callback_on_step_end is None else on_step)

            # 2. Encode deterministically, and climb to the noise level
            latents, unet = self.encode_pixels(pixels), state.counted(self.unet)
            display = Display(self, pixels, latents, settings, output_type)
            way, generator = self._way(unet, settings, latents, generator, noise, len(question))
            start = way.begin(torch.arange(len(pixels)), settings.strength, watch.shown)

            # 3. Denoise: the counterfactuals under guidance, the null edits from the same start without
            guided = self._editor(unet, settings, judge)
            editor: Any = guided
            timesteps = guided.timesteps(start)
            if settings.target_probability is not None:

                def as_shown(trial: Edit, images: torch.Tensor) -> torch.Tensor:
                    return judge.probabilities(display.edited(trial, images))

                editor = SmallestEdit(editor, way, settings, as_shown, self.progress_bar)
            if settings.finds_region and settings.start != "noised_paths":  # which finds it in the edit itself
                editor = WithinItsRegion(editor)
            if settings.stop_probability is not None:
                editor = ShortenedEdit(editor, guided, judge.problem_type, settings.stop_probability)
            edit = editor.edit(start, question, generator, watch)

            # 4. Decode, classify the pictures that the user gets, make the controls, take the differences
            reporter = None if outside is None else ExternalJudge(self, outside)
            asked = (settings, judge, reporter, output_type, controls, timesteps)
            output = assemble(self, display, question, edit, *asked, state.num_evaluations)
        return output if return_dict else output.to_tuple()

    def resolve_settings(self, **options: Any) -> CounterfactualSettings:
        """The settings of a call with these options: where they are left out the checkpoint's, then the defaults.

        Args:
            options: any of the pipeline's options; `None` leaves one out.

        Raises:
            ValueError: for options that cannot be used.
        """
        return CounterfactualSettings.resolve(options, self.unet.config.guidance_defaults, self.scheduler)

    def strength_of_snr(self, start_snr: float) -> float:
        """The strength whose noise level has this signal-to-noise ratio, abar_t / (1 - abar_t).

        Raises:
            ValueError: if it is not above 0 or lies outside the schedule.
        """
        return strength_of_snr(start_snr, self.scheduler)

    def check_inputs(
        self,
        settings: CounterfactualSettings,
        num_images: int,
        generator: Generators,
        noise: torch.Tensor | None,
        output_type: str,
    ) -> None:
        """Refuse arguments that cannot work beside these settings, before any work is done."""
        if noise is not None and settings.start != "noise":
            raise ValueError(f"`noise` is for `start='noise'`, but `start` is {settings.start!r}.")
        if noise is not None:
            check_latents("noise", noise, (num_images, self.unet.config.in_channels, *self.latent_size))
        self.check_generator(generator, num_images)
        check_output_type(output_type)

    def _judge(self, settings: CounterfactualSettings, outside: Any) -> Judge:
        if settings.guidance_mode != "external":
            return OwnJudge(self)
        if outside is None:
            raise ValueError("`guidance_mode='external'` needs a `classifier`, an image classifier of transformers.")
        return ExternalJudge(self, outside)

    def _editor(self, unet: Any, settings: CounterfactualSettings, judge: Judge) -> Editor:
        kind: type[Editor] = FollowPath if settings.follow_inversion else Sample
        if settings.start == "noised_paths":
            kind = FollowNoisedPaths
        return kind(unet, self.scheduler, settings, judge.latent_classifier)

    def _way(
        self,
        unet: Any,
        settings: CounterfactualSettings,
        latents: torch.Tensor,
        generator: Generators,
        noise: torch.Tensor | None,
        num_rows: int,
    ) -> tuple[Way, Generators]:
        """To the noise level, and a generator for step noise that can be cloned."""
        num_images = len(latents)
        if settings.start == "inversion":
            return Inversion(unet, self.scheduler, settings, latents), generator
        if settings.start == "noised_paths":
            if generator is None:  # an explanation is the same every time, and in every batch
                generator = [torch.Generator().manual_seed(0) for _ in range(num_images)]
            own = one_per_image(generator, num_images)
            return NoisedPaths(unet, self.scheduler, settings, latents, own), None
        generator = own_generator(generator)
        if noise is None:
            noise = randn_tensor(latents.shape, generator, latents.device, latents.dtype)
        if num_rows != num_images or settings.finds_region or settings.target_probability is not None:
            generator = one_per_image(generator, num_images)
        return AddedNoise(self.scheduler, latents, noise), generator


def one_per_image(generator: Generators, num_images: int) -> list[torch.Generator]:
    """A generator per image, so that every edit of an image gets the same step noise."""
    if isinstance(generator, list):
        return generator
    assert generator is not None
    seeds = torch.randint(2**63 - 1, (num_images,), generator=generator, device=generator.device)
    return [torch.Generator(generator.device).manual_seed(int(seed)) for seed in seeds]
