"""Chest phantoms with everything known about them: findings, boxes, and the same patient with one finding toggled."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image

from ..data.phantom import PHANTOM_LABELS, SPLIT_START, finding_boxes, load_patients, render
from ..image_processor import numpy_to_pil


IMAGE_SIZE = 64
_SEED = 0
# Patients of the test split, which no training has seen: each finding alone, two together, none.
_PATIENTS = (2, 38, 7, 25, 31, 41, 9)


@dataclass(frozen=True)
class ExampleImage:
    """A chest phantom and the truth about it.

    Args:
        name: of the patient, such as `"phantom-0-2000000003"`.
        image: the picture, grey, 8 bit.
        labels: the findings that it shows, perhaps none.
        boxes: the box of each finding, in relative units as the pipelines' `mask` takes them: `x`, `y`, `width`,
            `height` from the top left corner.
        counterfactuals: for each finding the true answer: the same patient without the finding if the image shows
            it, else with it. Where a finding could be added in many ways, this is one of them.
    """

    name: str
    image: Image.Image
    labels: tuple[str, ...]
    boxes: Mapping[str, Mapping[str, float]] = field(repr=False)
    counterfactuals: Mapping[str, Image.Image] = field(repr=False)

    def png(self) -> bytes:
        """The picture as a PNG file."""
        buffer = io.BytesIO()
        self.image.save(buffer, format="PNG")
        return buffer.getvalue()

    def dicom(self) -> bytes:
        """The picture as a DICOM file: a computed radiograph of an invented patient, 12 bits deep.

        Raises:
            ImportError: if pydicom is not installed (`pip install "mediffusion-diffusers[dicom]"`).
        """
        from .dicom_file import dicom_bytes

        return dicom_bytes(self.name, self.image)


def images(image_size: int = IMAGE_SIZE) -> list[ExampleImage]:
    """A handful of chest phantoms, drawn when asked for; no training has seen these patients.

    Args:
        image_size: height and width in pixels, at least 8; 64 is the size that the checkpoint was trained on.

    Raises:
        ValueError: if `image_size` is below 8.
    """
    patients, labels = load_patients(_SEED, [SPLIT_START["test"] + number for number in _PATIENTS])
    pixels = render(patients, labels, image_size)
    pictures = _pictures(pixels)
    boxes = finding_boxes(patients, labels, pixels)
    toggled = []
    for column in range(len(PHANTOM_LABELS)):
        others = labels.clone()
        others[:, column] = 1 - others[:, column]
        toggled.append(_pictures(render(patients, others, image_size)))
    return [
        ExampleImage(
            name=f"phantom-{_SEED}-{patients.index[row]}",
            image=pictures[row],
            labels=tuple(name for name, value in zip(PHANTOM_LABELS, labels[row], strict=True) if value == 1),
            boxes={PHANTOM_LABELS[int(box.pop("label"))]: box for box in boxes[row]},
            counterfactuals={name: toggled[column][row] for column, name in enumerate(PHANTOM_LABELS)},
        )
        for row in range(len(pictures))
    ]


def _pictures(pixels: torch.Tensor) -> list[Image.Image]:
    """Grey pictures of pixels in [0, 1], `(num, 1, height, width)`."""
    return numpy_to_pil(np.ascontiguousarray(pixels.permute(0, 2, 3, 1).numpy()))
