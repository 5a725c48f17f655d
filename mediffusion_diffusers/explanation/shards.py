"""Output shards: one row per explained or failed image, in the order of the input, under the input shard's name.

A shard is made of parts, each of the same number of input rows, which lie in `.work/parts` until the last one is
there; they are then joined and renamed. Every file says in its footer what it belongs to (`ShardRecord`).

Columns:

- `image_id`, `shard`, `row`: the input's name for the image (null if it has none), its shard, its place there from 0;
- `error`: why there is no explanation, else null; the columns below are then null;
- `probabilities_before`, `probabilities_after`, `probabilities_null`: one float per label, of the original, the
  counterfactual and the null edit;
- `counterfactual`, `null_edit`: PNG pictures; `difference`: counterfactual minus original, signed, for
  `decode_difference`;
- `guidance_scale`, `strength`: as used; `reached`: whether a search reached its target, null without one;
- `l1`, `high_frequency_share`: size of the change, and the share of its energy above half of the highest frequency;
  `controls`: changes of the same `l1` by the plain gradient and by noise, each a `name`, an `image`, `probabilities`
  and a `high_frequency_share`; all null without controls;
- `settings`: those of the pipeline, as JSON, null with an error; `label_names`, `model_hash`: the same in every row.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..staging import files_below, remove_abandoned, remove_empty_folders, staged_file
from .input_shards import InputShard
from .request import identity_differences


WORK_FOLDER = ".work"
ROW_GROUP_ROWS = 128  # of a finished shard, or a little more: what a reader takes into memory at once
_METADATA_KEY = b"mediffusion_explanation"


@dataclass(frozen=True)
class ShardRecord:
    """What a shard, or a part of one, belongs to and holds; kept in its footer.

    Args:
        identity: of the run, see `run_identity`.
        input: name, size and content hash of the input shard.
        num_rows: input rows.
        num_explained: rows with an explanation.
        num_failed: rows with an error.
        num_passed_over: rows that the request does not ask about.
    """

    identity: dict[str, Any]
    input: dict[str, Any]
    num_rows: int = 0
    num_explained: int = 0
    num_failed: int = 0
    num_passed_over: int = 0

    def belongs_to(self, other: ShardRecord) -> bool:
        """Whether both are of the same run and input."""
        return self.input == other.input and not identity_differences(self.identity, other.identity)

    def plus(self, other: ShardRecord) -> ShardRecord:
        """The sum of the counts."""
        sums = {name: value + getattr(other, name) for name, value in self.counts().items()}
        return ShardRecord(self.identity, self.input, **sums)

    def counts(self) -> dict[str, int]:
        """The counts by name."""
        return {each.name: getattr(self, each.name) for each in fields(self) if each.name.startswith("num_")}


def output_schema() -> pa.Schema:
    """Columns of an output shard, readable by `datasets`, pictures as `Image`."""
    import datasets

    image, number, text = datasets.Image(), datasets.Value("float32"), datasets.Value("string")
    scores = datasets.List(number)
    control = {"name": text, "image": image, "probabilities": scores, "high_frequency_share": number}
    columns = {
        **{"image_id": text, "shard": text, "row": datasets.Value("int64"), "error": text},
        **{f"probabilities_{when}": scores for when in ("before", "after", "null")},
        **{"counterfactual": image, "difference": image, "null_edit": image},
        **{"guidance_scale": number, "strength": number, "reached": datasets.Value("bool")},
        **{"l1": number, "high_frequency_share": number, "controls": datasets.List(control)},
        **{"label_names": datasets.List(text), "settings": text, "model_hash": text},
    }
    return datasets.Features(columns).arrow_schema


def read_record(path: Path) -> ShardRecord | None:
    """What a finished file says of itself; `None` if there is no such file, or it is none of ours, or broken."""
    try:
        metadata = pq.read_schema(path).metadata or {}
        return ShardRecord(**json.loads(metadata[_METADATA_KEY]))
    except (OSError, KeyError, TypeError, ValueError, pa.ArrowException):
        return None


class ShardFolder:
    """The output folder as one process sees it.

    Args:
        output_dir: the folder; created if it is not there.
    """

    def __init__(self, output_dir: str | os.PathLike[str]):
        self.root = Path(output_dir)
        self.work = self.root / WORK_FOLDER
        self.staging = self.work / "staging"
        self.progress = self.work / "progress"
        self.parts = self.work / "parts"
        self.schema = output_schema()
        self.root.mkdir(parents=True, exist_ok=True)

    def path(self, name: str) -> Path:
        """Where the finished shard of an input shard is."""
        return self.root / name

    def finished(self) -> dict[str, Path]:
        """Finished files by name; parts and files in work are not among them."""
        paths = _parquet_files(files_below(self.root, skip=WORK_FOLDER))
        return {path.relative_to(self.root).as_posix(): path for path in paths}

    def all_parts(self) -> list[Path]:
        """Parts of unfinished shards."""
        return _parquet_files(files_below(self.parts))

    def is_begun(self) -> bool:
        """Whether anything has been explained: a finished shard or a part of one is there."""
        return bool(self.finished() or self.all_parts())

    def read_part(self, shard: InputShard, start: int, stop: int) -> ShardRecord | None:
        """The record of the part of the input rows `start ... stop - 1`, if it is there."""
        return read_record(self._part(shard, start, stop))

    def write_part(
        self, shard: InputShard, start: int, stop: int, rows: Sequence[Mapping[str, Any]], record: ShardRecord
    ) -> None:
        """Write one part."""
        table = pa.Table.from_pylist(list(rows), schema=self.schema)
        self._write(self._part(shard, start, stop), [table], record)

    def join_parts(self, shard: InputShard, parts: Sequence[tuple[int, int]], whole: ShardRecord) -> None:
        """Make the finished shard of its parts.

        Args:
            shard: the input shard.
            parts: start and stop of all of them, in order.
            whole: the record of the whole, without counts.

        Raises:
            FileNotFoundError: if another process, which works on the same shard, was faster and removed them.
        """
        paths = [self._part(shard, *part) for part in parts]
        for path in paths:
            record = read_record(path)
            if record is None:
                raise FileNotFoundError(f"The part {path.name} of {shard.name} is gone.")
            whole = whole.plus(record)
        self._write(self.path(shard.name), _row_groups(paths), whole)

    def remove_parts(self, shard: InputShard) -> None:
        """Remove what is left of the parts of a finished shard, and folders that this leaves empty."""
        shutil.rmtree(self.parts / shard.name, ignore_errors=True)
        remove_empty_folders(self.parts / shard.name, self.work)

    def clear_away(self) -> None:
        """Remove what killed processes left of files they were writing, and folders that are empty."""
        for folder in (self.staging, self.progress):
            remove_abandoned(folder)
            remove_empty_folders(folder, self.work)

    def _part(self, shard: InputShard, start: int, stop: int) -> Path:
        return self.parts / shard.name / f"{start:08d}-{stop:08d}.parquet"

    def _write(self, path: Path, tables: Iterable[pa.Table], record: ShardRecord) -> None:
        metadata = {**(self.schema.metadata or {}), _METADATA_KEY: json.dumps(asdict(record), sort_keys=True)}
        schema = self.schema.with_metadata(metadata)
        # Statistics of pictures would put the pictures themselves into the footer.
        with (
            staged_file(self.staging, path) as file,
            pq.ParquetWriter(file, schema, write_statistics=["row", "image_id"]) as writer,
        ):
            for table in tables:
                writer.write_table(table.replace_schema_metadata(schema.metadata))


def _parquet_files(paths: Iterable[Path]) -> list[Path]:
    return [path for path in paths if path.suffix == ".parquet"]


def _row_groups(paths: Sequence[Path]) -> Iterator[pa.Table]:
    """The rows of files, in tables of about `ROW_GROUP_ROWS` rows."""
    tables: list[pa.Table] = []
    for path in paths:
        tables.append(pq.read_table(path))
        if sum(map(len, tables)) >= ROW_GROUP_ROWS:
            yield pa.concat_tables(tables).combine_chunks()
            tables = []
    if tables:
        yield pa.concat_tables(tables).combine_chunks()
