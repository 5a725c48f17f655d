"""A trained pipeline at half its size, such as the one that comes with the package."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from .contents import forget_local_paths


INDEX_FILE = "model_index.json"
# What belongs to a pipeline: its parts, its card, and what was measured of it.
_PARTS = ("unet", "vae", "scheduler", "evaluation")
_FILES = ("README.md", INDEX_FILE)


def write_half_precision(source: str | Path, target: str | Path) -> None:
    """Copy a pipeline with its card and evaluations, its weights rounded to float16; they still load as float32.

    Checkpoints, metrics and samples of the training stay behind, and so do paths of this machine.

    Args:
        source: folder of a pipeline.
        target: folder to write; what it held before is replaced in the end.

    Raises:
        ValueError: if `source` is no pipeline, or a weight is too large for float16.
    """
    source, target = Path(source), Path(target)
    if not (source / INDEX_FILE).is_file():
        raise ValueError(
            f"`source` must be the folder of a pipeline, which has a {INDEX_FILE}, but got {str(source)!r}."
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as aside:
        copy = Path(aside) / target.name
        copy.mkdir()
        for name in _FILES:
            if (source / name).is_file():
                shutil.copyfile(source / name, copy / name)
        for name in _PARTS:
            if (source / name).is_dir():
                shutil.copytree(source / name, copy / name)
        for path in copy.rglob("*.safetensors"):
            save_file(
                {name: _halved(name, tensor) for name, tensor in load_file(path).items()}, path, {"format": "pt"}
            )
            path.chmod(0o644)
        forget_local_paths(copy)
        if target.exists():
            target.rename(Path(aside) / "before")
        copy.rename(target)


def _halved(name: str, tensor: torch.Tensor) -> torch.Tensor:
    if not tensor.is_floating_point():
        return tensor
    half = tensor.half()
    if not bool(torch.isfinite(half).all()):
        raise ValueError(
            f"The weights {name!r} hold numbers above {torch.finfo(torch.float16).max}, too large for float16."
        )
    return half.contiguous()
