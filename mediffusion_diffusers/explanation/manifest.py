"""`manifest.json`: which shards are finished, and what they hold. A view of the folder, written after every shard.

Processes write it without a lock: each writes what it sees and looks again afterwards, so that whoever finishes last
leaves the whole list.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..atomic_files import write_json
from ..staging import remove_empty_folders
from .difference_image import DIFFERENCE_PRECISION, ENCODING
from .request import identity_differences
from .shards import ShardFolder, ShardRecord, read_record


MANIFEST_FILE = "manifest.json"
_REMEDY = "Choose another `output_dir`, or pass `--overwrite` to replace those explanations."


@dataclass
class Manifest:
    """The manifest of one run, as one process keeps it.

    Args:
        folder: the output folder.
        identity: of the run.
        dataset: name of the dataset, no local path.
        model: name of the model's repository, or `None` for a local folder.
        label_names: the model's labels.
        inputs: names of all input shards, of all tasks.
    """

    folder: ShardFolder
    identity: dict[str, Any]
    dataset: str
    model: str | None
    label_names: Sequence[str]
    inputs: Sequence[str]
    _records: dict[Path, tuple[tuple[int, int], ShardRecord | None]] = field(default_factory=dict, repr=False)

    @property
    def path(self) -> Path:
        """Where it is."""
        return self.folder.root / MANIFEST_FILE

    def record(self, name: str) -> ShardRecord | None:
        """The record of a finished shard, read once for each version of the file."""
        path = self.folder.path(name)
        try:
            status = path.stat()
        except FileNotFoundError:
            return None
        version = (status.st_mtime_ns, status.st_size)
        if path not in self._records or self._records[path][0] != version:
            self._records[path] = (version, read_record(path))
        return self._records[path][1]

    def check_folder(self) -> None:
        """Make sure that what the folder holds belongs to this run.

        Raises:
            ValueError: saying what differs, and what to do.
        """
        if self.folder.is_begun():
            self._check_manifest()
        for name in self.folder.finished():
            record = self.record(name)
            if record is None:
                if name in self.inputs:  # broken from outside; it is written anew
                    continue
                raise ValueError(
                    f"`output_dir` {str(self.folder.root)!r} holds {name!r}, which is no explanation. {_REMEDY}"
                )
            self._refuse(record.identity, f"holds the shard {name!r} of another run")
            if name not in self.inputs:
                raise ValueError(
                    f"`output_dir` {str(self.folder.root)!r} holds the shard {name!r}, but the dataset "
                    f"{self.dataset!r} has no such input. {_REMEDY}"
                )

    def check_input(self, record: ShardRecord, now: Mapping[str, Any]) -> None:
        """Make sure that a finished shard was made from today's input.

        Raises:
            ValueError: if the input has changed since.
        """
        if changes := identity_differences(record.input, now):
            raise ValueError(
                f"The input shard {now['name']!r} has changed since it was explained: {', '.join(changes)}. {_REMEDY}"
            )

    def remove_foreign(self) -> None:
        """Delete explanations of other runs, as `--overwrite` asks; what belongs to this run stays."""
        try:
            self._check_manifest()
        except ValueError:
            self.path.unlink(missing_ok=True)
        for name, path in self.folder.finished().items():
            record = self.record(name)
            if record is not None and not (self._is_ours(record) and name in self.inputs):
                path.unlink(missing_ok=True)
        for path in self.folder.all_parts():
            record = read_record(path)
            if record is None or not self._is_ours(record):
                path.unlink(missing_ok=True)
                remove_empty_folders(path.parent, self.folder.work)

    def write(self) -> dict[str, Any]:
        """Write what is finished now, until nothing has been added meanwhile, and return it.

        Raises:
            ValueError: if another run has begun to write to the same folder.
        """
        if self.folder.is_begun():
            self._check_manifest()
        content = self._content()
        while True:
            write_json(self.path, content)
            newer = self._content()
            if newer == content:
                return content
            content = newer

    def _content(self) -> dict[str, Any]:
        records = {name: self.record(name) for name in self.inputs}
        finished = {name: record for name, record in records.items() if record and self._is_ours(record)}
        totals = dict.fromkeys(ShardRecord({}, {}).counts(), 0)
        for record in finished.values():
            totals = {name: total + record.counts()[name] for name, total in totals.items()}
        return {
            "complete": len(finished) == len(self.inputs),
            "num_shards": len(self.inputs),
            "num_finished_shards": len(finished),
            **totals,
            "dataset": self.dataset,
            "model": self.model,
            "label_names": list(self.label_names),
            "difference_encoding": ENCODING,
            "difference_precision": DIFFERENCE_PRECISION,
            "identity": self.identity,
            "shards": [{**record.input, **record.counts()} for record in finished.values()],
        }

    def _check_manifest(self) -> None:
        """Raise a `ValueError` if the manifest in the folder is another run's."""
        try:
            there = json.loads(self.path.read_text(encoding="utf-8"))["identity"]
            if not isinstance(there, dict):
                raise TypeError(f"its identity is {there!r}")
        except FileNotFoundError:
            return
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(
                f"`output_dir` {str(self.folder.root)!r} holds a {MANIFEST_FILE} that is none of this script's or is "
                f"damaged ({error!r}). {_REMEDY}"
            ) from error
        self._refuse(there, "holds explanations of another run")

    def _is_ours(self, record: ShardRecord) -> bool:
        return not identity_differences(record.identity, self.identity)

    def _refuse(self, there: Mapping[str, Any], what: str) -> None:
        if changes := identity_differences(there, self.identity):
            raise ValueError(f"`output_dir` {str(self.folder.root)!r} {what}: {', '.join(changes)}. {_REMEDY}")
