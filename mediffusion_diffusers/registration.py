"""Make diffusers resolve this package's classes when it reads a `model_index.json`."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


LIBRARY_NAME = "mediffusion_diffusers"
# What a `model_index.json` may name of this package, and the module that has it.
LOADABLE_CLASSES = {
    "JointUNet2DModel": "mediffusion_diffusers.models",
    "MultistepDDIMScheduler": "mediffusion_diffusers.schedulers",
    "SpaceToDepthAutoencoder": "mediffusion_diffusers.models",
}
TABLES = "diffusers.pipelines.pipeline_loading_utils"  # the module of diffusers that holds its tables


def register_with_diffusers() -> None:
    """Add the models and the scheduler to diffusers' table of loadable classes; called when the package is imported.

    `model_index.json` then names `["mediffusion_diffusers", "JointUNet2DModel"]`, which loads from a folder and from
    the Hub alike and survives moving a module within the package. Where diffusers is not loaded yet, which takes
    seconds, they are added as soon as it is.
    """
    if TABLES in sys.modules:
        _register(sys.modules[TABLES])
    elif not any(isinstance(finder, _WhenLoaded) for finder in sys.meta_path):
        sys.meta_path.insert(0, _WhenLoaded())


def _register(tables: ModuleType) -> None:
    for name, module in LOADABLE_CLASSES.items():
        methods = ["save_pretrained", "from_pretrained"]
        for library in (LIBRARY_NAME, module):
            tables.LOADABLE_CLASSES.setdefault(library, {})[name] = methods
        tables.ALL_IMPORTABLE_CLASSES[name] = methods


class _WhenLoaded(MetaPathFinder):
    """Waits in `sys.meta_path` for diffusers' tables, and registers once they are loaded."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != TABLES:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            loader: Any = spec.loader
            execute = loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                _register(module)

            loader.exec_module = exec_module
        return spec
