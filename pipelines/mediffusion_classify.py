"""Classify images with the joint model (paper Sec. 3.2).

Generated from the package `mediffusion_diffusers` by `make bundle`. Do not edit: edit the package.
Needs torch, diffusers, transformers and pillow alone. Research use only: not a medical device.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Union

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
from diffusers.utils import BaseOutput, replace_example_docstring
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
from torch import nn


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


# ---- mediffusion_diffusers/models/label_calibration.py


def calibrate_logits(logits: torch.Tensor, calibration: Mapping[str, Sequence[float]]) -> torch.Tensor:
    """slope * logits + intercept, label by label.

    Args:
        logits: shape `(batch, num_labels)`.
        calibration: of the checkpoint, see `check_label_calibration`.

    Returns:
        Same shape.
    """
    slope, intercept = (logits.new_tensor(list(calibration[name])) for name in ("slope", "intercept"))
    return slope * logits + intercept


def calibrate_thresholds(thresholds: Sequence[float], calibration: Mapping[str, Sequence[float]]) -> list[float]:
    """Thresholds of probabilities as thresholds of calibrated ones: every decision stays as it was.

    Args:
        thresholds: in (0, 1), one per label.
        calibration: of the checkpoint, see `check_label_calibration`.

    Returns:
        As many, in (0, 1).
    """
    logits = torch.logit(torch.tensor([list(thresholds)], dtype=torch.float64))
    return calibrate_logits(logits, calibration).sigmoid()[0].tolist()


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


# ---- mediffusion_diffusers/guidance/scales.py


def plain_scale(guidance_scale: Any) -> Any:
    """The same with numbers, lists and dicts of Python instead of numpy's and torch's."""
    if isinstance(guidance_scale, Mapping):
        return {name: plain_scale(scale) for name, scale in guidance_scale.items()}
    return guidance_scale.tolist() if hasattr(guidance_scale, "tolist") else guidance_scale


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


def scores_to_output(scores: torch.Tensor, output_type: str) -> Any:
    """Scores as a tensor on the CPU for `"pt"` and `"latent"`, as an array otherwise."""
    scores = scores.detach().float().cpu()
    return scores if output_type in ("pt", "latent") else scores.numpy()


# ---- mediffusion_diffusers/pipelines/outputs.py

Scores = np.ndarray | torch.Tensor


@dataclass
class MediffusionClassifyPipelineOutput(BaseOutput):
    """Output of [`MediffusionClassifyPipeline`].

    Args:
        probabilities: shape `(batch, num_labels)`, in [0, 1].
        logits: the scores they come from, averaged over noises and timesteps if there are several; same shape.
        labels: names of the labels that reach their thresholds, one list per image; for a model of one class per
            image, the most probable class.
        label_names: names of the columns.
        thresholds: the thresholds used, one per label.
        image_size: height and width at which the model saw the images; other sizes were resized.
    """

    probabilities: Scores
    logits: Scores
    labels: list[list[str]]
    label_names: list[str]
    thresholds: list[float]
    image_size: tuple[int, int]


# ---- mediffusion_diffusers/pipelines/classify.py

EXAMPLE_DOC_STRING = """
    Examples:
        ```py
        >>> from PIL import Image
        >>> from mediffusion_diffusers import MediffusionClassifyPipeline

        >>> pipe = MediffusionClassifyPipeline.from_pretrained("org/mediffusion-cxr")
        >>> output = pipe([Image.open("a.png"), Image.open("b.png")])
        >>> output.labels, output.probabilities
        ```
"""


class MediffusionClassifyPipeline(DiffusionPipeline):
    r"""Probabilities for images, from the encoder half of the joint model.

    The image is encoded to the posterior's mode and classified without noise at t = 0: deterministic, one encoder
    pass. Optionally logits are averaged over several timesteps and noises.

    Args:
        vae: autoencoder of the checkpoint.
        unet: joint model.
        scheduler: DDPM or DDIM; its `alphas_cumprod` scale the optional noise.
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

    _callback_tensor_inputs = ["latents", "logits"]

    def check_inputs(
        self,
        timesteps: Sequence[int],
        num_noise_samples: int,
        thresholds: float | Sequence[float] | None,
        batch_size: int,
        output_type: str,
        calibrated: bool = False,
    ) -> None:
        """Refuse arguments that cannot work, before any work is done."""
        last = self.scheduler.config.num_train_timesteps - 1
        if not timesteps:
            raise ValueError("`timesteps` must name at least one timestep, but is empty.")
        for timestep in timesteps:
            check_number("timesteps", timestep, Range(at_least=0, at_most=last), whole=True)
        check_number("num_noise_samples", num_noise_samples, Range(at_least=0), whole=True)
        check_number("batch_size", batch_size, Range(at_least=1), whole=True)
        num_labels = self.unet.config.num_labels
        if isinstance(thresholds, (list, tuple)) and len(thresholds) != num_labels:
            raise ValueError(
                f"`thresholds` must be one number in (0, 1) or {num_labels} of them, one per label, but got "
                f"{thresholds}."
            )
        each = thresholds if isinstance(thresholds, (list, tuple)) else [] if thresholds is None else [thresholds]
        for threshold in each:
            check_number("thresholds", threshold, Range(above=0, below=1))
        check_output_type(output_type, ("np", "pt"))
        check_switch("calibrated", calibrated)
        if calibrated and self.unet.config.label_calibration is None:
            raise ValueError(
                "`calibrated=True` needs a calibration, but this checkpoint stores none. Fit one with `mediffusion "
                "calibrate-probabilities`, or leave `calibrated` out."
            )

    @torch.no_grad()
    @replace_example_docstring(EXAMPLE_DOC_STRING)
    def __call__(
        self,
        images: ImageInput,
        timesteps: int | Sequence[int] = 0,
        num_noise_samples: int = 0,
        thresholds: float | Sequence[float] | None = None,
        batch_size: int = 16,
        generator: Generators = None,
        output_type: str = "np",
        return_dict: bool = True,
        callback_on_step_end: Callable[[Any, int, int, dict[str, Any]], dict[str, Any]] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("logits",),
        calibrated: bool = False,
    ) -> MediffusionClassifyPipelineOutput | tuple[Any, ...]:
        r"""Classify images.

        Args:
            images: one image or a list: PIL of any mode, arrays or tensors in [0, 1], grey or colour, of any size.
            timesteps: where the classifier is asked; several are averaged (on logits).
            num_noise_samples: noises per image and timestep above 0; 0 asks at clean latents.
            thresholds: probability from which a label counts as present, in (0, 1), one for all or one per label;
                by default the checkpoint's `label_thresholds`, else 0.5. Unused for one class per image.
            batch_size: images per forward pass.
            generator: source of the noises, one or one per image.
            output_type: `"np"` or `"pt"`, for probabilities and logits.
            return_dict: return an output object rather than a tuple of its fields.
            callback_on_step_end: called after each batch as `callback(pipe, step, timestep, kwargs)`; it returns what
                it changed of `kwargs`, or nothing.
            callback_on_step_end_tensor_inputs: what it gets in `kwargs`: `"latents"`, `"logits"`.
            calibrated: correct logits and probabilities by the checkpoint's `label_calibration`. Its thresholds move
                along, so that no label changes; given `thresholds` are of calibrated probabilities.

        Examples:

        Returns:
            [`MediffusionClassifyPipelineOutput`].

        Raises:
            ValueError: for images or arguments that cannot be used.
        """
        # 1. Check arguments
        self.check_components()
        thresholds, given = plain_scale(thresholds), plain_scale(timesteps)
        chosen: list[int] = list(given) if isinstance(given, (list, tuple, range)) else [given]
        self.check_inputs(chosen, num_noise_samples, thresholds, batch_size, output_type, calibrated)
        self.check_callback(callback_on_step_end, callback_on_step_end_tensor_inputs)
        check_switch("return_dict", return_dict)
        pixels = self.image_processor.preprocess(images, *self.image_size)
        self.check_generator(generator, len(pixels))

        # 2. Classify batch by batch
        logits = []
        starts = range(0, len(pixels), batch_size)
        with self._running() as state, self.progress_bar(total=len(starts)) as progress_bar:
            state.num_timesteps = len(starts)
            for step, start in enumerate(starts):
                latents = self.encode_pixels(pixels[start : start + batch_size])
                batch_generator = generator[start : start + batch_size] if isinstance(generator, list) else generator
                batch_logits = self._average_logits(latents, chosen, num_noise_samples, batch_generator)
                tensors = {"latents": latents, "logits": batch_logits}
                names = callback_on_step_end_tensor_inputs
                changed = changed_by_callback(callback_on_step_end, self, step, chosen[-1], tensors, names)
                logits.append(changed["logits"])
                progress_bar.update()

        # 3. Probabilities and labels
        all_logits = torch.cat(logits)
        if calibrated:
            all_logits = calibrate_logits(all_logits, self.unet.config.label_calibration)
        probabilities = self.logits_to_probabilities(all_logits)
        used_thresholds = self._resolve_thresholds(thresholds, calibrated)
        output = MediffusionClassifyPipelineOutput(
            probabilities=scores_to_output(probabilities, output_type),
            logits=scores_to_output(all_logits, output_type),
            labels=self._labels(probabilities, used_thresholds),
            label_names=self.label_names,
            thresholds=used_thresholds,
            image_size=self.image_size,
        )
        return output if return_dict else output.to_tuple()

    def _average_logits(
        self, latents: torch.Tensor, timesteps: Sequence[int], num_noise_samples: int, generator: Generators
    ) -> torch.Tensor:
        """Mean logits over timesteps and noises, shape `(batch, num_labels)`."""
        logits = []
        scheduler = self.clone_scheduler()  # `add_noise` moves its tables to the latents' device
        for timestep in timesteps:
            for _ in range(max(num_noise_samples, 1) if timestep > 0 else 1):
                sample = latents
                if num_noise_samples > 0 and timestep > 0:
                    noise = randn_tensor(latents.shape, generator, latents.device, latents.dtype)
                    sample = scheduler.add_noise(latents, noise, torch.tensor([timestep], device=latents.device))
                logits.append(self.classify_latents(sample, timestep))
        return torch.stack(logits).mean(dim=0)

    def _resolve_thresholds(self, thresholds: float | Sequence[float] | None, calibrated: bool) -> list[float]:
        """The argument, else the checkpoint's thresholds, else 0.5, one per label; the latter two move with it."""
        chosen = (self.unet.config.label_thresholds or 0.5) if thresholds is None else thresholds
        if isinstance(chosen, (int, float)):
            chosen = [chosen] * self.unet.config.num_labels
        if calibrated and thresholds is None:
            return calibrate_thresholds(chosen, self.unet.config.label_calibration)
        return [float(threshold) for threshold in chosen]

    def _labels(self, probabilities: torch.Tensor, thresholds: Sequence[float]) -> list[list[str]]:
        """Names of the labels of each image."""
        names = self.label_names
        if self.unet.config.problem_type == "single_label_classification":
            return [[names[index]] for index in probabilities.argmax(dim=1).tolist()]
        present = probabilities >= torch.tensor(thresholds, device=probabilities.device)
        return [[name for name, is_present in zip(names, row, strict=True) if is_present] for row in present.tolist()]
