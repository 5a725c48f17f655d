"""Look whether all is well on this machine, and what to do: versions, device, memory, disk, cache, login."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from ..option_parser import OptionParser
from ..version import __version__
from .command import Command, ResultOptions, first_paragraph
from .results import say_result


_GIB = 2**30
_MIN_MEMORY, _MIN_DISK = 4 * _GIB, 5 * _GIB
_LIBRARIES = (
    "torch",
    "diffusers",
    "transformers",
    "accelerate",
    "datasets",
    "huggingface_hub",
    "safetensors",
    "pillow",
)
_EXTRAS = {
    "training": ("scikit-learn", "scipy", "matplotlib"),
    "dicom": ("pydicom", "pylibjpeg", "pylibjpeg-openjpeg"),
    "app": ("gradio",),
}


@dataclass(frozen=True)
class Finding:
    """What was looked at.

    Args:
        name: of the thing.
        state: `"ok"`; `"note"`, which limits some uses; or `"fail"`, with which nothing works.
        text: what was found.
        advice: what to do, unless all is well.
    """

    name: str
    state: Literal["ok", "note", "fail"]
    text: str
    advice: str = ""


def examine() -> Iterator[Finding]:
    """Look at this machine, one thing after another; what breaks is a finding too."""
    looks: list[Callable[[], Finding | list[Finding]]] = [
        *(_python, _libraries, _extras, _torchvision, _diffusers, _device, _memory, _disk, _cache, _login),
    ]
    for look in looks:
        try:
            found = look()
        except Exception as error:  # whatever is broken here is what the user wants to know
            found = Finding(
                look.__name__.strip("_"), "fail", f"{type(error).__name__}: {' '.join(str(error).split())}"
            )
        yield from found if isinstance(found, list) else [found]


def run(result_options: ResultOptions) -> int:
    """Examine and tell.

    Returns:
        1 if something is broken, else 0.
    """
    findings = []
    for finding in examine():
        findings.append(finding)
        if not result_options.json:
            print(f"{finding.state:<5} {finding.name}: {finding.text}", flush=True)
            if finding.advice:
                print(f"      -> {finding.advice}", flush=True)
    if result_options.json:
        say_result([asdict(finding) for finding in findings])
    return int(any(finding.state == "fail" for finding in findings))


def _python() -> Finding:
    return Finding("python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}")


def _libraries() -> list[Finding]:
    found = [Finding("mediffusion-diffusers", "ok", __version__)]
    for name in _LIBRARIES:
        version = _version(name)
        if version is None:
            advice = "Install the package anew: pip install mediffusion-diffusers"
            found.append(Finding(name, "fail", "not installed", advice))
        else:
            found.append(Finding(name, "ok", version))
    return found


def _extras() -> list[Finding]:
    found = []
    for extra, names in _EXTRAS.items():
        missing = [name for name in names if _version(name) is None]
        if missing:
            advice = f'pip install "mediffusion-diffusers[{extra}]"'
            found.append(Finding(f"extra {extra}", "note", f"without {', '.join(missing)}", advice))
        else:
            found.append(Finding(f"extra {extra}", "ok", ", ".join(f"{name} {_version(name)}" for name in names)))
    return found


def _torchvision() -> Finding:
    """A torchvision that does not fit torch breaks `import diffusers`, which imports it wherever it finds it."""
    if importlib.util.find_spec("torchvision") is None:
        return Finding("torchvision", "ok", "not installed, and not needed")
    try:
        import torchvision
    except Exception as error:
        reason = " ".join(str(error).split())
        advice = "It does not fit this torch, and breaks diffusers: pip uninstall torchvision"
        return Finding("torchvision", "fail", f"cannot be imported ({reason})", advice)
    return Finding("torchvision", "ok", torchvision.__version__)


def _diffusers() -> Finding:
    from diffusers import UNet2DModel

    from ..pipelines import MediffusionCounterfactualPipeline

    return Finding("pipelines", "ok", f"{UNet2DModel.__name__} and {MediffusionCounterfactualPipeline.__name__} load")


def _device() -> Finding:
    import torch

    from ..device import pick_device

    device = pick_device()
    if device.type == "cpu":
        return Finding("device", "ok", f"cpu, {os.cpu_count()} cores, {torch.get_num_threads()} threads of torch")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return Finding("device", "ok", f"{device} ({name})")


def _memory() -> Finding:
    try:
        pages, free = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_AVPHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not on every system
        return Finding("memory", "note", "this system does not say how much there is")
    size = os.sysconf("SC_PAGE_SIZE")
    text = f"{pages * size / _GIB:.1f} GiB, {free * size / _GIB:.1f} GiB unused"
    if pages * size < _MIN_MEMORY:
        return Finding(
            "memory", "note", text, "Train with a small --train_batch_size, or with --gradient_checkpointing."
        )
    return Finding("memory", "ok", text)


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free
    text = f"{free / _GIB:.1f} GiB free here"
    if free < _MIN_DISK:
        return Finding(
            "disk", "note", text, "A training keeps checkpoints: set --checkpoints_total_limit, or make room."
        )
    return Finding("disk", "ok", text)


def _cache() -> Finding:
    from huggingface_hub.constants import HF_HUB_CACHE

    place = Path(HF_HUB_CACHE)
    existing = next(folder for folder in (place, *place.parents) if folder.exists())
    if not os.access(existing, os.W_OK):
        advice = "Set HF_HOME to a folder that you may write to."
        return Finding("cache of the Hub", "fail", f"{place} cannot be written", advice)
    size = sum(file.stat().st_size for file in place.glob("**/blobs/*") if file.is_file()) if place.exists() else 0
    return Finding("cache of the Hub", "ok", f"{place}, {size / _GIB:.1f} GiB")


def _login() -> Finding:
    """Whether there is a token; the token itself is never shown."""
    from huggingface_hub import get_token

    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return Finding("login to the Hub", "note", "offline mode is on", "Unset HF_HUB_OFFLINE to reach the Hub.")
    if get_token() is None:
        return Finding("login to the Hub", "note", "none", "To publish, or to read what is private: hf auth login")
    return Finding("login to the Hub", "ok", "there is a token")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


COMMAND = Command(OptionParser(ResultOptions, description=first_paragraph(__doc__)), run)
main = COMMAND.main
