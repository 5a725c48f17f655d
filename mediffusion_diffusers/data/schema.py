"""The data contract: what a prepared dataset folder holds, whatever source it was converted from.

A prepared dataset is a folder with `data/{split}-00000-of-0000N.parquet` (split: train, validation or test; it loads
with `datasets.load_dataset(folder)` too) and `dataset_info.json` (a `DatasetInfo`). Its columns:

- `image`: an encoded picture (8- or 16-bit PNG, or the untouched JPEG), null where only the metadata is known;
- `labels` (multi-label): one float per class, 1 present, 0 absent, NaN unknown; or `label` (single-label): the class
  index, -1 unknown;
- `image_id`: unique in the dataset; `patient_id`: what no two splits may share (the lesion for skin images);
- `boxes`: dictionaries of `label` (class index), `x`, `y` (top-left corner), `width`, `height`, all in [0, 1] as
  shares of the image;
- `metadata`: a JSON object with what else is known (age in years, sex, view, ...).
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..atomic_files import write_json
from ..options import Range, check_number
from .metadata import metadata_text
from .parquet_shards import count_rows, load_shards, read_shards


if TYPE_CHECKING:
    import datasets


MULTI_LABEL = "multi_label_classification"
SINGLE_LABEL = "single_label_classification"
PROBLEM_TYPES = (MULTI_LABEL, SINGLE_LABEL)
SPLITS = ("train", "validation", "test")
# What others call the splits, in any case; the whole name counts, never a word inside one.
SPLIT_OF_NAME = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
INFO_FILE = "dataset_info.json"
CONVERTER_VERSION = "1"
UNKNOWN_LABEL = -1
_BOX_FIELDS = ("x", "y", "width", "height")


@dataclass
class DatasetInfo:
    """What a prepared dataset is, where it comes from and under which terms.

    Args:
        name: short name, e.g. `"chestxray14"`.
        source: where the original files come from (address or citation).
        licence: licence of the images.
        attribution: whom to credit, and how.
        problem_type: `"multi_label_classification"` or `"single_label_classification"`, as in transformers.
        label_names: names of the K classes, in the order of the columns of `label_matrix`.
        channels: 1 (grey) or 3 (RGB).
        image_size: shorter side in pixels that larger images were reduced to, or None for original sizes.
        num_rows: rows per split; filled in by `write_prepared`.
        converter_version: version of the contract that wrote the folder.
        notes: what the reader of the data should know: repaired, dropped or missing entries.
        demographics: images, patients, sex, view and age per split; filled in by `write_prepared`.

    Raises:
        ValueError: for an unknown `problem_type`, wrong `channels`, empty or repeated `label_names`, or what is of
            another type.
    """

    name: str
    source: str
    licence: str
    attribution: str
    problem_type: str
    label_names: list[str]
    channels: int
    image_size: int | None = None
    num_rows: dict[str, int] = field(default_factory=dict)
    converter_version: str = CONVERTER_VERSION
    notes: list[str] = field(default_factory=list)
    demographics: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.problem_type not in PROBLEM_TYPES:
            raise ValueError(f"`problem_type` must be one of {list(PROBLEM_TYPES)}, but got {self.problem_type!r}.")
        if self.channels not in (1, 3):
            raise ValueError(f"`channels` must be 1 (grey) or 3 (RGB), but got {self.channels!r}.")
        if self.image_size is not None:
            check_number("image_size", self.image_size, Range(at_least=1), whole=True)
        if isinstance(self.label_names, str) or not all(isinstance(name, str) and name for name in self.label_names):
            raise ValueError(f"`label_names` must be a list of names, but got {self.label_names!r}.")
        self.label_names = list(self.label_names)
        if not self.label_names or len(set(self.label_names)) != len(self.label_names):
            raise ValueError(f"`label_names` must be one or more different names, but got {self.label_names!r}.")
        for name in ("name", "source", "licence", "attribution"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"`{name}` must be a text, but got {getattr(self, name)!r}.")
        if not isinstance(self.notes, list) or not all(isinstance(note, str) for note in self.notes):
            raise ValueError(f"`notes` must be a list of texts, but got {self.notes!r}.")
        for name in ("num_rows", "demographics"):
            if not isinstance(getattr(self, name), dict):
                raise ValueError(f"`{name}` must hold names and values, but got {getattr(self, name)!r}.")
        for split, num in self.num_rows.items():
            check_number(f"num_rows[{split!r}]", num, Range(at_least=0), whole=True)

    @property
    def num_labels(self) -> int:
        """Number of classes K."""
        return len(self.label_names)

    @property
    def is_multi_label(self) -> bool:
        """Whether an image may carry several findings at once."""
        return self.problem_type == MULTI_LABEL

    @property
    def id2label(self) -> dict[int, str]:
        """Class index to class name."""
        return dict(enumerate(self.label_names))

    @property
    def label2id(self) -> dict[str, int]:
        """Class name to class index."""
        return {name: index for index, name in enumerate(self.label_names)}

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write `dataset_info.json` into `folder`, aside first and then renamed."""
        path = Path(folder) / INFO_FILE
        write_json(path, asdict(self))
        return path

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> DatasetInfo:
        """Read the `dataset_info.json` of a prepared dataset.

        Raises:
            ValueError: if `folder` is no prepared dataset, or the file is damaged.
        """
        path = Path(folder) / INFO_FILE
        if not path.is_file():
            raise ValueError(
                f"`folder` must be a prepared dataset (a folder with {INFO_FILE}), but {str(folder)!r} is none. "
                "Write one with `mediffusion prepare`."
            )
        known = {each.name for each in fields(cls)}
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(values, dict):
                raise ValueError(f"it holds a {type(values).__name__} instead of names and values")
            version = values.get("converter_version", CONVERTER_VERSION)
            if version != CONVERTER_VERSION:
                raise ValueError(f"it is of version {version!r}, and this package reads version {CONVERTER_VERSION!r}")
            return cls(**{key: value for key, value in values.items() if key in known})
        except (TypeError, ValueError, OSError, RecursionError) as error:
            raise ValueError(
                f"Cannot read {path}: {str(error).rstrip('.')}. Convert the dataset again with `mediffusion prepare`."
            ) from error


def features(problem_type: str, num_labels: int) -> datasets.Features:
    """Columns of a prepared dataset.

    Args:
        problem_type: `"multi_label_classification"` or `"single_label_classification"`.
        num_labels: number of classes K; every row of a multi-label dataset holds K floats.
    """
    import datasets

    if problem_type not in PROBLEM_TYPES:
        raise ValueError(f"`problem_type` must be one of {list(PROBLEM_TYPES)}, but got {problem_type!r}.")
    if num_labels < 1:
        raise ValueError(f"`num_labels` must be at least 1, but got {num_labels}.")
    number = datasets.Value("float32")
    if problem_type == MULTI_LABEL:
        target = {"labels": datasets.List(number)}
    else:
        target = {"label": datasets.Value("int64")}
    box = {"label": datasets.Value("int32"), **dict.fromkeys(_BOX_FIELDS, number)}
    return datasets.Features(
        {
            "image": datasets.Image(),
            **target,
            "image_id": datasets.Value("string"),
            "patient_id": datasets.Value("string"),
            "boxes": datasets.List(box),
            "metadata": datasets.Value("string"),
        }
    )


def make_row(
    info: DatasetInfo,
    image: bytes | None,
    image_id: str,
    patient_id: str | None = None,
    labels: Sequence[float | None] | None = None,
    label: int | None = None,
    boxes: Iterable[Mapping[str, float]] = (),
    metadata: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Build one row and check it against the contract.

    Args:
        info: the dataset that the row belongs to.
        image: an encoded picture (see `encode_picture`), or None where the picture is missing.
        image_id: unique name of the image.
        patient_id: patient (or lesion); None if unknown: then the image is its own patient.
        labels: multi-label datasets: K entries, 1, 0 or None/NaN for unknown; None if all are unknown.
        label: single-label datasets: class index; None or -1 if unknown.
        boxes: dictionaries of `label` (class index), `x`, `y`, `width`, `height` in [0, 1].
        metadata: values that JSON can hold; None and NaN are left out.

    Raises:
        ValueError: for anything outside the contract, naming the image.
    """
    where = f"image {image_id!r} of {info.name}"
    if not image_id:
        raise ValueError(f"`image_id` must not be empty (dataset {info.name}).")
    row: dict[str, Any] = {
        "image": None if image is None else {"bytes": image, "path": _file_name(image_id, image)},
        "image_id": image_id,
        "patient_id": patient_id or image_id,
        "boxes": [_check_box(box, info, where) for box in boxes],
        "metadata": metadata_text(metadata or {}),
    }
    if info.is_multi_label:
        if label is not None:
            raise ValueError(f"`label` belongs to single-label datasets; give `labels` for {where}.")
        row["labels"] = _check_labels(labels, info, where)
    else:
        if labels is not None:
            raise ValueError(f"`labels` belongs to multi-label datasets; give `label` for {where}.")
        row["label"] = UNKNOWN_LABEL if label is None else int(label)
        if not UNKNOWN_LABEL <= row["label"] < info.num_labels:
            raise ValueError(
                f"`label` must be a class index from 0 to {info.num_labels - 1} or -1 (unknown), but {where} has "
                f"{row['label']}."
            )
    return row


def load_info(folder: str | os.PathLike[str]) -> DatasetInfo:
    """Read the `DatasetInfo` of a prepared dataset folder."""
    return DatasetInfo.load(folder)


def parquet_files(folder: str | os.PathLike[str], split: str) -> list[Path]:
    """The parquet shards of one split, in order; empty if the split does not exist."""
    data = Path(folder) / "data"
    shard = re.compile(rf"{re.escape(split)}-\d+-of-\d+\.parquet")
    return sorted(data / name for name in os.listdir(data) if shard.fullmatch(name)) if data.is_dir() else []


def load_prepared(
    folder: str | os.PathLike[str], split: str = "train", columns: Sequence[str] | None = None
) -> datasets.Dataset:
    """Load one split of a prepared dataset.

    Args:
        folder: a folder written by `write_prepared`.
        split: `"train"`, `"validation"` or `"test"`.
        columns: read only these columns, straight into memory and without the cache of `datasets`: the quick way to
            the labels of a large dataset.

    Raises:
        ValueError: if the folder is no prepared dataset, has no such split or no row in it, lacks a column or a
            shard, or a shard is damaged.
    """
    info = load_info(folder)
    files = parquet_files(folder, split)
    if not files:
        raise ValueError(f"`split` must be one of {list(info.num_rows)} in {str(folder)!r}, but got {split!r}.")
    _check_shards(files, split, info)
    known = features(info.problem_type, info.num_labels)
    if columns is None:
        return load_shards(files, split, known)
    return read_shards(files, split, {name: known[name] for name in columns if name in known}, columns)


def _check_shards(files: Sequence[Path], split: str, info: DatasetInfo) -> None:
    """Refuse a split without a row, or with other shards or rows than were written."""
    num_shards = int(re.split(r"-of-|\.", files[-1].name)[1])
    num_rows = count_rows(files)
    if len(files) != num_shards:
        raise ValueError(
            f"{files[-1].parent} holds {len(files)} of the {num_shards} shards of {split!r}. Copy it again."
        )
    if num_rows != info.num_rows.get(split, num_rows):
        raise ValueError(
            f"{files[-1].parent} holds {num_rows:,} rows of {split!r}, but {INFO_FILE} names "
            f"{info.num_rows[split]:,}. Copy it again, or convert the dataset again with `mediffusion prepare`."
        )
    if num_rows == 0:
        raise ValueError(f"The split {split!r} of {info.name!r} has no row. Choose another `split`.")


def label_matrix(dataset: datasets.Dataset, info: DatasetInfo) -> np.ndarray:
    """All labels of a dataset as one matrix, NaN where unknown.

    Returns:
        float32 of shape `(num_rows, num_labels)`: 1 present, 0 absent, NaN unknown. Single-label rows are one-hot, or
        all NaN when unknown.

    Raises:
        ValueError: if the labels are missing, or those of a row are outside the contract, naming the row.
    """
    column = "labels" if info.is_multi_label else "label"
    if column not in dataset.column_names:
        raise ValueError(
            f"A {info.problem_type} dataset must have the column {column!r}, but it has {dataset.column_names}."
        )
    values = dataset.select_columns([column]).with_format("arrow")[:][column].combine_chunks()
    known_rows = np.flatnonzero(np.asarray(values.is_valid()))
    known = values.drop_null()
    matrix = np.full((len(values), info.num_labels), np.nan, dtype=np.float32)
    if info.is_multi_label:
        lengths = np.asarray(known.value_lengths())
        _refuse_row(known_rows[lengths != info.num_labels], f"must have {info.num_labels} entries", info)
        matrix[known_rows] = known.flatten().to_numpy(zero_copy_only=False).reshape(-1, info.num_labels)
        is_allowed = np.isnan(matrix) | (matrix == 0) | (matrix == 1)
        _refuse_row(np.flatnonzero(~is_allowed.all(axis=1)), "must be 1, 0 or NaN (unknown)", info)
        return matrix
    labels = np.asarray(known)
    is_class = (labels >= 0) & (labels < info.num_labels)
    outside = f"must be a class index from 0 to {info.num_labels - 1} or {UNKNOWN_LABEL} (unknown)"
    _refuse_row(known_rows[~is_class & (labels != UNKNOWN_LABEL)], outside, info)
    matrix[known_rows[is_class]] = 0.0
    matrix[known_rows[is_class], labels[is_class]] = 1.0
    return matrix


def _refuse_row(rows: np.ndarray, allowed: str, info: DatasetInfo) -> None:
    """Refuse labels outside the contract, naming the first of their rows; none at all are fine."""
    if len(rows):
        raise ValueError(
            f"The labels of every row of {info.name!r} {allowed}, but those of row {rows[0] + 1} are not. Does the "
            f"{INFO_FILE} belong to this dataset? Convert it again with `mediffusion prepare`."
        )


def _file_name(image_id: str, image: bytes) -> str:
    """A file name for an encoded picture, without folders."""
    stem = re.sub(r"\.(png|jpe?g)$", "", image_id, flags=re.IGNORECASE)
    return re.sub(r"[^\w.-]+", "_", stem) + (".jpg" if image[:2] == b"\xff\xd8" else ".png")


def _check_labels(labels: Sequence[float | None] | None, info: DatasetInfo, where: str) -> list[float]:
    if labels is None:
        return [math.nan] * info.num_labels
    values = [math.nan if value is None else float(value) for value in labels]
    if len(values) != info.num_labels:
        raise ValueError(f"`labels` must have {info.num_labels} entries, but {where} has {len(values)}.")
    if any(value not in (0.0, 1.0) and not math.isnan(value) for value in values):
        raise ValueError(f"`labels` must be 1, 0 or NaN (unknown), but {where} has {values}.")
    return values


def _check_box(box: Mapping[str, float], info: DatasetInfo, where: str) -> dict[str, float]:
    index = int(box["label"])
    x, y, width, height = (float(box[name]) for name in _BOX_FIELDS)
    if not 0 <= index < info.num_labels:
        raise ValueError(f"A box's `label` must be a class index below {info.num_labels}, but {where} has {index}.")
    # A rounding error at the border is no mistake of the annotator.
    inside = x >= 0 and y >= 0 and width > 0 and height > 0 and x + width <= 1 + 1e-6 and y + height <= 1 + 1e-6
    if not inside:
        raise ValueError(
            "A box must lie inside the image, in shares of its width and height (x, y >= 0; width, height > 0; "
            f"x + width <= 1; y + height <= 1), but {where} has x={x}, y={y}, width={width}, height={height}."
        )
    return {"label": index, "x": x, "y": y, "width": width, "height": height}
