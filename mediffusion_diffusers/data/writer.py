"""Writing a prepared dataset: parquet shards and `dataset_info.json`, aside first, then renamed into place."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..atomic_files import write_json, write_text
from ..output_folder import LOCK_FILE, claimed_folder, missing_folders, remove_empty
from .listing import Listing
from .parquet_shards import open_shard
from .schema import INFO_FILE, SPLITS, UNKNOWN_LABEL, DatasetInfo, features
from .summary import demographics


if TYPE_CHECKING:
    import pyarrow as pa


REPORT_FILE = "conversion_report.json"
SHARD_SIZE = 500 * 2**20  # bytes of images per parquet file, about
_PREVIOUS, _WRITTEN, _PARTS = "previous", "written", "parts"
_ROWS_PER_GROUP = 1000
_BYTES_PER_GROUP = 32 * 2**20


@dataclass
class ConversionReport:
    """What became of everything that a source holds; saved as `conversion_report.json` beside the data.

    The report names files: read it before you publish the folder, if file names say who the patients are.

    Args:
        missing: names of listed images whose file was not found.
        skipped: `{"file": ..., "reason": ...}` of files that could not be converted.
        notes: anything else, in sentences.
        tables: files that were read as tables or lists.
        ignored: names of files by the rule that leaves them out; a folder ends with `/` and stands for all in it.
        found: how many files the source has, if it listed them; then
            found = converted + skipped + ignored + tables.
        converted: rows written.
        unlabelled: rows among them without any known label.
    """

    missing: list[str] = field(default_factory=list)
    skipped: list[dict[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)
    ignored: dict[str, list[str]] = field(default_factory=dict)
    found: int | None = None
    converted: int = 0
    unlabelled: int = 0

    def skip(self, file: str, reason: object) -> None:
        """Record a file that was left out."""
        self.skipped.append({"file": file, "reason": str(reason)})

    def add_listing(self, listing: Listing) -> None:
        """Take over what a listing found, skipped and ignored."""
        self.found = (self.found or 0) + listing.found
        self.ignored.update(listing.ignored)
        for name, reason in listing.skipped:
            self.skip(name, reason)

    def check(self, num_images: int) -> None:
        """See that the counts add up, with the images that are or will be converted."""
        accounted = num_images + len(self.skipped) + sum(map(len, self.ignored.values())) + len(self.tables)
        assert self.found in (None, accounted), f"{self.found} files were found, but {accounted} accounted for"

    def close(self, converted: int, unlabelled: int) -> None:
        """Enter what was written."""
        self.check(converted)
        self.converted, self.unlabelled = converted, unlabelled

    def sentences(self) -> list[str]:
        """The report in a few sentences, with counts instead of names."""
        counts = []
        if self.missing:
            counts.append(f"Listed images that were not found: {len(self.missing):,}.")
        if self.skipped:
            counts.append(f"Files that could not be converted and were skipped: {len(self.skipped):,}.")
        if self.converted and self.unlabelled == self.converted:
            counts.append("No image has a known label.")
        return [*self.notes, *counts]

    def account(self) -> str:
        """What became of the files found, in one line."""
        ignored = sum(map(len, self.ignored.values()))
        found = "" if self.found is None else f"{self.found:,} files found = "
        return (
            f"{found}{self.converted:,} converted (of these {self.unlabelled:,} unlabelled) + {len(self.skipped):,} "
            f"skipped + {ignored:,} ignored + {len(self.tables):,} tables; {len(self.missing):,} listed but missing"
        )


def write_prepared(
    folder: str | os.PathLike[str],
    rows_by_split: Mapping[str, Iterable[dict[str, Any]]],
    info: DatasetInfo,
    *,
    num_rows: Mapping[str, int] | None = None,
    report: ConversionReport | None = None,
    overwrite: bool = False,
    shard_size: int = SHARD_SIZE,
    show_progress: bool = True,
) -> DatasetInfo:
    """Write a prepared dataset folder.

    Everything is written into a hidden folder beside `folder`, which takes its name at the very end: a broken
    conversion never damages what was there before, and the next one to the same folder clears what it left behind.

    Args:
        folder: where to write.
        rows_by_split: rows from `make_row`, read one after the other; keys are `"train"`, `"validation"`, `"test"`.
            A split without any row is left out.
        info: the dataset; `num_rows`, `demographics` and the notes of `report` are filled in.
        num_rows: rows per split that are expected, for the progress bar.
        report: what the conversion left out; may still grow while the rows are read.
        overwrite: replace a prepared dataset that is already there.
        shard_size: bytes of images per parquet file, about.
        show_progress: show a progress bar.

    Returns:
        The `DatasetInfo` as saved.

    Raises:
        ValueError: if `folder` is taken, a split is unknown, no row remains, an `image_id` is there twice, or a
            patient is in two splits.
    """
    unknown = [split for split in rows_by_split if split not in SPLITS]
    if unknown:
        raise ValueError(f"The splits of `rows_by_split` must be among {list(SPLITS)}, but got {unknown}.")

    def write(place: Path) -> dict[str, list[Path]]:
        from tqdm.auto import tqdm

        expected = dict(num_rows or {})
        shards = {}
        for split, rows in rows_by_split.items():
            name, total = f"{info.name} {split}", expected.get(split)
            with tqdm(rows, name, total, unit=" images", disable=not show_progress) as stream:
                shards[split] = write_shards(place, split, stream, info, shard_size)
        return shards

    return write_folder(folder, write, info, report or ConversionReport(), overwrite)


def write_folder(
    folder: str | os.PathLike[str],
    write: Callable[[Path], Mapping[str, Sequence[Path]]],
    info: DatasetInfo,
    report: ConversionReport,
    overwrite: bool = False,
    plan: str | None = None,
) -> DatasetInfo:
    """Write a prepared dataset folder of shards that `write` makes; see `write_prepared`.

    Args:
        folder: where to write.
        write: makes the shards of every split in the folder that it is given, and returns them in order.
        info: the dataset.
        report: what the conversion left out; may still grow while `write` works.
        overwrite: replace a prepared dataset that is already there.
        plan: a digest of all that the shards depend on. A run that was killed, stopped or out of room leaves the
            files of `write` to the next one with the same plan; without a plan each run begins anew.

    Raises:
        ValueError: as `write_prepared`.
    """
    folder = _real(folder)
    check_output_folder(folder, overwrite)
    with _workplace(folder) as workplace:
        parts = workplace / _PARTS
        _begin(parts, plan)
        goes_on = False
        try:
            saved = _save(workplace, write(parts), info, report)
            if folder.exists():
                os.replace(folder, workplace / _PREVIOUS)
            os.replace(workplace / _WRITTEN, folder)
        except (KeyboardInterrupt, SystemExit, OSError):
            goes_on = plan is not None
            raise
        finally:
            if not goes_on:
                shutil.rmtree(parts, ignore_errors=True)
    return saved


def _begin(parts: Path, plan: str | None) -> None:
    """Make the folder of the parts; what another plan has left in it is removed."""
    path = parts / "plan.txt"
    if plan is None or not path.is_file() or path.read_text(encoding="utf-8") != plan:
        shutil.rmtree(parts, ignore_errors=True)
        parts.mkdir()
        write_text(path, plan or "")


def _save(
    workplace: Path, shards: Mapping[str, Sequence[Path]], info: DatasetInfo, report: ConversionReport
) -> DatasetInfo:
    """Give the shards their names in a folder of their own, with `dataset_info.json` and the report."""
    checks = _RowChecks()
    saved = replace(info, num_rows={}, demographics={})
    for split, paths in shards.items():
        if num_rows := checks.read(split, paths, info):
            saved.num_rows[split] = num_rows
            saved.demographics[split] = demographics(checks.metadata, checks.patient_ids)
    if not saved.num_rows:
        first = f" The first reason: {report.skipped[0]['reason']}" if report.skipped else ""
        raise ValueError(
            f"No image of {info.name} could be converted ({len(report.missing):,} missing, "
            f"{len(report.skipped):,} skipped), so there is nothing to write.{first}"
        )
    report.close(sum(saved.num_rows.values()), checks.unlabelled)
    saved.notes = [*info.notes, *report.sentences()]
    written = workplace / _WRITTEN
    (written / "data").mkdir(parents=True)
    for split, paths in shards.items():
        for index, path in enumerate(paths):
            os.replace(path, written / "data" / f"{split}-{index:05d}-of-{len(paths):05d}.parquet")
    saved.save(written)
    write_json(written / REPORT_FILE, asdict(report))
    return saved


def check_output_folder(folder: str | os.PathLike[str], overwrite: bool) -> None:
    """Refuse to write over anything but an empty folder or, with `overwrite`, a prepared dataset; try the place.

    Raises:
        ValueError: if `folder` is taken, a mount point, in use by another run, or cannot be written.
    """
    folder = _real(folder)
    with _workplace(folder):
        pass
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        if os.path.ismount(folder):
            raise ValueError(f"`output_dir` {str(folder)!r} is a mount point. Name a new folder in it.")
        return
    if not (folder / INFO_FILE).is_file():
        raise ValueError(
            f"`output_dir` must be new, empty or a prepared dataset, but {str(folder)!r} "
            + ("holds other files." if folder.is_dir() else "is a file.")
        )
    if not overwrite:
        raise ValueError(
            f"`output_dir` {str(folder)!r} already holds a prepared dataset. Choose another one or pass `overwrite`."
        )


def _real(folder: str | os.PathLike[str]) -> Path:
    """Links resolved, so that the data lies where they point to."""
    return Path(os.path.realpath(folder))


@contextmanager
def _workplace(folder: Path) -> Iterator[Path]:
    """A hidden folder beside `folder`, held against other runs, empty but for finished parts, and gone at the end.

    What a killed run left in it is removed, except parts; a dataset that it had just put aside gets its name back.
    """
    place = folder.parent / f".{folder.name}.writing"
    made = missing_folders(place)
    with claimed_folder(place):
        if (place / _PREVIOUS).exists() and not folder.exists():
            os.replace(place / _PREVIOUS, folder)
        _clear(place)
        try:
            yield place
        except BaseException:
            if (place / _PREVIOUS).exists() and not folder.exists():
                os.replace(place / _PREVIOUS, folder)
            raise
        finally:
            _clear(place)
            (place / LOCK_FILE).unlink(missing_ok=True)
            remove_empty([place, *made])  # unless parts are left, or another run has just come


def _clear(place: Path) -> None:
    for path in place.iterdir():
        if path.name in (LOCK_FILE, _PARTS):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


class _RowChecks:
    """What only shows across rows: unique images, and patients that stay in one split."""

    def __init__(self) -> None:
        self.image_ids: set[str] = set()
        self.unlabelled = 0
        self.split_of_patient: dict[str, str] = {}
        self.metadata: list[str] = []
        self.patient_ids: list[str] = []

    def read(self, split: str, paths: Iterable[Path], info: DatasetInfo) -> int:
        """Read all but the pictures of a split, keeping its metadata and patients; returns its number of rows."""
        self.metadata, self.patient_ids = [], []
        columns = ["image_id", "patient_id", "metadata", "labels" if info.is_multi_label else "label"]
        for path in paths:
            for row in open_shard(path).read(columns=columns).to_pylist():
                self._add(split, row)
        return len(self.metadata)

    def _add(self, split: str, row: dict[str, Any]) -> None:
        if row["image_id"] in self.image_ids:
            raise ValueError(f"Every `image_id` must be unique, but {row['image_id']!r} is there twice.")
        self.image_ids.add(row["image_id"])
        other = self.split_of_patient.setdefault(row["patient_id"], split)
        if other != split:
            raise ValueError(
                f"No patient may be in two splits, but {row['patient_id']!r} is in {other!r} and {split!r}. "
                "Split the data by patient."
            )
        self.unlabelled += _is_unlabelled(row)
        self.metadata.append(row["metadata"])
        self.patient_ids.append(row["patient_id"])


def _is_unlabelled(row: Mapping[str, Any]) -> bool:
    if "label" in row:
        return row["label"] == UNKNOWN_LABEL
    return all(math.isnan(label) for label in row["labels"])


def write_shards(
    folder: Path, name: str, rows: Iterable[dict[str, Any]], info: DatasetInfo, shard_size: int = SHARD_SIZE
) -> list[Path]:
    """Write rows as parquet files, each of about `shard_size` bytes of images, and return them.

    Args:
        folder: where to write.
        name: beginning of the files' names.
        rows: from `make_row`; no more than 32 MB of images, or the largest one, are held in memory.
        info: the dataset.
        shard_size: bytes of images per file, about.
    """
    import pyarrow.parquet as pq

    schema = features(info.problem_type, info.num_labels).arrow_schema
    shards: list[Path] = []
    shard_bytes = 0
    writer: pq.ParquetWriter | None = None
    for table, num_bytes in _tables(rows, schema):
        if writer is None:
            shards.append(folder / f"{name}-{len(shards):05d}.parquet")
            writer = pq.ParquetWriter(shards[-1], schema)
        writer.write_table(table)
        shard_bytes += num_bytes
        if shard_bytes >= shard_size:
            writer.close()
            writer, shard_bytes = None, 0
    if writer is not None:
        writer.close()
    return shards


def _tables(rows: Iterable[dict[str, Any]], schema: pa.Schema) -> Iterator[tuple[pa.Table, int]]:
    """Group rows into tables of a bounded size, each with its bytes of images."""
    import pyarrow as pa

    group: list[dict[str, Any]] = []
    num_bytes = 0
    for row in rows:
        group.append(row)
        num_bytes += len(row["image"]["bytes"]) if row["image"] is not None else 0
        if len(group) >= _ROWS_PER_GROUP or num_bytes >= _BYTES_PER_GROUP:
            yield pa.Table.from_pylist(group, schema=schema), num_bytes
            group, num_bytes = [], 0
    if group:
        yield pa.Table.from_pylist(group, schema=schema), num_bytes
