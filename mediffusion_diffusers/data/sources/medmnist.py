"""MedMNIST: small standardised medical images in one `.npz` file per dataset, at 28, 64, 128 or 224 pixels.

Yang et al., "MedMNIST v2 - A large-scale lightweight benchmark for 2D and 3D biomedical image classification",
Scientific Data 2023. The label names are those of the publication's Table 2 and of the official package.
"""

from __future__ import annotations

import hashlib
import os
import re
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from ..conversion import SourceImage, write_sources
from ..schema import MULTI_LABEL, SINGLE_LABEL, DatasetInfo
from ..writer import ConversionReport, check_output_folder


_ORGANS = (
    *("bladder", "femur-left", "femur-right", "heart", "kidney-left", "kidney-right", "liver", "lung-left"),
    *("lung-right", "pancreas", "spleen"),
)
LABEL_NAMES: dict[str, tuple[str, ...]] = {
    "pathmnist": (
        *("adipose", "background", "debris", "lymphocytes", "mucus", "smooth muscle", "normal colon mucosa"),
        *("cancer-associated stroma", "colorectal adenocarcinoma epithelium"),
    ),
    "chestmnist": (
        *("atelectasis", "cardiomegaly", "effusion", "infiltration", "mass", "nodule", "pneumonia", "pneumothorax"),
        *("consolidation", "edema", "emphysema", "fibrosis", "pleural", "hernia"),
    ),
    "dermamnist": (
        *("actinic keratoses and intraepithelial carcinoma", "basal cell carcinoma", "benign keratosis-like lesions"),
        *("dermatofibroma", "melanoma", "melanocytic nevi", "vascular lesions"),
    ),
    "octmnist": ("choroidal neovascularization", "diabetic macular edema", "drusen", "normal"),
    "pneumoniamnist": ("normal", "pneumonia"),
    "retinamnist": ("0", "1", "2", "3", "4"),
    "breastmnist": ("malignant", "normal, benign"),
    "bloodmnist": (
        *("basophil", "eosinophil", "erythroblast", "immature granulocytes", "lymphocyte", "monocyte", "neutrophil"),
        "platelet",
    ),
    "tissuemnist": (
        *("Collecting Duct, Connecting Tubule", "Distal Convoluted Tubule", "Glomerular endothelial cells"),
        *("Interstitial endothelial cells", "Leukocytes", "Podocytes", "Proximal Tubule Segments"),
        "Thick Ascending Limb",
    ),
    "organamnist": _ORGANS,
    "organcmnist": _ORGANS,
    "organsmnist": _ORGANS,
}
_MOST_CLASSES = 100_000
_SPLITS = {"train": "train", "validation": "val", "test": "test"}


def convert_medmnist(
    npz_file: str | os.PathLike[str],
    output_dir: str | os.PathLike[str],
    *,
    image_size: int | None = None,
    num_workers: int | None = None,
    overwrite: bool = False,
) -> DatasetInfo:
    """Convert a MedMNIST file with the official splits.

    Labels of shape `(N, 1)` are classes of a single-label dataset, those of shape `(N, K)` of a multi-label one. The
    files name no patients, so every image counts as a patient of its own.

    Args:
        npz_file: e.g. `pneumoniamnist.npz` or `chestmnist_128.npz`; its name tells which label names apply. Another
            name gives the labels the numbers as names.
        output_dir: prepared dataset to write.
        image_size: reduce images to this side, in pixels.
        num_workers: images that are read at a time, by processes where there are many of them.
        overwrite: replace a prepared dataset at `output_dir`.

    Raises:
        ValueError: if the file is no MedMNIST file of two-dimensional images, or its labels contradict the names.
    """
    path = Path(npz_file)
    check_output_folder(output_dir, overwrite)
    arrays = _read_arrays(path)
    name = re.sub(r"_\d+$", "", path.stem.lower())
    labels = {split: arrays[f"{key}_labels"] for split, key in _SPLITS.items()}
    images = {split: arrays[f"{key}_images"] for split, key in _SPLITS.items()}
    multi_label = labels["train"].shape[1] > 1
    label_names = _label_names(name, labels, multi_label)
    report = ConversionReport(found=sum(map(len, labels.values())))
    if name not in LABEL_NAMES:
        report.notes.append(f"{path.name} is not the name of a known MedMNIST dataset: classes are named by numbers.")
    info = DatasetInfo(
        name=name,
        source="MedMNIST v2, https://medmnist.com",
        licence="CC BY-NC 4.0 (non-commercial)" if name == "dermamnist" else "CC BY 4.0",
        attribution="J. Yang et al., MedMNIST v2, Scientific Data 2023, and the source that it names for this dataset",
        problem_type=MULTI_LABEL if multi_label else SINGLE_LABEL,
        label_names=list(label_names),
        channels=3 if images["train"].ndim == 4 else 1,
        image_size=image_size,
        notes=["Official splits. The files name no patients: every image counts as one."],
    )
    sources = {
        split: [
            SourceImage(
                f"{_SPLITS[split]}-{row:06d}",
                _Pixels(images[split][row]),
                {"labels": labels[split][row].tolist()} if multi_label else {"label": int(labels[split][row, 0])},
            )
            for row in range(len(labels[split]))
        ]
        for split in _SPLITS
    }
    return write_sources(output_dir, sources, info, report, num_workers=num_workers, overwrite=overwrite)


class _Pixels:
    """Turns an array into a picture when it is asked for."""

    def __init__(self, array: np.ndarray):
        self.array = array

    @property
    def content(self) -> str:
        """What tells the picture from others."""
        return hashlib.sha256(self.array.tobytes()).hexdigest()

    def __call__(self) -> Image.Image:
        return Image.fromarray(self.array)


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Load and check the six arrays; pickled content is refused."""
    keys = [f"{key}_{kind}" for key in _SPLITS.values() for kind in ("images", "labels")]
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = [key for key in keys if key not in file]
            if missing:
                raise ValueError(f"it lacks {missing} and has {sorted(file.files)}")
            arrays = {key: file[key] for key in keys}
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"`npz_file` must be a MedMNIST file with {keys}, but {str(path)!r} is not: {error}."
        ) from error
    for key in _SPLITS.values():
        images, labels = arrays[f"{key}_images"], arrays[f"{key}_labels"]
        if images.dtype != np.uint8 or images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[-1] != 3):
            raise ValueError(
                f"{path.name}: '{key}_images' must be uint8 of shape (N, height, width) or (N, height, width, 3), but "
                f"is {images.dtype} of shape {images.shape}. Volumes (3D datasets) are not supported."
            )
        if labels.ndim != 2 or len(labels) != len(images) or not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(
                f"{path.name}: '{key}_labels' must be integers of shape ({len(images)}, 1) or ({len(images)}, K), but "
                f"is {labels.dtype} of shape {labels.shape}."
            )
    return arrays


def _label_names(name: str, labels: dict[str, np.ndarray], multi_label: bool) -> tuple[str, ...]:
    """The known names, or numbers; checked against the labels that occur."""
    highest = max(int(array.max(initial=0)) for array in labels.values())
    count = labels["train"].shape[1] if multi_label else highest + 1
    if count > _MOST_CLASSES:
        raise ValueError(f"The labels of {name}.npz must be numbers of classes from 0, but one is {highest}.")
    names = LABEL_NAMES.get(name, tuple(str(index) for index in range(count)))
    if (multi_label and len(names) != count) or count > len(names):
        raise ValueError(
            f"{name} has {len(names)} classes ({', '.join(names)}), but the file has {count}. Is it named after "
            "another dataset?"
        )
    return names
