"""Image folders and any dataset of the Hub or of `datasets`, as a prepared dataset.

Folders follow the conventions of `datasets`: `metadata.csv` or `metadata.jsonl` with a column `file_name`, or one
sub-folder per class; in both cases optionally below `train/`, `validation/` and `test/`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..conversion import SourceImage, write_sources
from ..label_table import parse_label
from ..pictures import open_picture
from ..schema import MULTI_LABEL, SINGLE_LABEL, SPLITS, UNKNOWN_LABEL, DatasetInfo
from ..splits import patient_validation_split
from ..writer import ConversionReport, check_output_folder


if TYPE_CHECKING:
    import datasets


_SPLIT_NAMES = {"train": "train", "training": "train", "validation": "validation", "valid": "validation"}
_SPLIT_NAMES |= {"val": "validation", "dev": "validation", "test": "test"}
_PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")


@dataclass(frozen=True)
class ColumnNames:
    """Where a dataset keeps what. A column that does not exist counts as absent, except those named by the user.

    Args:
        image: the picture.
        label: a class (`ClassLabel`, text or number; null is unknown), or a list of classes (null is unknown, an
            empty list means no finding). By default `label` or `labels`.
        label_columns: for multi-label datasets with one column per class, in place of `label`: 1, 0 or null.
        patient_id: patient or lesion; without it every image is its own.
        image_id: unique name; without it the file name or the row number.
    """

    image: str = "image"
    label: str | None = None
    label_columns: Sequence[str] | None = None
    patient_id: str = "patient_id"
    image_id: str = "image_id"


def convert_image_folder(
    source_dir: str | os.PathLike[str], output_dir: str | os.PathLike[str], **kwargs: Any
) -> DatasetInfo:
    """Convert a folder of images.

    Args:
        source_dir: the folder; see above for its layout.
        output_dir: prepared dataset to write.
        kwargs: see `convert_dataset`; `name` is the folder's name by default.

    Raises:
        ValueError: if there is no image, no label, or anything that `convert_dataset` refuses.
    """
    import datasets

    source = Path(source_dir)
    check_output_folder(output_dir, kwargs.get("overwrite", False))
    if not source.is_dir() or not any(path.suffix.lower() in _PICTURE_SUFFIXES for path in source.rglob("*")):
        raise ValueError(f"`source_dir` must be a folder with images, but {str(source)!r} holds none.")
    try:
        loaded = datasets.load_dataset("imagefolder", data_dir=str(source.resolve()))
    except Exception as error:  # `datasets` wraps what is wrong with a metadata file into errors of its own
        cause = error.__cause__ or error
        raise ValueError(
            f"`source_dir` {str(source)!r} cannot be read as an image folder: {cause}. Expected is metadata.csv or "
            "metadata.jsonl with a column 'file_name', or one sub-folder per class."
        ) from error
    kwargs.setdefault("name", source.resolve().name)
    kwargs.setdefault("source", "image folder")
    return convert_dataset(loaded, output_dir, root=source.resolve(), **kwargs)


def convert_hub_dataset(
    dataset_name: str,
    output_dir: str | os.PathLike[str],
    *,
    config: str | None = None,
    revision: str | None = None,
    **kwargs: Any,
) -> DatasetInfo:
    """Convert a dataset of the Hub, or any other that `datasets.load_dataset` reads.

    Args:
        dataset_name: e.g. `"org/name"`.
        output_dir: prepared dataset to write.
        config: configuration of the dataset, if it has several.
        revision: branch, tag or commit.
        kwargs: see `convert_dataset`.
    """
    import datasets

    check_output_folder(output_dir, kwargs.get("overwrite", False))
    loaded = datasets.load_dataset(dataset_name, config, revision=revision)
    kwargs.setdefault("name", dataset_name.split("/")[-1])
    kwargs.setdefault("source", f"https://huggingface.co/datasets/{dataset_name}")
    return convert_dataset(loaded, output_dir, **kwargs)


def convert_dataset(
    dataset: datasets.DatasetDict,
    output_dir: str | os.PathLike[str],
    *,
    name: str,
    source: str = "unknown",
    columns: ColumnNames | None = None,
    channels: int | None = None,
    image_size: int | None = None,
    validation_share: float = 5.0,
    test_share: float = 20.0,
    seed: int = 0,
    licence: str = "unknown",
    attribution: str = "unknown",
    root: Path | None = None,
    strict: bool = False,
    num_workers: int | None = None,
    overwrite: bool = False,
) -> DatasetInfo:
    """Convert a `datasets.DatasetDict` with pictures.

    Splits that the dataset has are kept. If there is no test or validation split, it is drawn from the training
    patients. All other columns of text or numbers become metadata.

    Args:
        dataset: splits named train, validation (or valid, val, dev) and test.
        output_dir: prepared dataset to write.
        name: name of the dataset.
        source: where it comes from.
        columns: where to find image, labels and identifiers.
        channels: 1 (grey) or 3 (RGB); None takes those of the first readable image.
        image_size: reduce images to this shorter side, in pixels.
        validation_share: percent of the training patients, in [0, 100); used if there is no validation split.
        test_share: percent of the patients, in [0, 100); used if there is no test split.
        seed: seed of the draws.
        licence: under which terms the images may be used.
        attribution: whom to credit.
        root: folder that file names are given relative to.
        strict: raise at the first image that cannot be read, instead of recording it.
        num_workers: threads that read images.
        overwrite: replace a prepared dataset at `output_dir`.

    Raises:
        ValueError: for unknown splits or columns, labels that are neither classes nor lists of classes, or a patient
            in two splits.
    """
    columns = columns or ColumnNames()
    check_output_folder(output_dir, overwrite)
    parts = _parts_by_split(dataset, columns)
    rows = {split: list(part.remove_columns(columns.image)) for split, part in parts.items()}
    reader = _LabelReader(next(iter(parts.values())).features, rows, columns)
    report = ConversionReport()
    sources = {split: _source_images(split, part, rows[split], columns, reader, root) for split, part in parts.items()}
    for split, share in (("test", test_share), ("validation", validation_share)):
        if not sources.get(split) and share and "train" in sources:
            _hold_out(sources, split, share, seed, report)
    info = DatasetInfo(
        name=name,
        source=source,
        licence=licence,
        attribution=attribution,
        problem_type=reader.problem_type,
        label_names=reader.label_names,
        channels=channels or _first_channels(sources),
        image_size=image_size,
    )
    return write_sources(
        output_dir, sources, info, report, strict=strict, num_workers=num_workers, overwrite=overwrite
    )


class _LabelReader:
    """Finds out what the labels of a dataset are, and reads them from its rows."""

    def __init__(
        self, known: datasets.Features, rows: Mapping[str, list[dict[str, Any]]], columns: ColumnNames
    ) -> None:
        import datasets

        self.column: str | None = None
        self.columns: list[str] = []
        self.names_of_index: list[str] | None = None
        if columns.label_columns is not None:
            _require(known, columns.label_columns)
            self.columns = list(columns.label_columns)
            self.problem_type, self.label_names = MULTI_LABEL, list(columns.label_columns)
            return
        if columns.label is not None:
            _require(known, [columns.label])
        self.column = columns.label or next((name for name in ("label", "labels") if name in known), None)
        if self.column is None:
            raise ValueError(
                f"The dataset must have a column 'label' or 'labels', but it has {list(known)}. Name it, or the "
                "columns of the single classes (`label_column`, `label_columns`)."
            )
        feature = known[self.column]
        is_list = isinstance(feature, (list, datasets.List, datasets.LargeList))
        inner = (feature[0] if isinstance(feature, list) else feature.feature) if is_list else feature
        if isinstance(inner, datasets.ClassLabel):
            self.names_of_index = list(inner.names)
            self.label_names = list(inner.names)
        else:
            self.label_names = _names_that_occur(self.column, rows.values())
        self.problem_type = MULTI_LABEL if is_list else SINGLE_LABEL

    def read(self, row: Mapping[str, Any], where: str) -> dict[str, Any]:
        """The arguments `labels` or `label` of `make_row`."""
        if self.column is None:
            return {"labels": [parse_label(row[name], f"{where}, column {name!r}") for name in self.columns]}
        value = row[self.column]
        if self.problem_type == SINGLE_LABEL:
            return {"label": UNKNOWN_LABEL if _is_unknown(value) else self.label_names.index(self._name(value))}
        if value is None:
            return {"labels": None}
        present = {self._name(entry) for entry in value}
        return {"labels": [float(name in present) for name in self.label_names]}

    def _name(self, value: Any) -> str:
        if self.names_of_index is not None and isinstance(value, int):
            return self.names_of_index[value]
        return _text(value)


def _names_that_occur(column: str, splits: Iterable[list[dict[str, Any]]]) -> list[str]:
    """Names of the classes in a column of texts, numbers or lists of them; numbers in their order."""
    values = [row[column] for members in splits for row in members]
    entries = [entry for value in values for entry in (value if isinstance(value, list) else [value])]
    known = {entry for entry in entries if not _is_unknown(entry)}
    if not known:
        raise ValueError(f"The column {column!r} is empty in every row, so there is no class to learn.")
    numbers = all(isinstance(entry, (int, float)) for entry in known)
    return [_text(entry) for entry in (sorted(known) if numbers else sorted(known, key=str))]


def _text(value: Any) -> str:
    """A class as text. A column with missing values holds 1.0 where the file says 1."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _is_unknown(value: Any) -> bool:
    return value is None or value in ("", UNKNOWN_LABEL) or value != value


def _parts_by_split(dataset: datasets.DatasetDict, columns: ColumnNames) -> dict[str, datasets.Dataset]:
    """The splits under our names, pictures not decoded."""
    import datasets

    unknown = [split for split in dataset if split.lower() not in _SPLIT_NAMES]
    if unknown:
        raise ValueError(f"The splits of the dataset must be among {sorted(_SPLIT_NAMES)}, but it has {unknown}.")
    parts: dict[str, datasets.Dataset] = {}
    for split, part in dataset.items():
        name = _SPLIT_NAMES[split.lower()]
        if name in parts:
            raise ValueError(f"The dataset has two {name} splits: {list(dataset)}.")
        _require(part.features, [columns.image])
        if not isinstance(part.features[columns.image], datasets.Image):
            raise ValueError(
                f"The column {columns.image!r} must hold images, but holds {part.features[columns.image]}."
            )
        parts[name] = part.cast_column(columns.image, datasets.Image(decode=False))
    return {split: parts[split] for split in SPLITS if split in parts}


@dataclass(frozen=True)
class _Picture:
    """A picture of a dataset that is read when it is asked for: together they may not fit into memory."""

    part: datasets.Dataset
    index: int
    column: str

    def __call__(self) -> bytes | str:
        picture = self.part[self.index][self.column] or {}
        content = picture.get("bytes") or picture.get("path")
        if not content:
            raise ValueError(f"Row {self.index} has no image.")
        return content


def _source_images(
    split: str,
    part: datasets.Dataset,
    rows: Sequence[dict[str, Any]],
    columns: ColumnNames,
    reader: _LabelReader,
    root: Path | None,
) -> list[SourceImage]:
    """All rows of a split as source images."""
    used = {columns.image, columns.patient_id, columns.image_id, reader.column, *(columns.label_columns or ())}
    sources = []
    for index, (row, path) in enumerate(zip(rows, _file_paths(part, columns.image), strict=True)):
        # File names repeat between folders and shards, so without a root they do not identify an image.
        file = default = f"{split}-{index:06d}"
        if path and root is not None and Path(path).is_relative_to(root):
            file = default = Path(path).relative_to(root).as_posix()
        elif path:
            file = f"{default} ({Path(path).name})"
        image_id, patient = row.get(columns.image_id), row.get(columns.patient_id)
        fields = {
            **reader.read(row, file),
            "patient_id": str(patient) if patient not in (None, "") else None,
            "metadata": {
                key: value
                for key, value in row.items()
                if key not in used and isinstance(value, (str, int, float, bool))
            },
        }
        image_id = str(image_id) if image_id not in (None, "") else default
        sources.append(SourceImage(image_id, _Picture(part, index, columns.image), fields, file))
    return sources


def _file_paths(part: datasets.Dataset, column: str) -> list[str | None]:
    """The path in every row's image, read without the bytes."""
    paths: list[str | None] = []
    for table in part.select_columns([column]).with_format("arrow").iter(batch_size=1000):
        paths += table[column].combine_chunks().field("path").to_pylist()
    return paths


def _hold_out(
    sources: dict[str, list[SourceImage]], split: str, share: float, seed: int, report: ConversionReport
) -> None:
    """Move a share of the training patients to `split`."""
    train = sources["train"]
    owners = [image.fields["patient_id"] or image.image_id for image in train]
    kept, held_out = patient_validation_split(owners, share, seed)
    sources["train"], sources[split] = [train[row] for row in kept], [train[row] for row in held_out]
    report.notes.append(f"No {split} split was given: {share:g} % of the training patients were drawn, seed {seed}.")


def _first_channels(sources: Mapping[str, list[SourceImage]]) -> int:
    """1 if the first picture that can be read is grey, else 3."""
    for members in sources.values():
        for source in members:
            try:
                assert isinstance(source.picture, _Picture)
                bands = open_picture(source.picture(), source.file).getbands()
            except ValueError:
                continue
            return 1 if bands in (("L",), ("I",), ("F",), ("1",), ("L", "A")) else 3
    return 3


def _require(known: Mapping[str, Any], names: Iterable[str]) -> None:
    missing = [name for name in names if name not in known]
    if missing:
        raise ValueError(f"The dataset has no column {missing}. Its columns are {list(known)}.")
