"""Checkpoints of a running training: safetensors and JSON only, complete or not there at all.

A checkpoint is a folder `checkpoint-{step}` with one `.safetensors` file per group of tensors (`unet`, `ema`,
`optimizer`, ...), `state.json`, and `manifest.json`, which is written last and holds every file's size and SHA-256.
The folder is filled under another name, flushed to the disk and renamed when complete. Before anything of it is used,
its files are compared with the manifest, and its numbers must be finite; a damaged checkpoint is named, and "latest"
takes the one before it. What begins with a dot and ends in `.partial` was never finished and is deleted at the next
start.
No generator's state is saved, because random numbers are keyed by the step (see `randomness.py`).
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim import Optimizer

from ...atomic_files import new_folder, remove
from ...digests import sha256_of


MANIFEST = "manifest.json"
STATE = "state.json"
FORMAT_VERSION = 2  # 1 had sizes alone
_FOLDER = re.compile(r"checkpoint-(\d+)")


class DamagedCheckpoint(ValueError):
    """A checkpoint that cannot be used.

    Args:
        path: its folder.
        reason: what is wrong with it.
    """

    def __init__(self, path: Path, reason: str):
        super().__init__(f"Checkpoint {path} cannot be used: {reason}. Resume from another one or from 'latest'.")
        self.path, self.reason = path, reason


@dataclass
class Checkpoint:
    """What a checkpoint folder holds.

    Args:
        path: the folder.
        step: optimizer steps done.
        tensors: tensors by group and name, on the CPU.
        state: what was not a tensor.
    """

    path: Path
    step: int
    tensors: dict[str, dict[str, torch.Tensor]]
    state: dict[str, Any]


def save_checkpoint(
    output_dir: Path,
    step: int,
    tensors: dict[str, dict[str, torch.Tensor]],
    state: dict[str, Any],
    total_limit: int | None = None,
) -> Path:
    """Write `output_dir/checkpoint-{step}`, then delete the oldest ones beyond the limit.

    Args:
        output_dir: folder of the run.
        step: optimizer steps done.
        tensors: tensors by group and name; each group becomes one file.
        state: what is not a tensor; must be JSON.
        total_limit: number of checkpoints to keep; `None` keeps all.

    Returns:
        The new folder.

    Raises:
        OSError: if it cannot be written (safetensors raises an error of its own); what was there before stays.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    path = output_dir / f"checkpoint-{step}"
    with new_folder(path) as aside:
        for group, named in tensors.items():
            contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in named.items()}
            save_file(contiguous, aside / f"{group}.safetensors")
        (aside / STATE).write_text(json.dumps({"step": step, **state}, indent=1))
        files = {
            file.name: {"bytes": file.stat().st_size, "sha256": sha256_of(file)} for file in sorted(aside.iterdir())
        }
        manifest = {"format_version": FORMAT_VERSION, "step": step, "files": files}
        (aside / MANIFEST).write_text(json.dumps(manifest, indent=1))
        for file in (*aside.iterdir(), aside):
            _flush(file)
    _flush(output_dir)
    # Pruned last: a disk that runs full must not cost the last good checkpoint.
    if total_limit is not None:
        others = [old for old in list_checkpoints(output_dir) if old != path]
        for old in others[: max(0, len(others) + 1 - total_limit)]:
            discard_checkpoint(old)
    return path


def _flush(path: Path) -> None:
    """Wait until a file or folder is on the disk, so that a power failure cannot leave an empty file behind."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def discard_checkpoint(path: Path) -> None:
    """Delete a checkpoint; killed halfway, it leaves no folder that looks like one."""
    if os.path.lexists(path):
        hidden = path.with_name(f".{path.name}.old.partial")
        remove(hidden)
        os.replace(path, hidden)
        remove(hidden)


def list_checkpoints(output_dir: Path) -> list[Path]:
    """All `checkpoint-{step}` folders, by step; complete or not."""
    if not output_dir.is_dir():
        return []
    found = [(int(match[1]), path) for path in output_dir.iterdir() if (match := _FOLDER.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def find_checkpoint(output_dir: Path, resume_from: str) -> tuple[Path | None, list[str]]:
    """Find the checkpoint to resume from; as `resume_checkpoint`, without keeping what it holds."""
    checkpoint, passed_over = resume_checkpoint(output_dir, resume_from)
    return None if checkpoint is None else checkpoint.path, passed_over


def resume_checkpoint(output_dir: Path, resume_from: str) -> tuple[Checkpoint | None, list[str]]:
    """Read the checkpoint to resume from.

    Args:
        output_dir: folder of the run.
        resume_from: `"latest"`, or the path of a checkpoint folder (also relative to `output_dir`).

    Returns:
        The checkpoint, or `None` if `"latest"` finds no usable one, and a sentence about each that was passed over.

    Raises:
        ValueError: if a named checkpoint does not exist or is damaged.
    """
    if resume_from != "latest":
        path = Path(resume_from)
        path = path if path.is_dir() else output_dir / resume_from
        if not path.is_dir():
            raise ValueError(
                f"`resume_from_checkpoint` must be 'latest' or a checkpoint folder, but there is no {resume_from!r}."
            )
        return load_checkpoint(path), []
    passed_over: list[str] = []
    for path in reversed(list_checkpoints(output_dir)):
        try:
            return load_checkpoint(path), passed_over
        except DamagedCheckpoint as error:
            passed_over.append(f"Checkpoint {path} is not used: {error.reason}.")
    return None, passed_over


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint folder, after comparing its files with its manifest.

    Raises:
        DamagedCheckpoint: if a file is missing, damaged or not what it should be, or a number is not finite.
    """
    names = verified_files(path)
    try:
        state = json.loads((path / STATE).read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedCheckpoint(path, f"{STATE} cannot be read ({error})") from error
    step = state.get("step") if isinstance(state, dict) else None
    if type(step) is not int or step < 0:
        raise DamagedCheckpoint(path, f"{STATE} does not say after how many steps it was written")
    tensors = {}
    for name in names:
        if not name.endswith(".safetensors"):
            continue
        try:
            group = load_file(path / name)
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise DamagedCheckpoint(path, f"{name} cannot be read ({error})") from error
        bad = next((key for key, value in group.items() if not bool(torch.isfinite(value).all())), None)
        if bad is not None:
            raise DamagedCheckpoint(path, f"{bad!r} in {name} holds NaN or infinite numbers")
        tensors[Path(name).stem] = group
    return Checkpoint(path, step, tensors, state)


def verified_files(path: Path) -> list[str]:
    """Names of a checkpoint's files, sorted, after comparing each with the manifest's size and SHA-256.

    Raises:
        DamagedCheckpoint: for the first file that differs, or a manifest that is missing or damaged.
    """
    try:
        content = json.loads((path / MANIFEST).read_text())
        version, files = content["format_version"], dict(content["files"])
        expected = {name: _facts(version, files[name]) for name in sorted(files)}
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DamagedCheckpoint(path, f"{MANIFEST} is missing, so it was never finished") from error
    except OSError as error:
        raise DamagedCheckpoint(path, f"{MANIFEST} cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise DamagedCheckpoint(path, f"{MANIFEST} is damaged") from error
    if STATE not in expected or any(name != os.path.basename(name) for name in expected):
        raise DamagedCheckpoint(path, f"{MANIFEST} is damaged")
    for name, (size, digest) in expected.items():
        file = path / name
        try:
            if not file.is_file():
                raise DamagedCheckpoint(path, f"{name} is {'a folder' if file.is_dir() else 'missing'}")
            if file.stat().st_size != size:
                raise DamagedCheckpoint(path, f"{name} has {file.stat().st_size} bytes instead of {size}")
            is_same = digest is None or sha256_of(file) == digest
        except OSError as error:
            raise DamagedCheckpoint(path, f"{name} cannot be read ({error.strerror})") from error
        if not is_same:
            raise DamagedCheckpoint(path, f"{name} has another SHA-256 than when it was written")
    return list(expected)


def _facts(version: int, entry: Any) -> tuple[int, str | None]:
    """Size and SHA-256 of a file in a manifest."""
    if version == 1:
        return int(entry), None
    if version != FORMAT_VERSION:
        raise ValueError(version)
    return int(entry["bytes"]), str(entry["sha256"])


def module_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and persistent buffers of a module by name."""
    return dict(module.state_dict())


def restore_module(module: nn.Module, tensors: dict[str, torch.Tensor], source: Path) -> None:
    """Copy tensors into a module, keeping its memory layout.

    Raises:
        ValueError: if names or shapes differ from the module's.
    """
    own = module.state_dict()
    wrong = sorted(own.keys() ^ tensors.keys())
    wrong += [name for name in own.keys() & tensors.keys() if own[name].shape != tensors[name].shape]
    if wrong:
        raise ValueError(
            f"Checkpoint {source} belongs to another model: {wrong[:4]} are missing or of another shape. Resume with "
            "the arguments of the first run, or start in a new `output_dir`."
        )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[name])


def optimizer_tensors(optimizer: Optimizer, module: nn.Module) -> dict[str, torch.Tensor]:
    """The optimizer's state by `{parameter name}:{state name}`; empty before the first step of a parameter."""
    tensors = {}
    for name, parameter in module.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{name}:{key}"] = torch.as_tensor(value)
    return tensors


def restore_optimizer(optimizer: Optimizer, module: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    """Restore what `optimizer_tensors` gave, where and in the memory layout in which the optimizer would keep it."""
    parameters = dict(module.named_parameters())
    is_fused = bool(optimizer.param_groups[0].get("fused"))
    optimizer.state.clear()
    for full_name, tensor in tensors.items():
        name, key = full_name.rsplit(":", 1)
        parameter = parameters[name]
        if tensor.shape == parameter.shape:
            tensor = torch.empty_like(parameter, dtype=tensor.dtype, requires_grad=False).copy_(tensor)
        elif is_fused:  # fused kernels count their steps on the parameter's device
            tensor = tensor.to(parameter.device)
        optimizer.state[parameter][key] = tensor
