"""ISIC 2019: dermoscopy images of eight kinds of skin lesions.

Reads the files of the official release: `ISIC_2019_Training_Input/*.jpg`, `ISIC_2019_Training_GroundTruth.csv` and
`ISIC_2019_Training_Metadata.csv`. Tschandl et al., "The HAM10000 dataset", Scientific Data 2018; Codella et al.,
"Skin Lesion Analysis Toward Melanoma Detection", ISBI 2018; Hernandez-Perez et al., "BCN20000", Scientific Data 2024.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..cells import form_of, is_missing, reads_as_missing
from ..conversion import SourceImage, write_sources
from ..listing import Listing, list_files
from ..schema import SINGLE_LABEL, UNKNOWN_LABEL, DatasetInfo
from ..splits import check_draws, patient_validation_split
from ..tables import find_column, read_rows
from ..writer import ConversionReport, check_output_folder


DIAGNOSES = ("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC")
# The ninth column of the label file: "none of the others", which no training image carries.
_NONE_OF_THE_OTHERS = "UNK"
_PREFIX = "ISIC_2019_Training"
_TABLES = (f"{_PREFIX}_GroundTruth.csv", f"{_PREFIX}_Metadata.csv")


def convert_isic2019(
    source_dir: str | os.PathLike[str],
    output_dir: str | os.PathLike[str],
    *,
    image_size: int | None = None,
    validation_share: float = 5.0,
    test_share: float = 20.0,
    seed: int = 0,
    strict: bool = False,
    num_workers: int | None = None,
    overwrite: bool = False,
) -> DatasetInfo:
    """Convert the official ISIC 2019 training files.

    The labels of the official test set are not part of the training files, so test and validation are drawn here, by
    lesion and within each diagnosis. Images without a label row are the unlabelled pool (label -1); they follow their
    lesion, if it is known, and are otherwise in the training split. An image without `lesion_id` is its own lesion.

    Args:
        source_dir: folder of the official files.
        output_dir: prepared dataset to write.
        image_size: reduce images to this shorter side, in pixels.
        validation_share: percent of the lesions that are left for training, in [0, 100).
        test_share: percent of the lesions, in [0, 100).
        seed: seed of both draws.
        strict: raise at the first image that cannot be read, instead of recording it.
        num_workers: images that are read at a time, by processes where there are many of them.
        overwrite: replace a prepared dataset at `output_dir`.

    Raises:
        ValueError: for missing or malformed files, or an image with several diagnoses.
    """
    source = Path(source_dir)
    check_draws(seed, validation_share=validation_share, test_share=test_share)
    check_output_folder(output_dir, overwrite)
    report = ConversionReport()
    labels = _read_labels(source / _TABLES[0], report)
    metadata = _read_metadata(source / _TABLES[1], report)
    files = _find_images(source, report)
    report.missing.extend(image_id for image_id in labels if image_id not in files)

    lesion = {image_id: metadata.get(image_id, {}).get("lesion_id") or image_id for image_id in files}
    splits = _split_by_lesion(labels, lesion, validation_share, test_share, seed)
    report.notes += _pool_notes(labels, files, splits)
    info = DatasetInfo(
        name="isic2019",
        source="ISIC 2019 challenge, https://challenge.isic-archive.com/data/#2019",
        licence="CC BY-NC 4.0 (non-commercial)",
        attribution="HAM10000: ViDIR Group, Medical University of Vienna (Tschandl et al. 2018); BCN_20000: Hospital "
        "Clinic de Barcelona (Hernandez-Perez et al. 2024); MSK: anonymous (Codella et al. 2018)",
        problem_type=SINGLE_LABEL,
        label_names=list(DIAGNOSES),
        channels=3,
        image_size=image_size,
        notes=[
            f"Test ({test_share:g} % of the lesions) and validation ({validation_share:g} % of the others) are drawn "
            f"within each diagnosis, seed {seed}: figures do not compare with the challenge's hidden test set."
        ],
    )
    sources = {
        split: [
            _source_image(image_id, files[image_id], lesion[image_id], labels, metadata.get(image_id, {}))
            for image_id in image_ids
        ]
        for split, image_ids in splits.items()
    }
    return write_sources(
        output_dir, sources, info, report, strict=strict, num_workers=num_workers, overwrite=overwrite
    )


def _find_images(source: Path, report: ConversionReport) -> dict[str, Path]:
    """The pictures by name; what else lies in the folder is accounted for."""
    folder = source / f"{_PREFIX}_Input"
    listing = list_files(source)
    files = _images(listing, folder.name)
    if not files:
        raise ValueError(f"`source_dir` must hold the images in {folder.name}/*.jpg, but {str(folder)!r} has none.")
    report.tables = [name for name in _TABLES if name in listing.files]
    listing.set_aside({path.relative_to(source).as_posix() for path in files.values()} | set(report.tables))
    report.add_listing(listing)
    return files


def _pool_notes(labels: Mapping[str, int], files: Collection[str], splits: Mapping[str, Sequence[str]]) -> list[str]:
    """Sentences about the images without a label."""
    notes = []
    pool = sum(labels.get(image_id, UNKNOWN_LABEL) == UNKNOWN_LABEL for image_id in files)
    if pool:
        notes.append(f"{pool:,} images without a label are the unlabelled pool (label -1).")
    held_out = sum(image_id not in labels for split in ("validation", "test") for image_id in splits[split])
    if held_out:
        notes.append(
            f"{held_out:,} of them show lesions of the validation or test split and are kept there, out of training."
        )
    return notes


def _source_image(
    image_id: str, file: Path, lesion: str, labels: Mapping[str, int], metadata: Mapping[str, Any]
) -> SourceImage:
    row = {
        "patient_id": lesion,
        "label": labels.get(image_id, UNKNOWN_LABEL),
        "metadata": {key: value for key, value in metadata.items() if key != "lesion_id"},
    }
    return SourceImage(image_id, file, row, file=file.name)


def _images(listing: Listing, folder: str) -> dict[str, Path]:
    """Identifier to path of the images."""
    found: dict[str, Path] = {}
    for name, path in listing.files.items():
        if name.startswith(folder + "/") and path.suffix.lower() in (".jpg", ".jpeg"):
            if path.stem in found:
                listing.skipped.append((name, "another image has the same name"))
            else:
                found[path.stem] = path
    return found


def _split_by_lesion(
    labels: dict[str, int], lesion: dict[str, str], validation_share: float, test_share: float, seed: int
) -> dict[str, list[str]]:
    """Draw labelled lesions for test, then for validation; every image follows its lesion."""
    known = sorted(image_id for image_id in lesion if labels.get(image_id, UNKNOWN_LABEL) != UNKNOWN_LABEL)
    split_of: dict[str, str] = {}
    for split, share in (("test", test_share), ("validation", validation_share)):
        lesions, strata = [lesion[image_id] for image_id in known], [labels[image_id] for image_id in known]
        kept, held_out = patient_validation_split(lesions, share, seed, strata)
        split_of.update((lesions[row], split) for row in held_out)
        known = [known[row] for row in kept]
    splits: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    for image_id in sorted(lesion):
        splits[split_of.get(lesion[image_id], "train")].append(image_id)
    return splits


def _read_labels(path: Path, report: ConversionReport) -> dict[str, int]:
    """Image to index of its diagnosis; -1 where the only mark is the dropped column."""
    columns, rows = read_rows(path)
    image = find_column(columns, ["image"], path)
    known = {image, *(find_column(columns, [name], path) for name in DIAGNOSES)}
    indices = [find_column(columns, [name], path) for name in DIAGNOSES]
    extra = [index for index in range(len(columns)) if index not in known]
    foreign = [columns[index] for index in extra if columns[index] not in (_NONE_OF_THE_OTHERS, "")]
    if foreign:
        raise ValueError(f"{path.name}: unknown diagnoses {foreign}. Known are {', '.join(DIAGNOSES)}.")
    labels: dict[str, int] = {}
    others = 0
    for line, row in rows:
        try:
            marks = [float(row[index]) for index in indices]
            other = any(float(row[index] or 0) for index in extra)
        except (ValueError, IndexError) as error:
            raise ValueError(f"{path.name}, line {line}: 1 or 0 per diagnosis is expected, but got {row}.") from error
        if row[image] in labels:
            raise ValueError(f"{path.name}, line {line}: the image {row[image]} is there twice.")
        if set(marks) - {0.0, 1.0} or sum(marks) + other != 1:
            raise ValueError(
                f"{path.name}, line {line}, image {row[image]}: exactly one diagnosis must be 1, but got "
                f"{dict(zip(DIAGNOSES, marks, strict=True))}."
            )
        labels[row[image]] = UNKNOWN_LABEL if other else marks.index(1.0)
        others += other
    if _NONE_OF_THE_OTHERS in columns:
        report.notes.append(
            f"The column {_NONE_OF_THE_OTHERS} is dropped: {others:,} images carry it"
            + (" and count as unlabelled." if others else ".")
        )
    return labels


def _is_unknown(text: str) -> bool:
    """No lesion, sex or site has a name such as "nan" here."""
    return is_missing(text) or reads_as_missing(text) or text == "unknown"


def _read_metadata(path: Path, report: ConversionReport) -> dict[str, dict[str, Any]]:
    """Image to age, sex, site of the body and lesion, as far as they are known."""
    if not path.is_file():
        report.notes.append(f"{path.name} was not found: every image counts as a lesion of its own.")
        return {}
    columns, rows = read_rows(path)
    names = {"age": "age_approx", "sex": "sex", "site": "anatom_site_general", "lesion_id": "lesion_id"}
    image = find_column(columns, ["image"], path)
    where = {key: find_column(columns, [name], path) for key, name in names.items()}
    metadata: dict[str, dict[str, Any]] = {}
    for line, row in rows:
        if len(row) <= max(image, *where.values()):
            raise ValueError(f"{path.name}, line {line}: {len(columns)} columns are expected, but got {len(row)}.")
        values: dict[str, Any] = {key: row[index] for key, index in where.items() if not _is_unknown(row[index])}
        if "age" in values:
            try:
                values["age"] = float(values["age"])
            except ValueError as error:
                raise ValueError(
                    f"{path.name}, line {line}: age_approx must be a number or empty, but got "
                    f"{form_of(values['age'])}."
                ) from error
        metadata[row[image]] = values
    without = sum("lesion_id" not in values for values in metadata.values())
    if without:
        report.notes.append(f"{without:,} images without lesion_id count as lesions of their own.")
    return metadata
