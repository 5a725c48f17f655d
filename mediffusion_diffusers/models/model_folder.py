"""Models from folders and the Hub: safetensors alone, configs checked before a network is built, finite weights.

Pickled weights (`.bin`, `.pt`, ...) can run any code of whoever wrote them. They are never opened, nor downloaded.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from ..digests import sha256_of
from ..hub import hub_access
from .config_rules import read_config


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
