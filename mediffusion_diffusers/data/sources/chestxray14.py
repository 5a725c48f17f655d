"""NIH ChestX-ray14: 112,120 frontal chest radiographs of 30,805 patients with 14 findings mined from reports.

Reads the files of the official release: `Data_Entry_2017.csv` or `Data_Entry_2017_v2020.csv`, `train_val_list.txt`,
`test_list.txt`, `BBox_List_2017.csv` (if there), and the images in `images/` or `images_001/` ... `images_012/`.
Wang et al., "ChestX-ray8: Hospital-scale Chest X-ray Database and Benchmarks", CVPR 2017.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..conversion import SourceImage, write_sources
from ..listing import Listing, list_files
from ..schema import MULTI_LABEL, DatasetInfo
from ..splits import NO_FINDING, check_draws, patient_validation_split
from ..tables import find_column, read_list, read_rows
from ..writer import ConversionReport, check_output_folder


FINDINGS = (
    *("Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia", "Pneumothorax"),
    *("Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening", "Hernia"),
)
LABEL_FILES = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")
# The box list names one finding differently.
_BOX_FINDINGS = {"Infiltrate": "Infiltration"}
# Boxes are given in pixels of the released images, all of 1024 x 1024 pixels.
_BOX_FRAME = 1024.0
_OLDEST = 120.0
_YEARS_PER_UNIT = {"": 1.0, "Y": 1.0, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}


@dataclass(frozen=True)
class _Entry:
    """One row of the label file."""

    image_id: str
    patient_id: str
    labels: list[float]
    metadata: dict[str, Any]


def convert_chestxray14(
    source_dir: str | os.PathLike[str],
    output_dir: str | os.PathLike[str],
    *,
    image_size: int | None = None,
    validation_share: float = 5.0,
    seed: int = 0,
    metadata_only: bool = False,
    strict: bool = False,
    num_workers: int | None = None,
    overwrite: bool = False,
) -> DatasetInfo:
    """Convert the official ChestX-ray14 files.

    The official test list is the test split; the validation split is a share of the *training* patients. Images
    without a file are left out and listed in the report, unless there is no image at all: then, as with
    `metadata_only`, every row is written with an empty image.

    Args:
        source_dir: folder of the official files.
        output_dir: prepared dataset to write.
        image_size: reduce images to this shorter side, in pixels.
        validation_share: percent of the training patients, in [0, 100).
        seed: seed of the validation split.
        metadata_only: do not read images.
        strict: raise at the first image that cannot be read, instead of recording it.
        num_workers: images that are read at a time, by processes where there are many of them.
        overwrite: replace a prepared dataset at `output_dir`.

    Raises:
        ValueError: for missing or malformed files, an unknown finding, or a patient in both official lists.
    """
    source = Path(source_dir)
    check_draws(seed, validation_share=validation_share)
    check_output_folder(output_dir, overwrite)
    report = ConversionReport()
    entries = _read_entries(_label_file(source), report)
    boxes = _read_boxes(source / "BBox_List_2017.csv", entries, report)
    train, test = _official_split(source, entries, report)

    listing = list_files(source)
    files = {} if metadata_only else _images(listing)
    if not files:
        reason = "as asked for" if metadata_only else "as no image lies in images/ or images_001/ ... images_012/"
        report.notes.append(f"Metadata only, {reason}: all {len(train) + len(test):,} images are empty.")
    else:
        listed = [*train, *test]
        report.missing.extend(image_id for image_id in listed if image_id not in files)
        train = [image_id for image_id in train if image_id in files]
        test = [image_id for image_id in test if image_id in files]
        _account(listing, files, {*train, *test}, entries, report)

    kept, held_out = patient_validation_split(
        [entries[image_id].patient_id for image_id in train], validation_share, seed
    )
    splits = {"train": [train[row] for row in kept], "validation": [train[row] for row in held_out], "test": test}
    info = DatasetInfo(
        name="chestxray14",
        source="NIH ChestX-ray14, https://nihcc.app.box.com/v/ChestXray-NIHCC",
        licence="No restrictions of use, attribution (NIH Clinical Center)",
        attribution="NIH Clinical Center; X. Wang, Y. Peng, L. Lu, Z. Lu, M. Bagheri, R. M. Summers, ChestX-ray8, "
        "CVPR 2017",
        problem_type=MULTI_LABEL,
        label_names=list(FINDINGS),
        channels=1,
        image_size=None if not files else image_size,
        notes=[
            "Labels were mined from radiology reports by natural language processing; the authors estimate them to be "
            "over 90 % accurate.",
            f"Official test list; validation: {validation_share:g} % of the training patients, seed {seed}.",
        ],
    )
    sources = {
        split: [
            SourceImage(
                image_id,
                files.get(image_id),
                {
                    "patient_id": entries[image_id].patient_id,
                    "labels": entries[image_id].labels,
                    "boxes": boxes.get(image_id, []),
                    "metadata": entries[image_id].metadata,
                },
            )
            for image_id in image_ids
        ]
        for split, image_ids in splits.items()
    }
    return write_sources(
        output_dir, sources, info, report, strict=strict, num_workers=num_workers, overwrite=overwrite
    )


def _images(listing: Listing) -> dict[str, Path]:
    """File name to path of the images in `images/`, `images_001/images/` and the like."""
    found: dict[str, Path] = {}
    for name, path in listing.files.items():
        folder, _, rest = name.partition("/")
        if rest and folder.startswith("images") and name.lower().endswith(".png"):
            if path.name in found:
                listing.skipped.append((name, "another image has the same name"))
            else:
                found[path.name] = path
    return found


def _account(
    listing: Listing,
    files: dict[str, Path],
    converted: set[str],
    entries: dict[str, _Entry],
    report: ConversionReport,
) -> None:
    """Enter every file that is not converted into the report."""
    name_of = {path: name for name, path in listing.files.items()}
    for image_id, path in files.items():
        if image_id not in converted:
            reason = "it is in neither official list" if image_id in entries else "the label file has no row for it"
            listing.skipped.append((name_of[path], reason))
    used_tables = {_label_file(listing.root).name, "train_val_list.txt", "test_list.txt", "BBox_List_2017.csv"}
    report.tables = sorted(used_tables & {*listing.files, *(name for name, _ in listing.skipped)})
    listing.skipped = [(name, reason) for name, reason in listing.skipped if name not in used_tables]
    listing.files.update((name, listing.root / name) for name in report.tables)  # also an empty list
    listing.set_aside({*(name_of[files[image_id]] for image_id in converted), *report.tables})
    report.add_listing(listing)


def parse_age(text: str) -> float | None:
    """Age in years from "058", "060Y", "013M" or "005D"; None if it is missing or impossible ("411")."""
    match = re.fullmatch(r"(\d+)\s*([YMWD]?)", text.strip().upper())
    if match is None:
        return None
    age = int(match[1]) * _YEARS_PER_UNIT[match[2]]
    return round(age, 2) if age <= _OLDEST else None


def _listed(path: Path, entries: dict[str, _Entry], report: ConversionReport) -> list[str]:
    """The different images that a list names, sorted."""
    words = read_list(path)
    names = sorted({re.split(r"[\\/]", word)[-1] for word in words})
    if set(words) - set(names):
        report.notes.append(f"{path.name} names folders, such as in {words[0]!r}: only the file names count.")
    if names and not any(name in entries for name in names):
        raise ValueError(
            f"{path.name} must name images of the label file, but none of its {len(names):,} names has a row there "
            f"(the first: {names[0]!r}; a row: {next(iter(entries), None)!r})."
        )
    return names


def _label_file(source: Path) -> Path:
    for name in LABEL_FILES:
        if (source / name).is_file():
            return source / name
    raise ValueError(
        f"`source_dir` must hold {' or '.join(LABEL_FILES)}, but {str(source)!r} does not. Download the official "
        "release, or point to the folder that holds it."
    )


def _read_entries(path: Path, report: ConversionReport) -> dict[str, _Entry]:
    """Read the label file. The columns behind the bracketed ones are not read, so their variants do not matter."""
    columns, rows = read_rows(path)
    image, findings, follow_up, patient, age, sex, view = (
        find_column(columns, names, path)
        for names in (
            *(["Image Index"], ["Finding Labels"], ["Follow-up #"], ["Patient ID"], ["Patient Age"]),
            *(["Patient Gender", "Patient Sex"], ["View Position"]),
        )
    )
    width = max(image, findings, follow_up, patient, age, sex, view) + 1
    index_of = {name: index for index, name in enumerate(FINDINGS)}
    entries: dict[str, _Entry] = {}
    odd_ages: list[str] = []
    for line, row in rows:
        if len(row) < width:
            raise ValueError(f"{path.name}, line {line}: {width} columns are expected, but got {len(row)}: {row}.")
        image_id = row[image]
        if image_id in entries:
            raise ValueError(f"{path.name}, line {line}: the image {image_id} is there twice.")
        labels = [0.0] * len(FINDINGS)
        names = [name.strip() for name in row[findings].split("|")]
        for name in names:
            if name in index_of:
                labels[index_of[name]] = 1.0
            elif name != NO_FINDING or len(names) > 1:
                raise ValueError(
                    f"{path.name}, line {line}, image {image_id}: unknown finding {name!r} in {row[findings]!r}. "
                    f"Known are {', '.join(FINDINGS)} (joined by '|'), or {NO_FINDING!r} alone."
                )
        years = parse_age(row[age])
        if years is None or not row[age].isdigit():
            odd_ages.append(f"{image_id}: {row[age]!r} -> {'unknown' if years is None else f'{years:g}'}")
        entries[image_id] = _Entry(
            image_id,
            _patient_id(row[patient]),
            labels,
            {
                "age": years,
                "sex": row[sex] or None,
                "view": row[view] or None,
                "follow_up": int(row[follow_up]) if row[follow_up].isdigit() else None,
            },
        )
    if odd_ages:
        shown = "; ".join(odd_ages[:5]) + ("; ..." if len(odd_ages) > 5 else "")
        report.notes.append(
            f"{len(odd_ages):,} ages were not plain years up to {_OLDEST:g} and were read as: {shown}."
        )
    return entries


def _patient_id(text: str) -> str:
    """The eight digits that begin the image names, so that patients sort as their images do."""
    return text.zfill(8) if text.isdigit() else text


def _read_boxes(path: Path, entries: dict[str, _Entry], report: ConversionReport) -> dict[str, list[dict[str, float]]]:
    """Read the boxes in shares of the image. Columns: image, finding, then x, y, width, height under one header."""
    if not path.is_file():
        report.notes.append(f"No boxes: {path.name} was not found.")
        return {}
    boxes: dict[str, list[dict[str, float]]] = defaultdict(list)
    foreign = 0
    for line, row in read_rows(path)[1]:
        if len(row) < 6:
            raise ValueError(
                f"{path.name}, line {line}: image, finding and four numbers x, y, width, height are expected, but got "
                f"{row}."
            )
        image_id, name = row[0], _BOX_FINDINGS.get(row[1], row[1])
        if name not in FINDINGS:
            raise ValueError(
                f"{path.name}, line {line}, image {image_id}: unknown finding {row[1]!r}. Known are "
                f"{', '.join(FINDINGS)}."
            )
        try:
            x, y, width, height = (float(cell) / _BOX_FRAME for cell in row[2:6])
        except ValueError as error:
            raise ValueError(
                f"{path.name}, line {line}, image {image_id}: four numbers x, y, width, height are expected, but got "
                f"{row[2:6]}."
            ) from error
        if image_id not in entries:
            foreign += 1
            continue
        boxes[image_id].append({"label": FINDINGS.index(name), "x": x, "y": y, "width": width, "height": height})
    if foreign:
        report.notes.append(f"{foreign:,} boxes belong to images without a label row and were left out.")
    return boxes


def _official_split(source: Path, entries: dict[str, _Entry], report: ConversionReport) -> tuple[list[str], list[str]]:
    """The official lists, checked against the label file and for patients in both. A folder before a name is dropped.

    Raises:
        ValueError: if a list names images, but none that the label file has, or if both name a patient.
    """
    train, test = (_listed(source / name, entries, report) for name in ("train_val_list.txt", "test_list.txt"))
    unlabelled = [image_id for image_id in (*train, *test) if image_id not in entries]
    if unlabelled:
        report.notes.append(
            f"{len(unlabelled):,} listed images have no label row and were left out (the first: {unlabelled[0]})."
        )
    train, test = ([image_id for image_id in part if image_id in entries] for part in (train, test))
    unlisted = len(entries.keys() - set(train) - set(test))
    if unlisted:
        report.notes.append(f"{unlisted:,} rows of the label file are in neither official list and were left out.")
    shared = {entries[image_id].patient_id for image_id in train} & {entries[image_id].patient_id for image_id in test}
    if shared:
        raise ValueError(
            f"train_val_list.txt and test_list.txt must not share patients, but {len(shared):,} are in both (the "
            f"first: {min(shared)})."
        )
    return train, test
