"""The loop that all converters share: read pictures in parallel, keep the order, record what cannot be read, go on."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from ..atomic_files import read_json, write_json
from ..item_boundary import reading
from ..options import Range, check_number
from ..version import __version__
from .pictures import encode_picture
from .schema import DatasetInfo, make_row
from .writer import ConversionReport, write_folder, write_shards


PART_IMAGES = 500  # converted by one process at a time, and what a kill costs at most, per process


_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class SourceImage:
    """One image of a source, not read yet.

    Args:
        image_id: unique name of the image.
        picture: a path, the bytes of a file, a function that returns a picture, its bytes or its path, or None
            where only the metadata is known. A function with a text `content`, the same for the same picture, lets a
            run go on after a kill.
        fields: further arguments of `make_row`: `patient_id`, `labels` or `label`, `boxes`, `metadata`.
        file: what the report calls it; by default `image_id`.
    """

    image_id: str
    picture: Path | bytes | Callable[[], Image.Image | bytes | str] | None
    fields: dict[str, Any] = field(default_factory=dict)
    file: str = ""


def default_num_workers() -> int:
    """Pictures that are decoded and encoded at a time unless told otherwise: one per core, at most 8."""
    return min(8, os.cpu_count() or 1)


def convert_images(
    sources: Iterable[SourceImage],
    info: DatasetInfo,
    report: ConversionReport,
    strict: bool = False,
    num_workers: int | None = None,
) -> Iterator[dict[str, Any]]:
    """Read, reduce and encode images, and turn them into rows in the order given.

    Args:
        sources: the images.
        info: the dataset; its `channels` and `image_size` decide how pictures are stored.
        report: where pictures that cannot be read are recorded with their reason; they give no row.
        strict: raise at the first such picture instead.
        num_workers: threads; None for one per core, at most 8.

    Raises:
        ValueError: with `strict`, for the first picture that cannot be read.
    """

    def read(source: SourceImage) -> bytes | ValueError | None:
        if source.picture is None:
            return None
        name = source.file or source.image_id
        try:
            with reading(f"convert {name}"):
                picture = source.picture() if callable(source.picture) else source.picture
                return encode_picture(picture, info.channels, info.image_size, name=name)
        except ValueError as error:
            # The boundaries further in have said it in their words already.
            return error.__cause__ if isinstance(error.__cause__, ValueError) else error

    for source, result in _ordered_map(read, sources, num_workers or default_num_workers()):
        if isinstance(result, ValueError):
            if strict:
                raise result
            report.skip(source.file or source.image_id, result)
        else:
            yield make_row(info, result, source.image_id, **source.fields)


def _ordered_map(
    function: Callable[[_Item], _Result], items: Iterable[_Item], num_workers: int
) -> Iterator[tuple[_Item, _Result]]:
    """Map in threads with a bounded number of results waiting: a million pictures do not fit into memory."""
    with ThreadPoolExecutor(num_workers) as pool:
        waiting: deque[tuple[_Item, Future[_Result]]] = deque()
        for item in items:
            waiting.append((item, pool.submit(function, item)))
            if len(waiting) > 4 * num_workers:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()


def write_sources(
    folder: str | os.PathLike[str],
    sources_by_split: Mapping[str, Sequence[SourceImage]],
    info: DatasetInfo,
    report: ConversionReport,
    *,
    strict: bool = False,
    num_workers: int | None = None,
    overwrite: bool = False,
) -> DatasetInfo:
    """Convert the images of every split and write the prepared dataset.

    The work is cut into parts of some hundred images, each a shard or more of its own. Several processes make them, as
    those of a `DataLoader`; what a run that was killed has finished is not done again by the next one. The files do
    not depend on how many processes there are, nor on kills.

    See `convert_images` and `write_prepared` for the arguments and errors.

    Raises:
        OSError: if the disk is full, or a process was killed, such as for its memory.
    """
    if num_workers is not None:
        check_number("num_workers", num_workers, Range(at_least=1), whole=True)
    report.check(sum(len(sources) for sources in sources_by_split.values()))
    parts = [
        Part(split, first, sources[first : first + PART_IMAGES])
        for split, sources in sources_by_split.items()
        for first in range(0, len(sources), PART_IMAGES)
    ]

    def write(place: Path) -> dict[str, list[Path]]:
        _write_parts(PartWriter(parts, info, place, strict), num_workers or default_num_workers())
        shards: dict[str, list[Path]] = {split: [] for split in sources_by_split}
        for part in parts:
            record = read_json(part.record(place))
            report.skipped += record["skipped"]
            shards[part.split] += [place / name for name in record["shards"]]
        return shards

    return write_folder(folder, write, info, report, overwrite, _plan(parts, info))


@dataclass(frozen=True)
class Part:
    """Some images of a split, one after the other.

    Args:
        split: the split.
        first: place of the first one in the split.
        sources: the images.
    """

    split: str
    first: int
    sources: Sequence[SourceImage]

    @property
    def name(self) -> str:
        """Beginning of the names of its files."""
        return f"{self.split}-{self.first:08d}"

    def record(self, place: Path) -> Path:
        """The file that says what became of it, and is written last."""
        return place / f"{self.name}.json"

    def is_written(self, place: Path) -> bool:
        """Whether it and all its shards are there."""
        try:
            return all((place / name).is_file() for name in read_json(self.record(place))["shards"])
        except (OSError, ValueError):
            return False


class PartWriter(Dataset[tuple[int, Exception | None]]):
    """Writes parts, here or in the processes of a `DataLoader`; an item is a part's number, and why it is not written.

    Args:
        parts: what to write.
        info: the dataset.
        place: where to write.
        strict: whether a picture that cannot be read is such a reason.
    """

    def __init__(self, parts: Sequence[Part], info: DatasetInfo, place: Path, strict: bool):
        self.parts, self.info, self.place, self.strict = parts, info, place, strict
        self.num_threads = 1
        self.before_image: Callable[[SourceImage], SourceImage] = _unchanged

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, index: int) -> tuple[int, Exception | None]:
        part, report = self.parts[index], ConversionReport()
        try:
            sources = map(self.before_image, part.sources)
            rows = convert_images(sources, self.info, report, self.strict, self.num_threads)
            shards = write_shards(self.place, part.name, rows, self.info)
            record = {"shards": [shard.name for shard in shards], "skipped": report.skipped}
            write_json(part.record(self.place), record)
        except (OSError, ValueError) as error:  # raised by a `DataLoader`, it would get a traceback as its message
            return index, error
        return index, None


def _write_parts(writer: PartWriter, num_workers: int) -> None:
    """Write the parts that are not there yet, in several processes where there are several."""
    num_images = sum(len(part.sources) for part in writer.parts)
    writer.parts = [part for part in writer.parts if not part.is_written(writer.place)]
    num_left = sum(len(part.sources) for part in writer.parts)
    num_processes = min(num_workers, len(writer.parts))
    writer.num_threads = -(-num_workers // max(num_processes, 1))
    with tqdm(total=num_images, initial=num_images - num_left, desc=writer.info.name, unit=" images") as bar:
        if num_processes > 1:
            for index, error in _written_by(num_processes, writer):
                _raise(error)
                bar.update(len(writer.parts[index].sources))
            return

        def before_image(source: SourceImage) -> SourceImage:
            bar.update()
            return source

        writer.before_image = before_image
        for index in range(len(writer)):
            _raise(writer[index][1])


def _written_by(num_processes: int, writer: PartWriter) -> Iterator[tuple[int, Exception | None]]:
    """What a writer gives in other processes, in the order in which it is ready."""
    loader = DataLoader(
        writer,
        batch_size=None,
        num_workers=num_processes,
        collate_fn=_unchanged,
        worker_init_fn=_end_with_parent,
        in_order=False,  # the next part goes to whoever is free
        prefetch_factor=1,
    )
    try:
        yield from loader
    except RuntimeError as error:
        if str(error).startswith("DataLoader worker (pid"):
            raise OSError(
                "A process that reads images was killed; did the memory suffice? The same command goes on from "
                "there; a smaller `num_workers` needs less."
            ) from error
        raise


def _raise(error: Exception | None) -> None:
    if error is not None:
        raise error


def _end_with_parent(worker_id: int) -> None:
    """Let a worker end as soon as its parent was killed, and with it the lock of the output folder."""

    def watch() -> None:
        if (parent := multiprocessing.parent_process()) is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _unchanged(item: Any) -> Any:
    return item


def _plan(parts: Sequence[Part], info: DatasetInfo) -> str | None:
    """A digest of all that the shards depend on; `None` where pictures cannot be told from those of another run."""
    digest = hashlib.sha256(repr((PART_IMAGES, __version__, info)).encode())
    for part in parts:
        for source in part.sources:
            if (content := _content(source.picture)) is None:
                return None
            row = (part.split, source.image_id, source.file, content, source.fields)
            digest.update(repr(row).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _content(picture: Any) -> str | None:
    """What tells a picture from others: a digest of bytes, that of a file, or its own `content`."""
    if picture is None:
        return ""
    if isinstance(picture, bytes):
        return hashlib.sha256(picture).hexdigest()
    return file_content(picture) if isinstance(picture, Path) else getattr(picture, "content", None)


def file_content(path: Path) -> str:
    """Place, size and time of a file, by which a changed one is known without reading it."""
    with suppress(OSError):
        status = path.stat()
        return f"{os.path.abspath(path)} {status.st_size} {status.st_mtime_ns}"
    return f"{path} is not there"
