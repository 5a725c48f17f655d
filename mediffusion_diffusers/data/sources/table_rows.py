"""From rows of a table with pictures to a prepared dataset: what image folders and datasets of the Hub share."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...choices import LabelKind
from ..cells import identifier, is_missing, reads_as_missing, typed_column
from ..conversion import SourceImage, write_sources
from ..labels import Labels, read_column, read_columns
from ..pictures import open_picture
from ..schema import SPLIT_OF_NAME, DatasetInfo
from ..splits import check_draws, patient_validation_split
from ..writer import ConversionReport


_LABEL_COLUMNS = ("label", "labels")
_LOOKS_LIKE_PATIENTS = re.compile(r"(patient|subject|case|lesion)[ _-]?(id|no|number|name)?", re.IGNORECASE)


@dataclass(frozen=True)
class ColumnNames:
    """Where a dataset keeps what, in upper or lower case.

    A column that does not exist counts as absent, except those named otherwise than by default.

    Args:
        image: the picture.
        label: a class, or a list of classes; see `mediffusion_diffusers.data.labels` for what is understood. By
            default `label` or `labels`.
        label_columns: for multi-label datasets with one column per class, in place of `label`: 1, 0 or empty.
        patient_id: patient or lesion, as text; without it every image is its own.
        image_id: unique name; without it the file name or the row number.
        labels_as: what lists of labels hold, where the rule should not decide.
        label_separator: what separates names in a text; `""` for nothing, None for the rule.
    """

    image: str = "image"
    label: str | None = None
    label_columns: Sequence[str] | None = None
    patient_id: str = "patient_id"
    image_id: str = "image_id"
    labels_as: LabelKind = "auto"
    label_separator: str | None = None


@dataclass(frozen=True)
class TableRow:
    """One row, its picture not read yet.

    Args:
        name: unique name of the image, unless the row states one.
        picture: a path, or a function that returns a picture, its bytes or its path.
        cells: the row by column, without the picture.
        place: where the row stands, for messages.
        file: what the report calls the picture.
        patient: the patient, unless the row states one; by default the image is its own.
    """

    name: str
    picture: Path | Callable[[], Any]
    cells: Mapping[str, Any]
    place: str
    file: str
    patient: str | None = None


@dataclass
class TableSource:
    """The rows of a dataset, and what its columns are.

    Args:
        rows: by split.
        columns: names of the columns, without the picture.
        class_names: names of the classes behind the indices in a column, by column.
        report: what was left out so far.
        are_texts: every cell is the text of a table; metadata that read as numbers are numbers.
    """

    rows: dict[str, list[TableRow]]
    columns: list[str]
    class_names: dict[str, list[str]] = field(default_factory=dict)
    report: ConversionReport = field(default_factory=ConversionReport)
    are_texts: bool = False


def convert_table(
    table: TableSource,
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
    strict: bool = False,
    num_workers: int | None = None,
    overwrite: bool = False,
) -> DatasetInfo:
    """Convert rows with pictures.

    Splits that are there are kept. If there is no test or validation split, it is drawn from the training patients.
    All other columns of text or numbers become metadata.

    Args:
        table: the rows.
        output_dir: prepared dataset to write.
        name: name of the dataset.
        source: where it comes from.
        columns: where to find labels and identifiers.
        channels: 1 (grey) or 3 (RGB); None takes those of the first readable image.
        image_size: reduce images to this shorter side, in pixels.
        validation_share: percent of the training patients, in [0, 100); used if there is no validation split.
        test_share: percent of the patients, in [0, 100); used if there is no test split.
        seed: seed of the draws.
        licence: under which terms the images may be used.
        attribution: whom to credit.
        strict: raise at the first image that cannot be read, instead of recording it.
        num_workers: images that are read at a time, by processes where there are many of them.
        overwrite: replace a prepared dataset at `output_dir`.

    Raises:
        ValueError: for unknown columns, labels that cannot be understood, or a patient in two given splits.
    """
    check_draws(seed, validation_share=validation_share, test_share=test_share)
    columns = columns or ColumnNames()
    rows = [row for members in table.rows.values() for row in members]
    if not rows:
        raise ValueError(f"{name} has no row with an image{_first_reason(table.report)}.")
    used, labels = _read_labels(table, rows, columns)
    table.report.notes += labels.notes
    patient, image = _identifier_columns(table, columns)
    used |= {patient, image}
    _note_split_columns(table.report, rows, [name for name in table.columns if name not in used])
    metadata = _metadata(table, rows, used)
    converted = iter(
        [
            _source_image(row, target, patient, image, values)
            for row, target, values in zip(rows, labels.targets, metadata, strict=True)
        ]
    )
    sources = {split: [next(converted) for _ in members] for split, members in table.rows.items()}
    _note_odd_patients(table.report, rows, patient)
    for split, share in (("test", test_share), ("validation", validation_share)):
        if not sources.get(split) and share and sources.get("train"):
            _hold_out(sources, split, share, seed, table.report)
    info = DatasetInfo(
        name=name,
        source=source,
        licence=licence,
        attribution=attribution,
        problem_type=labels.problem_type,
        label_names=labels.label_names,
        channels=channels or _first_channels(sources),
        image_size=image_size,
    )
    return write_sources(
        output_dir, sources, info, table.report, strict=strict, num_workers=num_workers, overwrite=overwrite
    )


def find_name(known: Sequence[str], name: str) -> str | None:
    """The column of this name, exactly or else in another case.

    Raises:
        ValueError: if several differ from it in case only.
    """
    if name in known:
        return name
    alike = [column for column in known if column.lower() == name.lower()]
    if len(alike) > 1:
        raise ValueError(f"The dataset has several columns {name!r}: {alike}. Name one of them exactly.")
    return alike[0] if alike else None


def require_name(known: Sequence[str], name: str, parameter: str) -> str:
    """The column of this name.

    Raises:
        ValueError: if there is none.
    """
    found = find_name(known, name)
    if found is None:
        raise ValueError(f"The dataset has no column {name!r} (`{parameter}`). Its columns are {list(known)}.")
    return found


def label_columns(known: Sequence[str], columns: ColumnNames) -> list[str]:
    """The columns that hold the labels.

    Raises:
        ValueError: if a named one does not exist, or there is none.
    """
    if columns.label_columns is not None:
        return [require_name(known, name, "label_columns") for name in columns.label_columns]
    if columns.label is not None:
        return [require_name(known, columns.label, "label_column")]
    found = next((find_name(known, name) for name in _LABEL_COLUMNS if find_name(known, name)), None)
    if found is None:
        raise ValueError(
            f"The dataset must have a column 'label' or 'labels', but it has {list(known)}. Name it, or the columns "
            "of the single classes (`label_column`, `label_columns`)."
        )
    return [found]


def _read_labels(table: TableSource, rows: Sequence[TableRow], columns: ColumnNames) -> tuple[set[str | None], Labels]:
    chosen = label_columns(table.columns, columns)
    places = [row.place for row in rows]
    if columns.label_columns is not None:
        return set(chosen), read_columns(chosen, [[row.cells.get(name) for name in chosen] for row in rows], places)
    labels = read_column(
        chosen[0],
        [row.cells.get(chosen[0]) for row in rows],
        places,
        known_names=table.class_names.get(chosen[0]),
        labels_as=columns.labels_as,
        separator=columns.label_separator,
    )
    return set(chosen), labels


def _identifier_columns(table: TableSource, columns: ColumnNames) -> tuple[str | None, str | None]:
    """The columns of patients and images, or None where there is none."""
    found = []
    for parameter, default in (("patient_id", ColumnNames.patient_id), ("image_id", ColumnNames.image_id)):
        name = getattr(columns, parameter)
        is_default = name == default
        found.append(find_name(table.columns, name) if is_default else require_name(table.columns, name, parameter))
    if found[0] is None:
        alike = [column for column in table.columns if _LOOKS_LIKE_PATIENTS.fullmatch(column)]
        table.report.notes.append(
            "No column of patients was named: every image counts as a patient of its own."
            + (f" Should {', '.join(map(repr, alike))} tell them, name it (`patient_id`)." if alike else "")
        )
    return found[0], found[1]


def _metadata(table: TableSource, rows: Sequence[TableRow], used: set[str | None]) -> list[dict[str, Any]]:
    """Texts and numbers of the other columns, row by row."""
    columns = {}
    for name in table.columns:
        if name not in used:
            values = [row.cells.get(name) for row in rows]
            columns[name] = (
                typed_column(["" if value is None else value for value in values]) if table.are_texts else values
            )
    return [
        {
            name: values[index]
            for name, values in columns.items()
            if isinstance(values[index], (str, int, float, bool)) and not is_missing(values[index])
        }
        for index in range(len(rows))
    ]


def _source_image(
    row: TableRow, target: dict[str, Any], patient: str | None, image: str | None, metadata: dict[str, Any]
) -> SourceImage:
    owner = identifier(row.cells.get(patient), f"{row.place}, column {patient!r}") if patient else None
    image_id = identifier(row.cells.get(image), f"{row.place}, column {image!r}") if image else None
    fields = {**target, "patient_id": owner or row.patient, "metadata": metadata}
    return SourceImage(image_id or row.name, row.picture, fields, row.file)


def _note_odd_patients(report: ConversionReport, rows: Sequence[TableRow], patient: str | None) -> None:
    if patient is None:
        return
    values = [row.cells.get(patient) for row in rows]
    without = sum(is_missing(value) for value in values)
    if without:
        report.notes.append(f"{without:,} images without {patient!r} count as patients of their own.")
    named = sum(reads_as_missing(value) for value in values)
    if named:
        report.notes.append(
            f"{named:,} images have a text such as 'NA' as {patient!r}, which is taken as the name of one patient. "
            "Leave the cell empty where the patient is unknown."
        )


def _note_split_columns(report: ConversionReport, rows: Sequence[TableRow], names: Sequence[str]) -> None:
    """Say it where a table names splits by itself: only folders and files make splits."""
    for name in names:
        values = {str(row.cells.get(name)).strip().lower() for row in rows}
        if len(values) > 1 and values <= SPLIT_OF_NAME.keys():
            report.notes.append(
                f"The column {name!r} names splits, but is not used: put the pictures into split folders to keep them."
            )


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
                picture = source.picture() if callable(source.picture) else source.picture
                bands = open_picture(picture, source.file).getbands()  # type: ignore[arg-type]
            except Exception:  # the conversion records why
                continue
            return 1 if bands in (("L",), ("I",), ("F",), ("1",), ("L", "A")) else 3
    return 3


def _first_reason(report: ConversionReport) -> str:
    if report.skipped:
        first = report.skipped[0]
        return f". The first of {len(report.skipped):,} reasons: {first['file']}: {first['reason']}"
    return (
        f" ({len(report.missing):,} listed images were not found, such as {report.missing[0]!r})"
        if report.missing
        else ""
    )
