"""Every benchmark can be started: what one imports of another is still there."""

import importlib
from pathlib import Path

import pytest


BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.parametrize("name", sorted(path.stem for path in BENCHMARKS.glob("*.py")))
def test_it_imports(name):
    assert importlib.import_module(name)
