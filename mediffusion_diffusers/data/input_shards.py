"""The parquet files of a dataset, in a folder or on the Hub, and what identifies each of them."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, TypeVar, cast

import pyarrow.parquet as pq
from tqdm.auto import tqdm

from ..privacy import without_tokens
from .schema import INFO_FILE


HUB_PREFIX = "hf://"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_INSPECTING_THREADS = 8

Result = TypeVar("Result")


class UnreadableShardError(OSError):
    """An input shard, or the way to it, is broken; other shards may be fine."""


@dataclass(frozen=True)
class InputShard:
    """One parquet file.

    Args:
        name: its path below the dataset's root, with `/`.
        path: where it is: a local path, or `hf://datasets/organisation/name@commit/...`.
        size: in bytes.
        content: what identifies its content: the Hub's hash, or that of a local file's footer, which holds the sizes,
            places and statistics of all columns; filled in by `inspect_shards`.
        num_rows: filled in by `inspect_shards`.
        columns: names of its columns, likewise.
        problem: why it cannot be read, or `None`.
    """

    name: str
    path: str
    size: int
    content: str = ""
    num_rows: int = 0
    columns: tuple[str, ...] = ()
    problem: str | None = None

    @property
    def identity(self) -> dict[str, str | int]:
        """What an output shard remembers of its input."""
        return {"name": self.name, "size": self.size, "content": self.content, "num_rows": self.num_rows}

    def open(self) -> BinaryIO:
        """The file, for reading at any place; a file on the Hub is read in blocks as they are needed.

        Raises:
            UnreadableShardError: if it cannot be opened.
        """
        return reading_shard(self.name, lambda: cast(BinaryIO, _open(self.path)))


@dataclass(frozen=True)
class InputDataset:
    """The shards of a dataset.

    Args:
        name: a folder's name or the repository and commit, without local paths.
        root: folder of a local dataset, or `None`.
        shards: in the order of their names.
        label_names: names of the labels if it is a prepared dataset, else `None`.
    """

    name: str
    root: Path | None
    shards: tuple[InputShard, ...]
    label_names: tuple[str, ...] | None = None


def find_dataset(
    dataset: str | os.PathLike[str], split: str | None = None, revision: str | None = None
) -> InputDataset:
    """Find the parquet files of a dataset, without reading them.

    Args:
        dataset: a prepared dataset or any folder with parquet files, one such file, a pattern (`data/*.parquet`), or a
            dataset of the Hub, `organisation/name`.
        split: take only files whose path names it: `data/test-00000-of-00001.parquet`, `test/0.parquet`.
        revision: branch, tag or commit on the Hub. Datasets of other formats may have `refs/convert/parquet`.

    Raises:
        ValueError: if there is no such dataset, it cannot be listed, or no parquet file is in it.
        OSError: if the Hub cannot be reached.
    """
    text = os.fspath(dataset)
    if os.path.isdir(text):
        found = _local_dataset(Path(text), _parquet_files(text))
    elif os.path.isfile(text):
        found = _local_dataset(Path(text).parent, [Path(text)])
    elif glob.has_magic(text):
        root, pattern = _split_pattern(Path(text))
        found = _local_dataset(root, (root / name for name in glob.glob(pattern, root_dir=root, recursive=True)))
    elif _HUB_ID.fullmatch(text):
        found = _hub_dataset(text, revision)
    else:
        raise ValueError(
            f"`dataset` must be a folder, a parquet file, a pattern or `organisation/name` on the Hub, but {text!r} "
            "is none of them."
        )
    shards = found.shards
    if split is not None:
        word = re.compile(rf"(?:^|[/_.-]){re.escape(split)}(?:[/_.-]|$)")
        shards = tuple(shard for shard in shards if word.search(shard.name))
    if not shards:
        raise ValueError(
            f"`dataset` must hold parquet files{f' of the split {split!r}' if split else ''}, but {text!r} holds "
            f"{'others' if found.shards else 'none'}. Convert pictures with `mediffusion prepare`; on the Hub, the "
            "revision 'refs/convert/parquet' may have them."
        )
    return replace(found, shards=shards)


def _parquet_files(folder: str) -> list[Path]:
    try:
        return list(Path(folder).rglob("*.parquet"))
    except OSError as error:  # a disk that fails, a folder that goes away while it is listed
        raise ValueError(f"`dataset` must be a folder that can be listed, but {folder!r} cannot: {error}.") from error


def inspect_shards(shards: Iterable[InputShard], show_progress: bool = False) -> list[InputShard]:
    """Read the footers: rows, columns, identity. A file that cannot be read gets a `problem`."""
    shards = list(shards)
    with ThreadPoolExecutor(_INSPECTING_THREADS) as pool:
        inspected = pool.map(_inspect, shards)
        return list(tqdm(inspected, "Shards", len(shards), leave=False, disable=not show_progress))


def _inspect(shard: InputShard) -> InputShard:
    def read() -> InputShard:
        with shard.open() as file:
            footer = pq.read_metadata(file)
            content = shard.content or _footer_hash(file)
        names = tuple(dict.fromkeys(footer.schema.to_arrow_schema().names))
        return replace(shard, content=content, num_rows=footer.num_rows, columns=names)

    try:
        return reading_shard(shard.name, read)
    except UnreadableShardError as error:
        return replace(shard, problem=str(error))


def _footer_hash(file: BinaryIO) -> str:
    """A hash of a parquet file's footer, whose length stands before the last four bytes."""
    file.seek(-8, os.SEEK_END)
    length = int.from_bytes(file.read(4), "little")
    file.seek(-8 - length, os.SEEK_END)
    return hashlib.sha256(file.read(length)).hexdigest()[:16]


def _local_dataset(root: Path, paths: Iterable[Path]) -> InputDataset:
    relative = sorted((path.relative_to(root).as_posix(), path) for path in paths if path.is_file())
    visible = [(name, path) for name, path in relative if not re.search(r"(?:^|/)\.", name)]
    shards = tuple(InputShard(name, str(path), path.stat().st_size) for name, path in visible)
    info = root / INFO_FILE
    label_names = _label_names(info.read_bytes()) if info.is_file() else None
    return InputDataset(root.resolve().name, root.resolve(), shards, label_names)


def _hub_dataset(repo_id: str, revision: str | None) -> InputDataset:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
    from huggingface_hub.hf_api import RepoFile

    try:
        commit = HfApi().dataset_info(repo_id, revision=revision).sha
        tree = HfApi().list_repo_tree(repo_id, repo_type="dataset", revision=commit, recursive=True)
        files = {item.path: item for item in tree if isinstance(item, RepoFile)}
        root = f"{HUB_PREFIX}datasets/{repo_id}@{commit}"
        label_names = None
        if INFO_FILE in files:
            with _open(f"{root}/{INFO_FILE}") as file:
                label_names = _label_names(file.read())
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise ValueError(
            f"`dataset` must be a folder, a pattern or a dataset of the Hub, but there is no folder {repo_id!r} nor, "
            f"for this user, such a dataset{f' with the revision {revision!r}' if revision else ''}. For a private "
            "one log in with `hf auth login`."
        ) from error
    except Exception as error:  # whatever the Hub's HTTP library raises
        raise OSError(f"Cannot list the files of {repo_id!r} on the Hub: {without_tokens(str(error))}") from error
    shards = tuple(
        InputShard(path, f"{root}/{path}", item.size, item.lfs.sha256 if item.lfs else item.blob_id)
        for path, item in sorted(files.items())
        if path.endswith(".parquet")
    )
    return InputDataset(f"{repo_id}@{commit}", None, shards, label_names)


def _open(path: str):
    if not path.startswith(HUB_PREFIX):
        return open(path, "rb")
    from huggingface_hub import HfFileSystem

    return HfFileSystem().open(path.removeprefix(HUB_PREFIX), "rb")


def reading_shard(name: str, read: Callable[[], Result]) -> Result:
    """The result of a call that reads from the shard `name`.

    Raises:
        UnreadableShardError: in place of whatever parquet, the file system or the Hub's HTTP library raise.
    """
    try:
        return read()
    except UnreadableShardError:
        raise
    except Exception as error:
        reason = without_tokens(" ".join(str(error).split()))
        raise UnreadableShardError(f"Cannot read shard {name}: {reason}") from error


def _label_names(info: bytes) -> tuple[str, ...] | None:
    """The labels in a `dataset_info.json`, if it is that of a prepared dataset."""
    try:
        return tuple(json.loads(info)["label_names"])
    except (ValueError, KeyError, TypeError):
        return None


def _split_pattern(path: Path) -> tuple[Path, str]:
    """The folder that a pattern begins at, and the pattern below it. A folder that exists is meant by its letters."""
    parts = path.parts
    first = next(
        index for index, part in enumerate(parts) if glob.has_magic(part) and not Path(*parts[: index + 1]).is_dir()
    )
    return Path(*parts[:first]), os.path.join(*parts[first:])
