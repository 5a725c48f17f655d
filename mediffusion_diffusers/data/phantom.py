"""Chest phantoms: procedural chest-X-ray-like pictures with findings, their boxes and true counterfactuals.

The same patient can be rendered with and without each finding, noise included, so that the change a counterfactual
*should* make is known. Phantoms are made up: nothing about them was measured on people.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tqdm.auto import tqdm

from ..image_processor import numpy_to_pil
from ..options import Range, check_number
from .metadata import read_metadata
from .phantom_anatomy import PHANTOM_LABELS, PhantomPatients, draw_patient, paint, with_findings_of
from .phantom_shortcut import Shortcut, paint_markers
from .pictures import encode_png
from .schema import MULTI_LABEL, DatasetInfo, make_row
from .writer import check_output_folder, write_prepared


PHANTOM_VERSION = 1  # changes whenever the same (seed, index) would be drawn differently
PREVALENCE = 0.25  # of each finding, independently of the others
BOX_SHARE = 0.15  # a box bounds what changes by more than this share of the finding's largest change
MIN_CANVAS = 64  # the smallest size that is painted directly; smaller pictures are averages of it
# Population index of the first patient of each split: the test patients stay the same however many are trained on.
SPLIT_START = {"train": 0, "validation": 1_000_000_000, "test": 2_000_000_000}
WAYS_SEED = 777  # of the patients whose findings `true_ways` takes
_MIN_VISIBLE = 1 / 255  # a finding that changes no pixel by one grey level of 8 bits has no box
_CHUNK = 64  # patients painted at once: small enough for the processor's cache
_ROWS = 250  # patients in memory at once while a dataset is written

__all__ = [
    "PHANTOM_LABELS",
    "PhantomPatients",
    "finding_boxes",
    "finding_effects",
    "load_patients",
    "prepare_phantoms",
    "render",
    "sample_patients",
    "true_counterfactual",
    "true_ways",
]


def sample_patients(num: int, seed: int, start: int = 0) -> tuple[PhantomPatients, torch.Tensor]:
    """Draw the patients `start` ... `start + num - 1` of a population, and their findings.

    Every patient depends on `(seed, index)` alone, not on `num` or `start`.

    Args:
        num: number of patients, at least 1.
        seed: the population, at least 0.
        start: population index of the first patient.

    Returns:
        The patients, and their labels of shape `(num, 5)`: 1.0 or 0.0, each finding with probability `PREVALENCE`.

    Raises:
        ValueError: if an argument is out of range.
    """
    if num < 1:
        raise ValueError(f"`num` must be at least 1 patient, but got {num}.")
    return load_patients(seed, range(start, start + num))


def load_patients(seed: int, index: Sequence[int] | np.ndarray) -> tuple[PhantomPatients, torch.Tensor]:
    """Draw the patients with the given population indices, and their findings: see `sample_patients`."""
    if seed < 0 or min(index) < 0:
        raise ValueError(f"`seed` and patient indices must be at least 0, but got seed {seed} and {min(index)}.")
    parameters, textures, chances = zip(*(draw_patient(seed, int(i)) for i in index), strict=True)
    patients = PhantomPatients(
        seed=seed,
        index=np.asarray(index, dtype=np.int64),
        parameters=torch.from_numpy(np.stack(parameters)),
        textures={name: torch.from_numpy(np.stack([grid[name] for grid in textures])) for name in textures[0]},
    )
    return patients, (torch.from_numpy(np.stack(chances)) < PREVALENCE).float()


def render(
    patients: PhantomPatients, labels: torch.Tensor, image_size: int, show_progress: bool = False
) -> torch.Tensor:
    """Render patients with the given findings.

    Pictures below 64 pixels are area averages of a larger painting, as a coarser detector would see the same body.
    Noise belongs to the patient: two renderings that differ in one finding differ in that finding only.

    Args:
        patients: `num` patients.
        labels: 1 (present) or 0, shape `(num, 5)`, in the order of `PHANTOM_LABELS`.
        image_size: side of the picture in pixels, at least 8.
        show_progress: show a progress bar.

    Returns:
        Shape `(num, 1, image_size, image_size)`, float32 in [0, 1].

    Raises:
        ValueError: if `labels` has another shape or other values, or if `image_size` is too small.
    """
    labels = torch.as_tensor(labels, dtype=torch.float32)
    if labels.shape != (len(patients), len(PHANTOM_LABELS)):
        raise ValueError(
            f"`labels` must have shape ({len(patients)}, {len(PHANTOM_LABELS)}), one column for each of "
            f"{', '.join(PHANTOM_LABELS)}, but got {tuple(labels.shape)}."
        )
    if not ((labels == 0) | (labels == 1)).all():
        raise ValueError("`labels` must hold 0 or 1 only: a phantom cannot be drawn with an unknown finding.")
    if image_size < 8:
        raise ValueError(f"`image_size` must be at least 8 pixels, but got {image_size}.")
    pooling = math.ceil(MIN_CANVAS / image_size)
    chunk = max(1, _CHUNK * MIN_CANVAS**2 // (image_size * pooling) ** 2)
    images = []
    with tqdm(total=len(patients), desc="Rendering phantoms", unit="image", disable=not show_progress) as progress:
        for first in range(0, len(patients), chunk):
            rows = slice(first, first + chunk)
            picture = paint(patients.select(rows), labels[rows], image_size * pooling).clamp(0, 1)
            images.append(F.avg_pool2d(picture[:, None], pooling))
            progress.update(len(picture))
    return torch.cat(images)


def finding_effects(patients: PhantomPatients, labels: torch.Tensor, label: int, image_size: int) -> torch.Tensor:
    """What one finding changes in each picture: with it minus without it, the other findings as in `labels`.

    Args:
        patients: `num` patients.
        labels: shape `(num, 5)`; the column `label` is not used.
        label: column of the finding.
        image_size: side of the picture in pixels.

    Returns:
        Signed differences, shape `(num, 1, image_size, image_size)`, in [-1, 1].
    """
    present, absent = labels.clone(), labels.clone()
    present[:, label], absent[:, label] = 1, 0
    return render(patients, present, image_size) - render(patients, absent, image_size)


def finding_boxes(
    patients: PhantomPatients, labels: torch.Tensor, images: torch.Tensor
) -> list[list[dict[str, float]]]:
    """Ground-truth boxes of the findings that are present.

    A box bounds the pixels that the finding changes by more than `BOX_SHARE` of its largest change.

    Args:
        patients: `num` patients.
        labels: shape `(num, 5)`.
        images: `render(patients, labels, image_size)`.

    Returns:
        For each patient a list of `{"label", "x", "y", "width", "height"}`: the column of the finding, and the box in
        relative units (0 to 1, from the top left corner).
    """
    image_size = images.shape[-1]
    boxes: list[list[dict[str, float]]] = [[] for _ in range(len(patients))]
    for label in range(len(PHANTOM_LABELS)):
        rows = np.flatnonzero(np.asarray(labels)[:, label] == 1)
        if len(rows) == 0:
            continue
        without = labels[rows].clone()
        without[:, label] = 0
        effects = (images[rows] - render(patients.select(rows), without, image_size))[:, 0].abs().numpy()
        for row, effect in zip(rows, effects, strict=True):
            if effect.max() < _MIN_VISIBLE:
                continue
            box = {key: value / image_size for key, value in _bounding_box(effect > BOX_SHARE * effect.max()).items()}
            boxes[row].append({"label": label, **box})
    return boxes


def _bounding_box(mask: np.ndarray) -> dict[str, int]:
    """The smallest box around the true pixels of a mask, in pixels."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    top, left = int(rows[0]), int(columns[0])
    return {"x": left, "y": top, "width": int(columns[-1]) - left + 1, "height": int(rows[-1]) - top + 1}


def prepare_phantoms(
    output_dir: str | os.PathLike[str],
    num_train: int,
    num_validation: int,
    num_test: int,
    image_size: int = 32,
    seed: int = 0,
    shortcut: str | None = None,
    overwrite: bool = False,
    show_progress: bool = True,
) -> DatasetInfo:
    """Write phantoms as a prepared dataset: pictures, labels, boxes, and in `metadata` what renders a patient again.

    Args:
        output_dir: folder to write.
        num_train: training patients; one picture each.
        num_validation: validation patients, 0 for no such split.
        num_test: test patients, 0 for no such split.
        image_size: side of the pictures in pixels.
        seed: the population: two seeds share no patient.
        shortcut: a finding and a share, such as `"Effusion:0.9"`: plant a marker that goes with the finding, see
            [`~mediffusion_diffusers.data.phantom_shortcut.Shortcut`]. The patients are those of a dataset without.
        overwrite: replace a prepared dataset that is already there.
        show_progress: show a progress bar.

    Returns:
        The dataset's info as written.

    Raises:
        ValueError: if a number is negative, all are 0, or `output_dir` is taken.
    """
    num_patients = {"train": num_train, "validation": num_validation, "test": num_test}
    if min(num_patients.values()) < 0 or sum(num_patients.values()) == 0:
        raise ValueError(f"The numbers of patients must be at least 0, and one above 0, but got {num_patients}.")
    planted = None if shortcut is None else Shortcut.parse(shortcut)
    check_output_folder(output_dir, overwrite)
    info = DatasetInfo(
        name="phantom",
        source="mediffusion_diffusers.data.phantom (procedural; no person was imaged)",
        licence="Apache-2.0",
        attribution="The mediffusion-diffusers authors",
        problem_type=MULTI_LABEL,
        label_names=list(PHANTOM_LABELS),
        channels=1,
        image_size=image_size,
        notes=[
            f"Population seed {seed}, phantom version {PHANTOM_VERSION}; prevalence {PREVALENCE} of each finding.",
            "Findings are independent of one another. Boxes bound what a finding changes in its picture.",
            *([] if planted is None else [planted.sentence()]),
        ],
    )
    wanted = {split: num for split, num in num_patients.items() if num}
    return write_prepared(
        output_dir,
        {split: _rows(info, SPLIT_START[split], num, seed, planted) for split, num in wanted.items()},
        info,
        num_rows=wanted,
        overwrite=overwrite,
        show_progress=show_progress,
    )


def _rows(
    info: DatasetInfo, start: int, num: int, seed: int, shortcut: Shortcut | None = None
) -> Iterator[dict[str, Any]]:
    """The rows of one split, a few hundred patients at a time."""
    assert info.image_size is not None
    for first in range(start, start + num, _ROWS):
        patients, labels = sample_patients(min(_ROWS, start + num - first), seed, first)
        images = render(patients, labels, info.image_size)
        boxes = finding_boxes(patients, labels, images)
        markers = [None] * len(patients) if shortcut is None else shortcut.markers(seed, patients.index, labels)
        pictures = numpy_to_pil(paint_markers(images, markers).permute(0, 2, 3, 1).numpy())
        for index, picture, found, findings, marker in zip(
            patients.index.tolist(), pictures, boxes, labels.tolist(), markers, strict=True
        ):
            metadata = {"phantom_version": PHANTOM_VERSION, "phantom_seed": seed, "phantom_index": index}
            if shortcut is not None:
                metadata |= {"has_marker": marker is not None, "marker": marker}
            yield make_row(
                info,
                encode_png(picture),
                image_id=f"phantom-{seed}-{index}",
                labels=findings,
                boxes=found,
                metadata=metadata,
            )


def true_counterfactual(row: Mapping[str, Any], label: str, image_size: int | None = None) -> torch.Tensor:
    """Render the patient of a prepared phantom row with one finding toggled: the answer a counterfactual should give.

    Args:
        row: a row of a prepared phantom dataset, with `labels` and `metadata` (and `image`, if `image_size` is None).
        label: the finding to remove if the row has it, or to add if not.
        image_size: side of the picture in pixels; None takes the size of the row's image.

    Returns:
        Shape `(1, image_size, image_size)`, float32 in [0, 1].

    Raises:
        ValueError: if the label is unknown or the row is not a phantom of this version.
    """
    patients, labels, column, size = _patient_of(row, label, image_size)
    labels[:, column] = 1 - labels[:, column]
    return _render_with_marker(row, patients, labels, size)[0]


def true_ways(
    row: Mapping[str, Any], label: str, num_ways: int, image_size: int | None = None, seed: int = WAYS_SEED
) -> torch.Tensor:
    """Render the patient of a prepared phantom row with one finding present in many ways, each of them true.

    A finding that is added may lie on either side, be large or small, faint or dense: one counterfactual among many
    would judge a true addition elsewhere as wrong. So the finding's own parameters are drawn anew, as other patients
    have them; the patient stays.

    Args:
        row: as for `true_counterfactual`, and so are the others.
        label: the finding to show.
        num_ways: ways to draw, at least 1; the first is the patient's own.
        image_size: side of the picture in pixels; None takes the size of the row's image.
        seed: the population that the other ways are taken from.

    Returns:
        Shape `(num_ways, 1, image_size, image_size)`, float32 in [0, 1].

    Raises:
        ValueError: as `true_counterfactual`, and if `num_ways` is below 1.
    """
    check_number("num_ways", num_ways, Range(at_least=1), whole=True)
    patients, labels, column, size = _patient_of(row, label, image_size)
    many = patients.select(np.zeros(num_ways, dtype=np.int64))
    if num_ways > 1:
        donors, _ = load_patients(seed, range(num_ways - 1))
        many = with_findings_of(many, donors, label, first=1)
    labels[:, column] = 1
    return _render_with_marker(row, many, labels.repeat(num_ways, 1), size)


def _render_with_marker(
    row: Mapping[str, Any], patients: PhantomPatients, labels: torch.Tensor, size: int
) -> torch.Tensor:
    """Render patients, with the marker that the row has, if any: it belongs to the picture and not to a finding."""
    images = render(patients, labels, size)
    return paint_markers(images, [read_metadata(row["metadata"]).get("marker")] * len(images))


def _patient_of(
    row: Mapping[str, Any], label: str, image_size: int | None
) -> tuple[PhantomPatients, torch.Tensor, int, int]:
    """The patient of a prepared row, its labels, the column of a finding, and the size to render at."""
    if label not in PHANTOM_LABELS:
        raise ValueError(f"`label` must be one of {', '.join(PHANTOM_LABELS)}, but got {label!r}.")
    metadata = read_metadata(row["metadata"])
    if metadata.get("phantom_version") != PHANTOM_VERSION:
        raise ValueError(
            f"`row` must be a phantom of version {PHANTOM_VERSION}, but its metadata says "
            f"{metadata.get('phantom_version')!r}. Prepare the phantoms again with this version of the package."
        )
    patients, _ = load_patients(metadata["phantom_seed"], [metadata["phantom_index"]])
    labels = torch.as_tensor(row["labels"], dtype=torch.float32)[None].clone()
    return patients, labels, PHANTOM_LABELS.index(label), image_size or row["image"].size[0]
