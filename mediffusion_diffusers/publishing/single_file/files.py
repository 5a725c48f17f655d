"""The files beside the weights of a published checkpoint, which work where this package is not installed."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

from ...atomic_files import read_json, write_text
from ...registration import LIBRARY_NAME
from .closure import Closure
from .source import PACKAGE, Definition, Module
from .text import file_text


_NOTE = """Generated from the package `mediffusion_diffusers` by `make bundle`. Do not edit: edit the package.
Needs torch, diffusers, transformers and pillow alone. Research use only: not a medical device."""
_MODELS = {
    "JointUNet2DModel": "models/joint_unet_2d.py",
    "SpaceToDepthAutoencoder": "models/autoencoder_space_to_depth.py",
}
_SCHEDULERS = {"MultistepDDIMScheduler": "schedulers/scheduling_multistep_ddim.py"}
# The class of each file, and the module where it is defined.
PIPELINES = {
    "mediffusion_classify": ("MediffusionClassifyPipeline", "pipelines/classify.py"),
    "mediffusion_guided": ("MediffusionGuidedPipeline", "pipelines/guided.py"),
    "mediffusion_counterfactual": ("MediffusionCounterfactualPipeline", "pipelines/counterfactual/pipeline.py"),
}
# diffusers looks in a component's folder for a file with the name of the library in `model_index.json`.
COMPONENT_FILE = f"{LIBRARY_NAME}.py"


@lru_cache(maxsize=1)
def single_files() -> dict[str, str]:
    """Text of every self-contained file by its name: one per pipeline, and one for the models and the scheduler.

    The three components share a file: diffusers gives the copies in their folders one module name, so that a later
    one takes the place of an earlier one.

    Raises:
        ValueError: if the package's code does not fit into one namespace, naming where.
    """
    models = [_definition(*one) for one in _MODELS.items()]
    schedulers = [_definition(*one) for one in _SCHEDULERS.items()]
    docstring = f"The models and the scheduler of a Mediffusion checkpoint.\n\n{_NOTE}\n"
    texts = {COMPONENT_FILE: file_text(docstring, Closure.of([*models, *schedulers]))}
    base = _definition("MediffusionPipeline", "pipelines/base.py")
    for name, (class_name, module) in PIPELINES.items():
        pipeline = _definition(class_name, module)
        docstring = f"{pipeline.module.docstring}\n\n{_NOTE}\n"
        closure = Closure.of([base, pipeline], elsewhere=models)
        texts[f"{name}.py"] = file_text(docstring, closure, merged={pipeline: base})
    return texts


def files_beside_weights(folder: Path) -> dict[str, str]:
    """Text of the files that a pipeline folder needs, by their path in it.

    Args:
        folder: holds `model_index.json`.
    """
    index = read_json(folder / "model_index.json")
    own = [name for name, entry in index.items() if isinstance(entry, list) and entry[:1] == [LIBRARY_NAME]]
    texts = single_files()
    paths = {f"{name}.py": texts[f"{name}.py"] for name in PIPELINES}
    return paths | {f"{name}/{COMPONENT_FILE}": texts[COMPONENT_FILE] for name in own}


def write_files_beside_weights(folder: str | os.PathLike[str]) -> None:
    """Make a pipeline folder work where this package is not installed, as publishing does for what it sends.

    Args:
        folder: written by a pipeline's `save_pretrained`.
    """
    for path, text in files_beside_weights(Path(folder)).items():
        write_text(Path(folder) / path, text)


def outdated_files(folder: Path) -> list[str]:
    """Names of the files in a folder that are not, or no longer, what the package generates."""
    return [
        name
        for name, text in single_files().items()
        if not (folder / name).is_file() or (folder / name).read_text(encoding="utf-8") != text
    ]


def write_single_files(folder: Path) -> None:
    """Write every file into a folder, each whole or not at all."""
    for name, text in single_files().items():
        write_text(folder / name, text)


def _definition(class_name: str, module: str) -> Definition:
    return Module.at(PACKAGE / module).by_name[class_name]
