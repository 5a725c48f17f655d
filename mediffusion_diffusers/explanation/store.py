"""The finished chunks of a run: one Parquet file each, whose footer says what it belongs to and what it holds.

Nothing else is kept. A file is written aside and renamed, so it is whole or not there, and every engine, launch and
machine that works on the folder sees the same. Two that make the same chunk write the same bytes.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..atomic_files import create_json, write_json
from ..staging import files_below, remove_abandoned, remove_empty_folders, staged_file
from .chunk import Chunk
from .identity import identity_differences


MANIFEST_FILE = "manifest.json"
ROW_GROUP_ROWS = 128  # what a reader takes into memory at once
_STAGING = ".staging"
_CUT_FILE = ".chunk_rows.json"
_KEY = b"mediffusion_chunk"
_EARLIER_KEY = b"mediffusion_explanation"  # of versions that wrote one file per input shard
_CHUNK_NAME = re.compile(r"(.+)-rows-(\d{8,})-(\d{8,})\.parquet")
_READING_THREADS = 8
_REMEDY = "Choose another `output_dir`, or pass `--overwrite` to replace those explanations."


@dataclass(frozen=True)
class ChunkRecord:
    """What a finished file belongs to and holds.

    Args:
        identity: of the run, see `run_identity`.
        input: name, size, content hash and rows of the input shard.
        start: first input row.
        stop: the one after the last.
        chunk_rows: rows of every chunk of the run but the last ones of a shard.
        num_explained: rows with an answer.
        num_failed: rows with an error.
        failures: how many rows by error.
    """

    identity: dict[str, Any]
    input: dict[str, Any]
    start: int
    stop: int
    chunk_rows: int
    num_explained: int = 0
    num_failed: int = 0
    failures: dict[str, int] = field(default_factory=dict)

    def counts(self) -> dict[str, int]:
        """Input rows, and what became of them: explained, failed, not asked about."""
        num_rows = self.stop - self.start
        passed_over = num_rows - self.num_explained - self.num_failed
        return {
            "num_rows": num_rows,
            "num_explained": self.num_explained,
            "num_failed": self.num_failed,
            "num_passed_over": passed_over,
        }


def sum_of(records: Iterable[ChunkRecord]) -> dict[str, Any]:
    """The counts of all records, and `failures`: how many rows by error, the most frequent first."""
    totals = Counter(dict.fromkeys(ChunkRecord({}, {}, 0, 0, 1).counts(), 0))
    failures: Counter[str] = Counter()
    for record in records:
        totals.update(record.counts())
        failures.update(record.failures)
    by_frequency = sorted(failures.items(), key=lambda each: (-each[1], each[0]))
    return {**totals, "failures": dict(by_frequency)}


class ChunkStore:
    """The output folder of a run.

    Args:
        output_dir: the folder; created if it is not there.
        identity: of the run.
        schema: of its files.
        chunk_rows: rows per chunk, where they are known already.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike[str],
        identity: Mapping[str, Any],
        schema: pa.Schema,
        chunk_rows: int = 0,
    ):
        self.root = Path(output_dir)
        self.identity, self.schema, self.chunk_rows = dict(identity), schema, chunk_rows
        self._records: dict[Path, tuple[tuple[int, int], ChunkRecord | None]] = {}
        self.root.mkdir(parents=True, exist_ok=True)

    def record(self, chunk: Chunk) -> ChunkRecord | None:
        """What the file of a chunk says of itself, `None` if it is not finished.

        Raises:
            ValueError: if the file is another run's, or was made from another input.
        """
        record = self._read(self.root / chunk.file_name)
        if record is not None:
            self._refuse(self._why_foreign(chunk.file_name, record, {chunk.shard.name: chunk.shard.identity}))
        return record

    def has(self, chunk: Chunk) -> bool:
        """Whether a chunk is finished; raises as `record`."""
        return self.record(chunk) is not None

    def write(self, chunk: Chunk, table: pa.Table) -> None:
        """Write the file of a chunk, whole or not at all.

        Raises:
            ValueError: as `record`.
            OSError: if it cannot be written.
        """
        if self.has(chunk):  # another worker was faster, with the same bytes
            return
        failures = Counter(error for error in table["error"].to_pylist() if error is not None)
        num_failed = sum(failures.values())
        record = ChunkRecord(
            self.identity,
            chunk.shard.identity,
            chunk.start,
            chunk.stop,
            self.chunk_rows,
            num_explained=len(table) - num_failed,
            num_failed=num_failed,
            failures=dict(failures),
        )
        metadata = {**(self.schema.metadata or {}), _KEY: json.dumps(asdict(record), sort_keys=True)}
        schema = self.schema.with_metadata(metadata)
        # Statistics of pictures would put the pictures themselves into the footer.
        options: dict[str, Any] = {"write_statistics": ["row", "image_id"], "write_page_checksum": True}
        with (
            staged_file(self.root / _STAGING, self.root / chunk.file_name) as file,
            pq.ParquetWriter(file, schema, **options) as writer,
        ):
            writer.write_table(table.replace_schema_metadata(metadata), row_group_size=ROW_GROUP_ROWS)

    def check(self, inputs: Mapping[str, Mapping[str, Any] | None], overwrite: bool = False) -> list[str]:
        """Make sure that what the folder holds belongs to this run.

        Args:
            inputs: identities of all input shards by name; `None` for one that this task does not read.
            overwrite: delete explanations that do not belong instead of refusing them.

        Returns:
            Names of damaged chunks, which were removed: they are made again.

        Raises:
            ValueError: saying what does not belong, and what to do.
        """
        damaged = []
        for name, record in self._all_records().items():
            path, is_chunk = self.root / name, record is not None
            if record is None and _shard_of(name) in inputs:
                damaged.append(name)
                path.unlink(missing_ok=True)
            elif why := self._why_foreign(name, record, inputs):
                if not overwrite:
                    self._refuse(why)
                elif is_chunk or _EARLIER_KEY in _footer(path):
                    path.unlink(missing_ok=True)
        if overwrite:
            (self.root / _CUT_FILE).unlink(missing_ok=True)
        return damaged

    def agree_on_chunk_rows(self, wanted: int | None, measure: Callable[[], int]) -> int:
        """Rows per chunk: those of the chunks that are there, else those of who begins first.

        Args:
            wanted: what the user names.
            measure: what is best here.

        Raises:
            ValueError: if the folder holds chunks of another size than the one that is named.
        """
        there = {record.chunk_rows for record in self._all_records().values() if record is not None}
        if not there:
            path = self.root / _CUT_FILE
            if not (first := self._first_choice(path)):
                path.unlink(missing_ok=True)
                create_json(path, {"chunk_rows": wanted or measure(), "identity": self.identity})
                if not (first := self._first_choice(path)):
                    self._refuse("is being begun by another run")
            there = {first}
        self.chunk_rows = max(there)
        if wanted is not None and wanted != self.chunk_rows:
            raise ValueError(
                f"`chunk_rows` must be {self.chunk_rows}, as `output_dir` {str(self.root)!r} was begun, but got "
                f"{wanted}. Leave it out, or choose another `output_dir`."
            )
        return self.chunk_rows

    def manifest(self, inputs: Sequence[str], description: Mapping[str, Any]) -> dict[str, Any]:
        """What is finished now, from the footers.

        Args:
            inputs: names of all input shards.
            description: more to say: the dataset, the model.
        """
        by_shard: dict[str, list[ChunkRecord]] = {name: [] for name in inputs}
        for name, record in self._all_records().items():
            if record is not None:
                self._refuse(self._why_foreign(name, record, {record.input["name"]: None}))
                by_shard.get(record.input["name"], []).append(record)
        shards = []
        for records in filter(None, by_shard.values()):
            there = sum_of(records)
            finished = there.pop("num_rows") == records[0].input["num_rows"]
            shards.append({**records[0].input, "finished": finished, "num_chunks": len(records), **there})
        return {
            "complete": sum(shard["finished"] for shard in shards) == len(inputs),
            "num_shards": len(inputs),
            "num_finished_shards": sum(shard["finished"] for shard in shards),
            "num_chunks": sum(shard["num_chunks"] for shard in shards),
            **sum_of(record for records in by_shard.values() for record in records),
            **description,
            "identity": self.identity,
            "shards": shards,
        }

    def write_manifest(self, inputs: Sequence[str], description: Mapping[str, Any]) -> dict[str, Any]:
        """Write `manifest.json` until nothing has been added meanwhile, so that whoever ends last leaves all."""
        content = self.manifest(inputs, description)
        while True:
            write_json(self.root / MANIFEST_FILE, content)
            newer = self.manifest(inputs, description)
            if newer == content:
                return content
            content = newer

    def clear_away(self) -> None:
        """Remove what killed processes left of files they were writing."""
        remove_abandoned(self.root / _STAGING)
        remove_empty_folders(self.root / _STAGING, self.root / _STAGING)

    def _first_choice(self, path: Path) -> int:
        """The rows per chunk that a launch of this run has chosen, or 0."""
        try:
            choice = json.loads(path.read_text(encoding="utf-8"))
            return 0 if identity_differences(choice["identity"], self.identity) else int(choice["chunk_rows"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return 0

    def _all_records(self) -> dict[str, ChunkRecord | None]:
        """The record of every Parquet file in the folder, by name."""
        paths = [path for path in files_below(self.root, skip=_STAGING) if path.suffix == ".parquet"]
        with ThreadPoolExecutor(_READING_THREADS) as pool:
            records = pool.map(self._read, paths)
            return {
                path.relative_to(self.root).as_posix(): record for path, record in zip(paths, records, strict=True)
            }

    def _read(self, path: Path) -> ChunkRecord | None:
        """The record in a file, read once for each version of the file."""
        try:
            status = path.stat()
        except FileNotFoundError:
            return None
        version = (status.st_mtime_ns, status.st_size)
        if path not in self._records or self._records[path][0] != version:
            try:
                values = json.loads(_footer(path)[_KEY])
                if values["identity"] == self.identity:  # one object for a million images
                    values["identity"] = self.identity
                record = ChunkRecord(**values)
            except (KeyError, TypeError, ValueError):
                record = None
            self._records[path] = (version, record)
        return self._records[path][1]

    def _why_foreign(
        self, name: str, record: ChunkRecord | None, inputs: Mapping[str, Mapping[str, Any] | None]
    ) -> str:
        """Why a file does not belong to this run, or nothing."""
        if record is None:
            if _EARLIER_KEY in _footer(self.root / name):
                return f"holds {name!r} of an earlier version, which cannot be gone on with (`datasets` reads it)"
            return f"holds {name!r}, which is no explanation"
        shard = record.input["name"]
        if changes := identity_differences(record.identity, self.identity):
            return f"holds {name!r} of another run: {', '.join(changes)}"
        if shard not in inputs:
            return f"holds {name!r}, but the dataset has no input shard {shard!r}"
        if changes := identity_differences(record.input, inputs[shard] or record.input):
            return f"holds {name!r}, but its input has changed since it was explained: {', '.join(changes)}"
        return ""

    def _refuse(self, why: str) -> None:
        if why:
            raise ValueError(f"`output_dir` {str(self.root)!r} {why}. {_REMEDY}")


def _shard_of(name: str) -> str | None:
    """The input shard of a chunk's file, by its name."""
    match = _CHUNK_NAME.fullmatch(name)
    return f"{match[1]}.parquet" if match else None


def _footer(path: Path) -> dict[bytes, bytes]:
    """What a Parquet file says beside its columns; nothing if it is none or damaged."""
    try:
        return pq.read_schema(path).metadata or {}
    except (OSError, pa.ArrowException):
        return {}
