"""The checkpoint and the images that come with the package."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from mediffusion_diffusers import (
    MediffusionClassifyPipeline,
    MediffusionCounterfactualPipeline,
    examples,
)
from mediffusion_diffusers.data.phantom import PHANTOM_LABELS


@pytest.fixture(scope="module")
def images():
    return examples.images()


@pytest.fixture(scope="module")
def pipe():
    return MediffusionCounterfactualPipeline.from_pretrained(examples.checkpoint())


def test_every_finding_is_shown_alone_and_there_is_an_image_of_none(images):
    shown = [image.labels for image in images]
    assert {(name,) for name in PHANTOM_LABELS} <= set(shown)
    assert () in shown and any(len(labels) > 1 for labels in shown)
    assert all(set(image.boxes) == set(image.labels) for image in images)


def test_the_true_counterfactual_changes_the_image_in_the_box_of_its_finding(images):
    for image in images:
        assert set(image.counterfactuals) == set(PHANTOM_LABELS)
        for name in image.labels:
            change = np.abs(np.asarray(image.image, float) - np.asarray(image.counterfactuals[name], float))
            height, width = change.shape
            box = image.boxes[name]
            rows = slice(round(box["y"] * height), round((box["y"] + box["height"]) * height))
            columns = slice(round(box["x"] * width), round((box["x"] + box["width"]) * width))
            inside = np.zeros_like(change, dtype=bool)
            inside[rows, columns] = True
            assert change[inside].mean() > 4 * change[~inside].mean(), (image.name, name)


def test_files_hold_the_picture(images, tmp_path):
    image = images[0]
    assert Image.open(io.BytesIO(image.png())).tobytes() == image.image.tobytes()
    pytest.importorskip("pydicom")
    from mediffusion_diffusers.data.dicom import read_dicom

    (tmp_path / "image.dcm").write_bytes(image.dicom())
    read = np.asarray(read_dicom(tmp_path / "image.dcm"), dtype=float) / 257  # 16 bits to 8
    assert np.abs(read - np.asarray(image.image)).max() < 0.01
    assert image.dicom() == image.dicom()


def test_the_checkpoint_is_small_says_what_it_is_and_names_no_place():
    folder = examples.checkpoint()
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 9e6
    for path in files:
        if path.suffix in (".json", ".md"):
            text = path.read_text(encoding="utf-8")
            assert "/tmp/" not in text and "/home/" not in text and "_name_or_path" not in text
    assert "Not a medical device" in (folder / "README.md").read_text(encoding="utf-8").replace("not a m", "Not a m")
    weights = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    assert json.loads((folder / "unet" / "config.json").read_text())["label_thresholds"] is not None


def test_it_loads_in_full_precision_and_knows_the_findings(pipe, images):
    assert pipe.unet.dtype == torch.float32 and pipe.unet.label_names == list(PHANTOM_LABELS)
    probabilities = MediffusionClassifyPipeline(**pipe.components)([image.image for image in images]).probabilities
    truth = np.array([[name in image.labels for name in PHANTOM_LABELS] for image in images])
    assert probabilities[truth].mean() > probabilities[~truth].mean() + 0.3


def test_it_explains(pipe, images):
    output = pipe(images[0].image, away="Cardiomegaly", generator=torch.Generator().manual_seed(0))
    column = pipe.unet.label_names.index("Cardiomegaly")
    assert output.probabilities_after[0, column] < output.probabilities_before[0, column] - 0.2
