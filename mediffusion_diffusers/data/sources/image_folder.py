"""A folder of images as a prepared dataset. Every file below it is accounted for.

Layouts:

- one folder per class, with pictures directly in it;
- or tables `metadata.csv`, `.tsv`, `.jsonl` or `.parquet` with a column `file_name`, relative to the table's folder;
  then the pictures may lie anywhere, and those without a row are skipped.

Both may lie below split folders: folders at the top whose whole name, in any case, is train, training, validation,
valid, val, dev, test or testing. No word inside a name decides anything. A folder that is neither one thing nor the
other is refused.
"""

from __future__ import annotations

import os
import posixpath
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from ..listing import Listing, list_files
from ..schema import SPLIT_OF_NAME, SPLITS, DatasetInfo
from ..tables import read_records
from ..writer import ConversionReport, check_output_folder
from .table_rows import ColumnNames, TableRow, TableSource, convert_table, find_name


_TABLES = ("metadata.csv", "metadata.tsv", "metadata.jsonl", "metadata.parquet")
_FILE_NAME = "file_name"
_FOLDER_LABEL = "label"


def convert_image_folder(
    source_dir: str | os.PathLike[str], output_dir: str | os.PathLike[str], **kwargs: Any
) -> DatasetInfo:
    """Convert a folder of images.

    Args:
        source_dir: the folder; see above for its layout. One that holds parquet files instead of pictures is read as
            `convert_hub_dataset` does.
        output_dir: prepared dataset to write.
        kwargs: see `convert_table`; `name` is the folder's name by default.

    Raises:
        ValueError: if there is no image, no label, the layout is mixed, or anything that `convert_table` refuses.
    """
    source = Path(source_dir)
    check_output_folder(output_dir, kwargs.get("overwrite", False))
    listing = list_files(source)
    if not listing.pictures():
        if any(name.lower().endswith(".parquet") for name in listing.files):
            from .hub_dataset import convert_hub_dataset

            return convert_hub_dataset(os.fspath(source), output_dir, **kwargs)
        raise ValueError(
            f"`source_dir` must be a folder with images, but {str(source)!r} holds none{_what_it_holds(listing)}."
        )
    kwargs.setdefault("name", source.resolve().name)
    kwargs.setdefault("source", "image folder")
    columns = kwargs.get("columns") or ColumnNames()
    tables = [name for name in listing.files if PurePosixPath(name).name.lower() in _TABLES]
    for name, reason in listing.skipped:
        if PurePosixPath(name).name.lower() in _TABLES:
            raise ValueError(
                f"The table {name} below {str(source)!r} cannot be used: {reason}. Mend it or move it away."
            )
    report = ConversionReport(tables=tables)
    if tables:
        table = _rows_of_tables(listing, tables, report)
    else:
        table = _rows_of_folders(listing, columns, report)
    _account(listing, table)
    return convert_table(table, output_dir, **kwargs)


def _rows_of_folders(listing: Listing, columns: ColumnNames, report: ConversionReport) -> TableSource:
    """The class of a picture is the folder that it lies in."""
    pictures = listing.pictures()
    if columns.label_columns is not None or columns.label not in (None, _FOLDER_LABEL):
        named = columns.label_columns or columns.label
        raise ValueError(
            f"The columns {named} were named, but {str(listing.root)!r} has no table such as metadata.csv."
        )
    splits = split_by_folder(pictures)
    inside = {name: name.removeprefix(prefix).split("/") for name, (_, prefix) in splits.items()}
    flat = [name for name, parts in inside.items() if len(parts) == 1]
    deep = [name for name, parts in inside.items() if len(parts) > 2]
    if flat or deep:
        raise ValueError(_mixed_layout(listing, flat, deep, inside))
    owners = _owners(pictures, report)
    rows: dict[str, list[TableRow]] = {}
    for name, path in pictures.items():
        cells = {_FOLDER_LABEL: inside[name][0]}
        rows.setdefault(splits[name][0], []).append(TableRow(name, path, cells, name, name, owners.get(name)))
    for folder in listing.empty_folders:
        report.notes.append(f"The folder {folder!r} holds no file, so it is no class.")
    _note_masks(pictures, report)
    return TableSource({split: rows[split] for split in SPLITS if split in rows}, [_FOLDER_LABEL], report=report)


def _rows_of_tables(listing: Listing, tables: Sequence[str], report: ConversionReport) -> TableSource:
    """The rows of all tables whose picture is there."""
    find = _NameFinder(listing)
    unreadable = {name for name, _ in listing.skipped}
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    columns: dict[str, None] = {}
    repeated = 0
    for table in tables:
        names, records = read_records(listing.files[table])
        file_name = find_name(names, _FILE_NAME)
        if file_name is None:
            raise ValueError(f"{table} must have a column {_FILE_NAME!r}, but it has {names}.")
        columns.update(dict.fromkeys(name for name in names if name != file_name))
        for line, record in records:
            place = f"{table}, line {line}"
            written = record.get(file_name)
            if not isinstance(written, str) or not written.strip():
                raise ValueError(f"{place}: the column {_FILE_NAME!r} must name a file, but got {written!r}.")
            name = find(written.strip(), posixpath.dirname(table))
            cells = {key: value for key, value in record.items() if key != file_name}
            if name is None or name in unreadable:
                report.missing += [written] if name is None else []
            elif name in found and found[name][1] == cells:
                repeated += 1
            elif name in found:
                raise ValueError(f"{place}: {name!r} is named twice, with other values in {found[name][0]}.")
            else:
                found[name] = (f"{place}, {name}", cells)
    if repeated:
        report.notes.append(f"{repeated:,} rows were there twice and count once.")
    if not found and not report.missing:
        raise ValueError(f"{', '.join(tables)} must have a row for each picture, but has none that can be used.")
    if not found:
        raise ValueError(
            f"None of the files named in {', '.join(tables)} lies below {str(listing.root)!r} (the first name: "
            f"{report.missing[0]!r}; a file: {next(iter(listing.pictures()))!r})."
        )
    for name in listing.pictures().keys() - found.keys():
        listing.skipped.append((name, f"no row of {', '.join(tables)} names it"))
    splits = split_by_folder(found)
    owners = _owners({name: listing.files[name] for name in sorted(found)}, report)
    rows: dict[str, list[TableRow]] = {}
    for name, (place, cells) in found.items():
        row = TableRow(name, listing.files[name], cells, place, name, owners.get(name))
        rows.setdefault(splits[name][0], []).append(row)
    rows = {split: rows[split] for split in SPLITS if split in rows}
    texts = all(PurePosixPath(table).suffix.lower() in (".csv", ".tsv") for table in tables)
    return TableSource(rows, list(columns), report=report, are_texts=texts)


def split_by_folder(names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """The split of every file, and the split folder that it lies in: `""` without split folders, when all train.

    Raises:
        ValueError: if split folders lie beside other files or folders, or two are of one split.
    """
    names = list(names)
    tops = {name: name.split("/")[0] if "/" in name else "" for name in names}
    given = {top: SPLIT_OF_NAME[top.lower()] for top in sorted(set(tops.values())) if top.lower() in SPLIT_OF_NAME}
    if not given:
        return dict.fromkeys(names, ("train", ""))
    others = [name for name, top in tops.items() if top not in given]
    if others:
        raise ValueError(
            f"The split folders {list(given)} lie beside {len(others):,} other pictures, such as {others[0]!r}: it "
            "cannot be told which split these belong to. Move them into the split folders or away."
        )
    if len(set(given.values())) < len(given):
        raise ValueError(f"Every split may have one folder, but {list(given)} are {list(given.values())}.")
    return {name: (given[top], top + "/") for name, top in tops.items()}


class _NameFinder:
    """Finds the file that a table means: by its letters, or else with `/` for `\\`, composed, or in another case."""

    def __init__(self, listing: Listing) -> None:
        self.root = listing.root
        self.names = {*listing.files, *(name for name, _ in listing.skipped)}
        self.alike: dict[str, list[str]] = {}
        for name in self.names:
            self.alike.setdefault(self._likeness(name), []).append(name)

    def __call__(self, written: str, folder: str) -> str | None:
        """The name below the root, or None if no file or several are meant."""
        for text in (written, written.replace("\\", "/")):
            name = posixpath.normpath(posixpath.join(folder, text))
            if text.startswith("/") and Path(text).is_relative_to(self.root.absolute()):
                name = Path(text).relative_to(self.root.absolute()).as_posix()
            if name in self.names:
                return name
            alike = self.alike.get(self._likeness(name), [])
            if len(alike) == 1:
                return alike[0]
        return None

    @staticmethod
    def _likeness(name: str) -> str:
        return unicodedata.normalize("NFC", name).casefold()


def _owners(pictures: Mapping[str, Path], report: ConversionReport) -> dict[str, str]:
    """One patient for pictures that are the same file, or differ in their suffix only ("1.png" and "1.jpg")."""
    members: dict[Any, list[str]] = {}
    for name, path in pictures.items():
        status = path.stat()
        for key in ((status.st_dev, status.st_ino), str(PurePosixPath(name).with_suffix("")).casefold()):
            members.setdefault(key, []).append(name)
    owners = {name: names[0] for names in members.values() if len(names) > 1 for name in names}
    if owners:
        report.notes.append(
            f"{len(owners):,} pictures share their file, or their name but for the suffix, with another, such as "
            f"{next(iter(owners))!r}: each such group counts as one patient."
        )
    return owners


def _note_masks(pictures: Mapping[str, Path], report: ConversionReport) -> None:
    """Say which pictures look like masks of their neighbours: their folder makes them images of a class."""
    stems = {str(PurePosixPath(name).with_suffix("")).lower() for name in pictures}
    endings = ("_mask", "-mask", "_seg", "_segmentation", "_mask_1", "_mask_2")
    masks = [
        name
        for name in pictures
        for stem in [str(PurePosixPath(name).with_suffix("")).lower()]
        if any(stem.endswith(ending) and stem.removesuffix(ending) in stems for ending in endings)
    ]
    if masks:
        report.notes.append(
            f"{len(masks):,} pictures are named like masks of others, such as {masks[0]!r}, and were converted as "
            "images. If they are masks, move them away or name the images in metadata.csv."
        )


def _account(listing: Listing, table: TableSource) -> None:
    """Enter every file that is not a row into the report."""
    used = {row.name for members in table.rows.values() for row in members} | set(table.report.tables)
    listing.set_aside(used)
    table.report.add_listing(listing)


def _mixed_layout(
    listing: Listing, flat: Sequence[str], deep: Sequence[str], inside: Mapping[str, Sequence[str]]
) -> str:
    tables = [name for name in listing.files if name.lower().endswith((".csv", ".tsv", ".jsonl", ".xlsx"))]
    table = f" The table {tables[0]!r} is read if it is called metadata.csv." if tables else ""
    remedy = (
        "Pictures must lie directly in one folder per class, optionally below train/, validation/ and test/; or "
        "name them in metadata.csv with the columns 'file_name' and 'label' or 'labels' (empty where unknown)." + table
    )
    if len(flat) == len(inside):
        return f"`source_dir` has no labels: no picture, such as {flat[0]!r}, lies in a class folder. {remedy}"
    if flat:
        return f"`source_dir` is mixed: {len(flat):,} pictures, such as {flat[0]!r}, lie in no class folder. {remedy}"
    tops = {parts[0] for parts in inside.values()}
    if len(tops) == 1 and len(deep) == len(inside):
        return f"All pictures lie below the one folder {next(iter(tops))!r}: name that one as `source_dir`. {remedy}"
    below = sorted({inside[name][1] for name in deep if inside[name][1].lower() in SPLIT_OF_NAME})
    hint = f" Split folders, such as {below[0]!r} there, must lie at the top." if below else ""
    where = f"{len(deep):,} pictures, such as {deep[0]!r}, lie deeper than a class folder"
    return f"`source_dir` is mixed: {where}.{hint} {remedy}"


def _what_it_holds(listing: Listing) -> str:
    if listing.skipped:
        name, reason = listing.skipped[0]
        return f" that can be read (the first of {len(listing.skipped):,} that cannot: {name}: {reason})"
    return f" among its {len(listing.files):,} files, such as {next(iter(listing.files))!r}" if listing.files else ""
