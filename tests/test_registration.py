"""The package announces its models to diffusers when it is imported, and is light to import."""

import subprocess
import sys

import diffusers.pipelines.pipeline_loading_utils as loading
import pytest

import mediffusion_diffusers
from mediffusion_diffusers.registration import LIBRARY_NAME, LOADABLE_CLASSES, register_with_diffusers


def test_diffusers_still_reads_the_tables_that_are_written():
    """They are private: a new diffusers that drops them must be noticed here and not by a user."""
    assert loading.LOADABLE_CLASSES["diffusers"]["ModelMixin"] == ["save_pretrained", "from_pretrained"]
    assert loading.ALL_IMPORTABLE_CLASSES["ModelMixin"] == ["save_pretrained", "from_pretrained"]


@pytest.mark.parametrize("name", LOADABLE_CLASSES)
def test_models_are_registered_under_the_package(name):
    assert loading.LOADABLE_CLASSES[LIBRARY_NAME][name] == ["save_pretrained", "from_pretrained"]
    assert name in loading.ALL_IMPORTABLE_CLASSES
    assert hasattr(mediffusion_diffusers, name)  # diffusers looks for it at the package's top level


def test_registering_twice_changes_nothing():
    before = {key: dict(value) for key, value in loading.LOADABLE_CLASSES.items()}
    register_with_diffusers()
    assert {key: dict(value) for key, value in loading.LOADABLE_CLASSES.items()} == before


def test_public_names_exist():
    assert all(hasattr(mediffusion_diffusers, name) for name in mediffusion_diffusers.__all__)


def test_import_is_light():
    heavy = ("matplotlib", "sklearn", "datasets", "pydicom", "pandas", "evaluate", "gradio", "torchvision")
    script = f"import sys, mediffusion_diffusers; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
