"""What a run trains on: the images and labels of a prepared dataset, who is labelled, and who is held out."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from diffusers.utils import logging

from ...data.schema import DatasetInfo, label_matrix, load_info, load_prepared, parquet_files
from ...data.splits import LabelledSplit, limit_by_patient, patient_validation_split
from ...data.transforms import ImageTransform
from ..config import DataOptions
from .image_rows import ImageRows


logger = logging.get_logger(__name__)

# What a card must state about the data, and what only the dataset's converter knows.
_CARD_FIELDS = ("source", "licence", "attribution")


@dataclass
class TrainingData:
    """Images and labels of a run.

    Args:
        info: what the dataset is.
        folder: where it lies.
        rows: images of the training split.
        labels: their labels, float32 `(num_rows, num_labels)`, NaN = unknown.
        train_indices: rows for the diffusion stream: all of them, labelled ones included.
        labelled_indices: rows for the labelled stream.
        validation_rows: images to validate on, or `None`.
        validation_labels: their labels, `(len(validation_rows), num_labels)`.
        validation_indices: rows of `validation_rows` to use.
        split: the labelled split, if one was named.
    """

    info: DatasetInfo
    folder: Path
    rows: ImageRows
    labels: np.ndarray
    train_indices: np.ndarray
    labelled_indices: np.ndarray
    validation_rows: ImageRows | None = None
    validation_labels: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), dtype=np.float32))
    validation_indices: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    split: LabelledSplit | None = None


def dataset_folder(options: DataOptions) -> Path:
    """The prepared folder, downloaded from the Hub if it is named by `dataset_name`."""
    if options.dataset_dir is not None:
        return Path(options.dataset_dir)
    from huggingface_hub import snapshot_download

    patterns = ["data/*.parquet", "dataset_info.json"]
    return Path(
        snapshot_download(
            str(options.dataset_name),
            repo_type="dataset",
            revision=options.dataset_revision,
            allow_patterns=patterns,
        )
    )


def train_transform(options: DataOptions, resolution: int, channels: int) -> ImageTransform:
    """The training images' transform, with the augmentation that the options ask for."""
    scale = options.random_crop_scale
    return ImageTransform(
        resolution,
        channels,
        crop_scale=None if scale is None else (scale[0], scale[1]),
        horizontal_flip=options.horizontal_flip,
        shift=options.random_shift,
        intensity=options.intensity_jitter,
        rotation=options.random_rotation,
    )


def num_workers(options: DataOptions, rows: ImageRows) -> int:
    """Image-reading processes: none if the images are in memory."""
    if options.dataloader_num_workers is not None:
        return options.dataloader_num_workers
    return 0 if rows.is_cached else 2


def load_labelled_split(path: str) -> LabelledSplit:
    """Read the split file that `labelled_split` names.

    Raises:
        ValueError: if it is none, or was changed.
    """
    try:
        return LabelledSplit.load(path)
    except ValueError as error:
        raise ValueError(f"`labelled_split` cannot be used: {error}") from error


def load_training_data(
    options: DataOptions, seed: int, labelled_split: str | None = None, needs_labels: bool = True
) -> TrainingData:
    """Load the training and validation images that the options name.

    The validation images are the dataset's validation split, or else patients held out of the training split. With a
    labelled split they are never more than the labelled images: whoever has few labels has few to validate on too.

    Args:
        options: which images.
        seed: of what is drawn to be held out.
        labelled_split: path of the split file; `None` takes every training image with a known label.
        needs_labels: whether it is an error that nothing is labelled.

    Raises:
        ValueError: if the folder is no prepared dataset, holds no pictures, or the labelled split is empty or belongs
            to another dataset.
    """
    folder = dataset_folder(options)
    info = load_info(folder)
    split = None if labelled_split is None else load_labelled_split(labelled_split)
    if split is not None and split.dataset != info.name:
        raise ValueError(
            f"`labelled_split` was drawn from dataset {split.dataset!r}, but {str(folder)!r} holds {info.name!r}. "
            "Draw a split of this dataset with `mediffusion prepare split`."
        )

    rows = ImageRows(load_prepared(folder, "train"), options.cache_images, "training images")
    if rows.num_missing:
        logger.warning(f"{rows.num_missing} training rows have no picture and are left out.")
    label_column = "labels" if info.is_multi_label else "label"
    table = load_prepared(folder, "train", columns=["image_id", "patient_id", label_column])
    labels = label_matrix(table, info)
    patients = np.array(table["patient_id"][:], dtype=object)
    labelled = np.flatnonzero(~np.isnan(labels).all(axis=1)) if split is None else split.indices(table)
    labelled = np.intersect1d(labelled, rows.indices)
    if needs_labels and (len(labelled) == 0 or np.isnan(labels[labelled]).all()):
        raise ValueError(
            "The labelled split is empty: no training image with a picture has a known label in "
            + (f"{labelled_split!r}." if labelled_split else f"{str(folder)!r}.")
            + " Draw a larger share, or set `classifier_loss_weight=0`."
        )

    data = TrainingData(info, folder, rows, labels, rows.indices, labelled, split=split)
    max_images = None if split is None else len(labelled)
    if parquet_files(folder, "validation"):
        _use_validation_split(data, options, seed, max_images)
    elif options.validation_share > 0:
        _hold_out_patients(data, patients, options.validation_share, seed, max_images)
    return data


def _use_validation_split(data: TrainingData, options: DataOptions, seed: int, max_images: int | None) -> None:
    dataset = load_prepared(data.folder, "validation")
    data.validation_rows = ImageRows(dataset, options.cache_images, "validation images")
    label_column = "labels" if data.info.is_multi_label else "label"
    table = load_prepared(data.folder, "validation", columns=["patient_id", label_column])
    data.validation_labels = label_matrix(table, data.info)
    chosen = data.validation_rows.indices
    if max_images is not None and len(chosen) > max_images:
        patients = np.array(table["patient_id"][:], dtype=object)[chosen]
        chosen = chosen[limit_by_patient(patients.tolist(), max_images, seed=seed)]
    data.validation_indices = chosen


def _hold_out_patients(
    data: TrainingData, patients: np.ndarray, share: float, seed: int, max_images: int | None
) -> None:
    """Validate on training patients; with a labelled split on patients outside it. No stream shows them."""
    candidates = data.rows.indices
    if data.split is not None:
        candidates = candidates[~np.isin(patients[candidates], patients[data.labelled_indices])]
    candidates = candidates[~np.isnan(data.labels[candidates]).all(axis=1)]
    if len(candidates) < 2:
        logger.warning("There is no validation split and no image left to hold out: nothing is validated.")
        return
    owners = patients[candidates].tolist()
    _, held_out = patient_validation_split(owners, share, seed, max_images=max_images)
    data.validation_rows, data.validation_labels = data.rows, data.labels
    data.validation_indices = candidates[held_out]
    data.train_indices = np.setdiff1d(data.train_indices, data.validation_indices)
    data.labelled_indices = np.setdiff1d(data.labelled_indices, data.validation_indices)


def dataset_facts(info: DatasetInfo, folder: Path) -> dict[str, Any]:
    """What a dry run says about the data that would be used."""
    return {
        "name": info.name,
        "folder": str(folder),
        "licence": info.licence,
        "labels": info.label_names,
        "num_rows": info.num_rows,
    }


def check_publishable(info: DatasetInfo) -> None:
    """Check before training that a card can be written at its end.

    Raises:
        ValueError: if the dataset does not say where it comes from and under which terms.
    """
    empty = [name for name in _CARD_FIELDS if not getattr(info, name)]
    if empty:
        raise ValueError(
            f"`push_to_hub` needs a model card, which must state the data's {', '.join(empty)}. Fill that in in the "
            "dataset's dataset_info.json."
        )
