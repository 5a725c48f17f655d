import os
from pathlib import Path

import pytest
from PIL import Image

from mediffusion_diffusers.reports import image_explanations


@pytest.fixture
def written(monkeypatch):
    """The files that are written, in their order."""
    paths = []

    def replace(source, target, replace=os.replace):
        replace(source, target)
        paths.append(Path(target))

    monkeypatch.setattr("mediffusion_diffusers.atomic_files.os.replace", replace)
    return paths


@pytest.fixture
def without_animations(monkeypatch):
    """Draw no frame of a GIF: they take longer than all else on a page."""
    for name in ("transition_frames", "sweep_frames"):
        monkeypatch.setattr(image_explanations, name, lambda _: [Image.new("RGB", (8, 8))] * 2)
