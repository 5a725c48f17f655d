"""A folder of DICOM files, with or without a label file, as a prepared dataset without patient tags."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm.auto import tqdm

from ...atomic_files import write_text
from ...item_boundary import reading
from ..conversion import SourceImage, file_content, write_sources
from ..dicom import (
    GreyScale,
    describing_metadata,
    may_be_dicom,
    read_dicom,
    read_header,
    tag_text,
    tag_value,
    tells_who,
    without_warnings,
)
from ..label_table import LabelTable, read_label_table
from ..listing import Listing, list_files
from ..schema import MULTI_LABEL, DatasetInfo
from ..splits import check_draws, patient_validation_split
from ..writer import ConversionReport, check_output_folder


@dataclass(frozen=True)
class _File:
    """A DICOM file and what its header says; never written anywhere as it is.

    Args:
        path: where it lies.
        name: its path below the source.
        shown: what reports and messages call it.
        patient: PatientID, or the name of a file without one.
        instance: SOPInstanceUID.
        metadata: the tags that are kept.
        grey_scale: where the greys come from, in words.
        has_faults: whether part of its grey scale cannot be used.
    """

    path: Path
    name: str
    shown: str
    patient: str
    instance: str
    metadata: dict[str, str]
    grey_scale: str
    has_faults: bool


def convert_dicom(
    source_dir: str | os.PathLike[str],
    output_dir: str | os.PathLike[str],
    *,
    labels_file: str | os.PathLike[str] | None = None,
    label_columns: Sequence[str] | None = None,
    name: str = "dicom",
    image_size: int | None = None,
    validation_share: float = 5.0,
    test_share: float = 20.0,
    seed: int = 0,
    salt: str | None = None,
    key_file: str | os.PathLike[str] | None = None,
    licence: str = "unknown",
    attribution: str = "unknown",
    strict: bool = False,
    num_workers: int | None = None,
    overwrite: bool = False,
) -> DatasetInfo:
    """Convert every grey single-frame DICOM file below a folder, as 16-bit PNG.

    No name, date, identifier or UID is kept. `patient_id` and `image_id` are pseudonyms: the first 16 hexadecimal
    digits of SHA-256 over salt and PatientID, or salt and path. Without the salt they cannot be turned back by trying
    all identifiers; with the same salt they are the same again. Of the tags only Modality, ViewPosition and
    BodyPartExamined remain, where they hold a code. The report counts what it could only name by identifiers, and
    calls a skipped file by its `image_id` if its path repeats an identifier, a date or a name from its tags. Two
    things stay that you should look at before you share the folder: text burnt into the pixels, and the paths of
    skipped files that are no readable DICOM, in `conversion_report.json`.

    Args:
        source_dir: folder to search, with its sub-folders.
        output_dir: prepared dataset to write.
        labels_file: CSV file for `read_label_table`; its identifier is the path below `source_dir`, the file name
            with or without suffix, the SOPInstanceUID or the PatientID. Without it every label is unknown.
        label_columns: see `read_label_table`.
        name: name of the dataset.
        image_size: reduce images to this shorter side, in pixels.
        validation_share: percent of the patients that are left for training, in [0, 100).
        test_share: percent of the patients, in [0, 100).
        seed: seed of both draws.
        salt: secret text for the pseudonyms; None draws a fresh one that is kept nowhere.
        key_file: CSV file to write with file, image_id and patient_id, to find an image again. Keep it to yourself;
            it must not lie in `output_dir`.
        licence: under which terms the images may be used.
        attribution: whom to credit.
        strict: raise at the first file that cannot be converted, instead of recording it.
        num_workers: images that are read at a time, by processes where there are many of them.
        overwrite: replace a prepared dataset at `output_dir`.

    Raises:
        ValueError: if there is no DICOM file, none can be converted, or the label file does not fit.
        ImportError: if pydicom is not installed.
    """
    source, output = Path(source_dir), Path(output_dir)
    check_draws(seed, validation_share=validation_share, test_share=test_share)
    check_output_folder(output, overwrite)
    _check_pseudonyms(output, key_file, salt)
    salt = secrets.token_hex(16) if salt is None else salt
    report = ConversionReport()
    files = _read_headers(source, salt, report, strict)
    report.notes += _grey_scale_notes(files)
    table = None if labels_file is None else read_label_table(labels_file, label_columns)
    if table is None:
        report.notes.append("No label file: every label is unknown.")
    else:
        report.notes += table.notes
    labels = _match_labels(files, table, report)
    patients = {file.name: "patient-" + _pseudonym(file.patient, salt) for file in files}
    images = {file.name: _image_id(file.name, salt) for file in files}

    info = DatasetInfo(
        name=name,
        source="DICOM files",
        licence=licence,
        attribution=attribution,
        problem_type=MULTI_LABEL if table is None else table.problem_type,
        label_names=["unspecified"] if table is None else table.label_names,
        channels=1,
        image_size=image_size,
        notes=[
            f"Test: {test_share:g} % of the patients; validation: {validation_share:g} % of the others; seed {seed}.",
            "Identifiers are salted pseudonyms; no DICOM tag but modality, view and body part was kept.",
        ],
    )
    sources = {
        split: [
            _source_image(file, images[file.name], patients[file.name], labels.get(file.name, {})) for file in members
        ]
        for split, members in _draw_splits(files, test_share, validation_share, seed).items()
    }
    with without_warnings():
        saved = write_sources(
            output, sources, info, report, strict=strict, num_workers=num_workers, overwrite=overwrite
        )
    if key_file is not None:
        _write_key(Path(key_file), [(file.name, images[file.name], patients[file.name]) for file in files])
    return saved


def _check_pseudonyms(output: Path, key_file: str | os.PathLike[str] | None, salt: str | None) -> None:
    if key_file is not None and output.resolve() in Path(key_file).resolve().parents:
        raise ValueError(f"`key_file` must not lie in `output_dir`, which may be shared, but got {str(key_file)!r}.")
    if salt == "":
        raise ValueError("`salt` must be a secret text, or None for a fresh one, but is empty.")


def _draw_splits(
    files: Sequence[_File], test_share: float, validation_share: float, seed: int
) -> dict[str, list[_File]]:
    """Splits by patient: the test split first, then validation from what is left."""
    rest, test = patient_validation_split([file.patient for file in files], test_share, seed)
    kept, validation = patient_validation_split([files[row].patient for row in rest], validation_share, seed)
    return {
        "train": [files[rest[row]] for row in kept],
        "validation": [files[rest[row]] for row in validation],
        "test": [files[row] for row in test],
    }


def _source_image(file: _File, image_id: str, patient_id: str, labels: Mapping[str, Any]) -> SourceImage:
    metadata = {**file.metadata, **labels.get("metadata", {})}
    row = {**labels, "patient_id": patient_id, "metadata": metadata}
    return SourceImage(image_id, _Picture(file.path, file.shown), row, file=file.shown)


@dataclass(frozen=True)
class _Picture:
    """The picture in a DICOM file, read when it is asked for."""

    path: Path
    shown: str

    @property
    def content(self) -> str:
        """What tells the picture from others."""
        return file_content(self.path)

    def __call__(self) -> Image.Image:
        return read_dicom(self.path, self.shown)


def _read_headers(source: Path, salt: str, report: ConversionReport, strict: bool) -> list[_File]:
    """Find the DICOM files below a folder and read their headers, sorted by path."""
    listing = list_files(source)
    candidates = _dicom_files(listing)
    if not candidates:
        raise ValueError(f"`source_dir` must hold DICOM files, but none was found below {str(source)!r}.")
    report.add_listing(listing)
    # Counted and not named: what lies beside the images may be named after patients.
    report.ignored = {rule: ["(not named)"] * len(names) for rule, names in listing.ignored.items()}
    files = []
    with without_warnings():
        for name in tqdm(candidates, desc="DICOM headers", unit=" files"):
            try:
                files.append(_read_file(listing.files[name], name, salt))
            except ValueError as error:
                if strict:
                    raise
                report.skip(name, error)
    return files


def _read_file(path: Path, name: str, salt: str) -> _File:
    """Read what the header of one file says; ValueError, whatever is wrong with it."""
    header = read_header(path, name)
    with reading(f"read the tags of {name}"):
        grey_scale = GreyScale.of(header)
        return _File(
            path,
            name,
            shown=_image_id(name, salt) if tells_who(header, name) else name,
            patient=str(tag_value(header, "PatientID") or "").strip() or name,
            instance=tag_text(header, "SOPInstanceUID"),
            metadata=describing_metadata(header),
            grey_scale=grey_scale.source,
            has_faults=bool(grey_scale.faults),
        )


def _grey_scale_notes(files: Sequence[_File]) -> list[str]:
    """Where the greys come from: a study whose images are scaled differently cannot be compared by brightness."""
    counts = Counter(file.grey_scale for file in files)
    notes = [
        f"Greys come from {source} in {count:,} of {len(files):,} files." for source, count in sorted(counts.items())
    ]
    num_faults = sum(file.has_faults for file in files)
    if num_faults:
        notes.append(
            f"In {num_faults:,} files a window, lookup table or rescaling cannot be used (NaN, no width, ...) and was "
            "passed over."
        )
    return notes


def _dicom_files(listing: Listing) -> list[str]:
    """Names of the files that are DICOM by suffix, or by the mark after the preamble; the others become ignored."""
    candidates = []
    for name, path in listing.files.items():
        if path.name.upper() == "DICOMDIR":
            rule = "DICOMDIR: the index of a medium"
        elif not may_be_dicom(path):
            rule = "no DICOM: neither the suffix nor the mark of one"
        else:
            candidates.append(name)
            continue
        listing.ignored.setdefault(rule, []).append(name)
    listing.files = {name: listing.files[name] for name in candidates}
    return candidates


def _match_labels(
    files: Sequence[_File], table: LabelTable | None, report: ConversionReport
) -> dict[str, dict[str, Any]]:
    """Find the label row of every file by path, file name, stem, SOPInstanceUID or PatientID."""
    if table is None:
        return {}
    names = Counter(name for file in files for name in {file.path.name, file.path.stem})
    matched: dict[str, dict[str, Any]] = {}
    used: set[str] = set()
    for file in files:
        for key in (file.name, file.path.name, file.path.stem, file.instance, file.patient):
            if key not in table.rows:
                continue
            if key in (file.path.name, file.path.stem) and key != file.name and names[key] > 1:
                raise ValueError(
                    f"`labels_file` must tell the files apart, but {key!r} is the name of {names[key]} files. Use "
                    "paths below `source_dir`."
                )
            matched[file.name] = table.rows[key]
            used.add(key)
            break
    if not matched:
        raise ValueError(
            f"`labels_file` must name the DICOM files, but none of its {len(table.rows):,} identifiers fits the path "
            f"below `source_dir`, the file name, the SOPInstanceUID or the PatientID of one of {len(files):,} files."
        )
    if len(used) < len(table.rows):
        # Counted and not named: they are identifiers of patients.
        report.notes.append(f"{len(table.rows) - len(used):,} identifiers of the label file fit no file.")
    if len(matched) < len(files):
        report.notes.append(f"{len(files) - len(matched):,} files have no label row: their labels are unknown.")
    return matched


def _image_id(name: str, salt: str) -> str:
    return "image-" + _pseudonym(name, salt)


def _pseudonym(identifier: str, salt: str) -> str:
    """The first 64 bits of SHA-256 over salt and identifier, in hexadecimal."""
    return hashlib.sha256(f"{salt}\0{identifier}".encode()).hexdigest()[:16]


def _write_key(path: Path, rows: Sequence[tuple[str, str, str]]) -> None:
    """Write the table that undoes the pseudonyms, for its owner's eyes only."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["file", "image_id", "patient_id"])
    writer.writerows(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text.getvalue(), mode=0o600)
