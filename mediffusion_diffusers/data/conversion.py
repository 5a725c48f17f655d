"""The loop that all converters share: read pictures in parallel, keep the order, record what cannot be read."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from ..item_boundary import reading
from ..options import Range, check_number
from .pictures import encode_picture
from .schema import DatasetInfo, make_row
from .writer import ConversionReport, write_prepared


_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class SourceImage:
    """One image of a source, not read yet.

    Args:
        image_id: unique name of the image.
        picture: a path, the bytes of a file, a function that returns a picture, its bytes or its path, or None
            where only the metadata is known.
        fields: further arguments of `make_row`: `patient_id`, `labels` or `label`, `boxes`, `metadata`.
        file: what the report calls it; by default `image_id`.
    """

    image_id: str
    picture: Path | bytes | Callable[[], Image.Image | bytes | str] | None
    fields: dict[str, Any] = field(default_factory=dict)
    file: str = ""


def default_num_workers() -> int:
    """Threads that decode and encode pictures unless told otherwise: one per core, at most 8."""
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

    See `convert_images` and `write_prepared` for the arguments and errors.
    """
    if num_workers is not None:
        check_number("num_workers", num_workers, Range(at_least=1), whole=True)
    rows = {
        split: convert_images(sources, info, report, strict, num_workers)
        for split, sources in sources_by_split.items()
    }
    counts = {split: len(sources) for split, sources in sources_by_split.items()}
    report.check(sum(counts.values()))
    return write_prepared(folder, rows, info, num_rows=counts, report=report, overwrite=overwrite)
