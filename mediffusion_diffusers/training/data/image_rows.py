"""The images of one split, decoded once if they fit into memory, and batches of them along a stream."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from ...data.transforms import ImageTransform
from ...item_boundary import reading
from ..run.randomness import keyed_rng
from .streams import IndexStream, StreamItem, take_slice


if TYPE_CHECKING:
    import datasets


CACHE_LIMIT_BYTES = 2**30
_NUM_SIZE_PROBES = 32


class ImageRows:
    """The pictures of one split of a prepared dataset.

    Args:
        dataset: rows with an `image` column.
        cache: `"auto"` keeps decoded pictures in memory if they take less than `CACHE_LIMIT_BYTES`; `"always"` and
            `"never"` decide it.
        description: what the progress bar says.

    Raises:
        ValueError: for another `cache`, or if no row has a picture.
    """

    def __init__(self, dataset: datasets.Dataset, cache: str = "auto", description: str = "images"):
        if cache not in ("auto", "always", "never"):
            raise ValueError(f"`cache_images` must be 'auto', 'always' or 'never', but got {cache!r}.")
        self.description = description
        self.dataset = dataset.select_columns(["image"])
        column = self.dataset.with_format("arrow")[:]["image"]
        present = np.asarray(column.is_valid())
        self.indices = np.flatnonzero(present)  # rows that have a picture
        self.num_missing = len(present) - len(self.indices)
        if len(self.indices) == 0:
            raise ValueError(
                f"None of the {len(present)} {description} has a picture: only the metadata was converted. Prepare "
                "the dataset again with the image files."
            )
        self._pictures: dict[int, Image.Image] | None = None
        if cache == "always" or (cache == "auto" and self._estimated_bytes() < CACHE_LIMIT_BYTES):
            bar = tqdm(self.indices, desc=f"Decoding {description}", leave=False, disable=len(self.indices) < 1000)
            self._pictures = {int(index): self._decode(int(index)) for index in bar}

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def is_cached(self) -> bool:
        """Whether the decoded pictures are in memory."""
        return self._pictures is not None

    def picture(self, index: int) -> Image.Image:
        """The decoded picture of a row."""
        return self._decode(index) if self._pictures is None else self._pictures[index]

    def batch(self, indices: Sequence[int] | np.ndarray, transform: ImageTransform) -> torch.Tensor:
        """Pictures as a tensor, without augmentation: `(len(indices), channels, resolution, resolution)`."""
        return torch.stack([transform(self.picture(int(index))) for index in indices])

    def _decode(self, index: int) -> Image.Image:
        with reading(f"decode the picture of row {index + 1} of the {self.description}"):
            picture = self.dataset[index]["image"]
            picture.load()
            return picture

    def _estimated_bytes(self) -> float:
        places = np.linspace(0, len(self.indices) - 1, min(_NUM_SIZE_PROBES, len(self.indices))).astype(int)
        sizes = []
        for index in self.indices[places]:
            picture = self._decode(int(index))
            sizes.append(picture.width * picture.height * (len(picture.getbands()) + (picture.mode[0] in "IF")))
        return float(np.mean(sizes)) * len(self.indices)


class _StreamDataset(Dataset):
    """Transformed pictures by `StreamItem`; the augmentation is keyed by (seed, stream, position)."""

    def __init__(self, rows: ImageRows, transform: ImageTransform, stream: IndexStream):
        self.rows = rows
        self.transform = transform
        self.key = (stream.seed, stream.name, "augmentation")

    def __getitem__(self, item: StreamItem) -> torch.Tensor:
        return self.transform(self.rows.picture(item.row), keyed_rng(*self.key, item.position))


class _Slices:
    """Batch sampler: this process's slices of every global batch, accumulation parts one after the other."""

    def __init__(self, stream: IndexStream, first_step: int, rank: int, num_ranks: int, num_parts: int):
        self.stream = stream
        self.first_step = first_step
        self.places = [part * num_ranks + rank for part in range(num_parts)]
        self.num_slices = num_ranks * num_parts

    def __iter__(self) -> Iterator[list[StreamItem]]:
        step = self.first_step
        while True:
            batch = self.stream.batch(step)
            for place in self.places:
                yield take_slice(batch, place, self.num_slices)
            step += 1


def stream_batches(
    rows: ImageRows,
    transform: ImageTransform,
    stream: IndexStream,
    first_step: int = 0,
    rank: int = 0,
    num_ranks: int = 1,
    num_parts: int = 1,
    num_workers: int = 0,
    pin_memory: bool = False,
) -> Iterator[torch.Tensor]:
    """Image tensors of a stream without end: `num_parts` batches for every step, from `first_step` on.

    Args:
        rows: where the pictures are.
        transform: decodes and augments one picture.
        stream: which pictures, in which order.
        first_step: where to enter the stream.
        rank: this process.
        num_ranks: number of processes.
        num_parts: accumulation steps per optimizer step.
        num_workers: processes that decode and augment; 0 does it in this one.
        pin_memory: put batches into page-locked memory.

    Yields:
        Shape `(slice, channels, resolution, resolution)` in [-1, 1]; the slice may be empty if the global batch is
        smaller than `num_ranks * num_parts`.
    """
    empty = torch.empty(0, transform.channels, transform.resolution, transform.resolution)
    loader: DataLoader = DataLoader(
        _StreamDataset(rows, transform, stream),
        batch_sampler=_Slices(stream, first_step, rank, num_ranks, num_parts),
        collate_fn=lambda images: torch.stack(images) if images else empty,
        num_workers=num_workers,
        pin_memory=pin_memory,
        persistent_workers=num_workers > 0,
    )
    yield from loader
