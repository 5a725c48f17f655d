"""Latents that are encoded once, so that the joint step never runs the autoencoder.

A cache is a folder named by a hash of everything that the latents depend on: the autoencoder's weights and config, the
dataset's files, the rows, the transform and the number of variants. Its shards are safetensors files, each written
aside under a lock and renamed, and `manifest.json`, written last, holds their SHA-256. A later run with the same hash
checks them and encodes nothing; after an interruption, or if a shard is damaged, only what is missing is encoded. Two
runs at once share the work: each skips what the other has finished.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from diffusers.utils import logging
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from ...data.transforms import ImageTransform
from ...digests import add_weights, sha256_of
from ...latents import encode_pixels, vae_scale_factor
from ...staging import remove_abandoned, remove_empty_folders, staged_file
from ..run.checkpoints import MANIFEST
from ..run.randomness import keyed_rng
from .image_rows import ImageRows
from .streams import IndexStream, take_slice


logger = logging.get_logger(__name__)

FORMAT_VERSION = 1
SHARD_BYTES = 2**28
_FOOTER_BYTES = 2**16
_TENSOR = "latents"
_STAGING = ".staging"  # what is being written


class LatentCache:
    """Scaled latents by row and variant, mapped into memory from the shards.

    Args:
        shards: tensors of shape `(rows, variants, channels, height, width)`, in order.
        indices: the rows, ascending.
        key: hash of what the latents depend on.
    """

    def __init__(self, shards: list[torch.Tensor], indices: np.ndarray, key: str):
        self.key = key
        self._shards = shards
        self._rows_per_shard = len(shards[0])
        self._position = np.full(int(indices[-1]) + 1, -1, dtype=np.int64)
        self._position[indices] = np.arange(len(indices))

    @property
    def num_variants(self) -> int:
        """Variants of each row."""
        return self._shards[0].shape[1]

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Channels, height and width."""
        return tuple(self._shards[0].shape[2:])

    def latents(self, row: int, variant: int = 0) -> torch.Tensor:
        """Latents of one row, shape `(channels, height, width)`, float32.

        Raises:
            KeyError: if the cache does not hold the row.
        """
        position = int(self._position[row]) if row < len(self._position) else -1
        if position < 0:
            raise KeyError(row)
        shard, place = divmod(position, self._rows_per_shard)
        return self._shards[shard][place, variant]

    def batch(self, indices: np.ndarray | list[int]) -> torch.Tensor:
        """The first variant of several rows, shape `(len(indices), channels, height, width)`."""
        return torch.stack([self.latents(int(index)) for index in indices])

    def std(self, num_images: int = 1024) -> float:
        """Standard deviation of the latents, over at most `num_images` rows spread evenly."""
        rows = np.flatnonzero(self._position >= 0)
        places = np.linspace(0, len(rows) - 1, min(num_images, len(rows))).astype(int)
        return float(self.batch(rows[places]).double().std(correction=0))


@dataclass(frozen=True)
class CachePlan:
    """What to encode.

    Args:
        rows: the pictures.
        indices: which of them, ascending.
        transform: reads and augments a picture.
        num_variants: how often each is augmented; a transform without augmentation needs one only.
        description: what the progress bar says.
        num_workers: processes that read images.
    """

    rows: ImageRows
    indices: np.ndarray
    transform: ImageTransform
    num_variants: int = 1
    description: str = "images"
    num_workers: int = 0

    @property
    def is_augmented(self) -> bool:
        """Whether the transform varies the images at random."""
        return self.transform != ImageTransform(self.transform.resolution, self.transform.channels)


def cache_key(vae: Any, plan: CachePlan, files: list[Path]) -> dict[str, Any]:
    """What the latents depend on, as JSON.

    Args:
        vae: the autoencoder.
        plan: rows and transform.
        files: the dataset's files; they enter by name, size and their last 64 KiB, where parquet keeps its index.

    Returns:
        Readable facts and digests.
    """
    weights = hashlib.sha256()
    add_weights(weights, vae)
    config = {name: value for name, value in vae.config.items() if not name.startswith("_")}
    return {
        "format_version": FORMAT_VERSION,
        "autoencoder": {"class": type(vae).__name__, "config": config, "sha256": weights.hexdigest()},
        "files": [[path.name, path.stat().st_size, _footer_digest(path)] for path in files],
        "rows": [len(plan.indices), hashlib.sha256(plan.indices.astype("<i8").tobytes()).hexdigest()],
        "transform": asdict(plan.transform),
        "num_variants": plan.num_variants if plan.is_augmented else 1,
    }


def open_latent_cache(
    parent: str | os.PathLike[str], vae: Any, plan: CachePlan, files: list[Path], batch_size: int = 32
) -> LatentCache:
    """Open the cache of a plan, after encoding what it lacks; all processes share the work.

    Args:
        parent: folder of caches.
        vae: the frozen autoencoder, on the device to use.
        plan: what to encode.
        files: see `cache_key`.
        batch_size: images encoded at once.

    Returns:
        The verified cache.
    """
    facts = json.loads(json.dumps(cache_key(vae, plan, files)))
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    folder = Path(parent) / key[:20]
    num_variants = facts["num_variants"]
    side = plan.transform.resolution // vae_scale_factor(vae)
    shape = (num_variants, vae.config.latent_channels, side, side)
    rows_per_shard = max(1, SHARD_BYTES // (4 * int(np.prod(shape))))
    starts = range(0, len(plan.indices), rows_per_shard)
    chunks = [plan.indices[start : start + rows_per_shard] for start in starts]
    names = [f"latents-{number:05d}-of-{len(chunks):05d}.safetensors" for number in range(len(chunks))]

    state = PartialState()
    if state.is_local_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        _drop_damaged(folder, {name: (len(chunk), *shape) for name, chunk in zip(names, chunks, strict=True)}, plan)
    state.wait_for_everyone()
    missing = [number for number, name in enumerate(names) if not (folder / name).is_file()]
    own = [number for place, number in enumerate(missing) if place % state.num_processes == state.process_index]
    _encode_shards(folder, vae, plan, {names[number]: chunks[number] for number in own}, num_variants, batch_size)
    state.wait_for_everyone()
    if state.is_local_main_process:
        # Shards of processes on machines that do not share this folder.
        missing = [number for number, name in enumerate(names) if not (folder / name).is_file()]
        foreign = {names[number]: chunks[number] for number in missing}
        _encode_shards(folder, vae, plan, foreign, num_variants, batch_size)
        if not (folder / MANIFEST).is_file():
            shards = {name: _facts_of(folder / name) for name in names}
            manifest = {"key": key, "made_from": facts, "shards": shards}
            with staged_file(folder / _STAGING, folder / MANIFEST) as file:
                file.write((json.dumps(manifest, indent=1) + "\n").encode())
        remove_empty_folders(folder / _STAGING, stop_at=folder / _STAGING)
    state.wait_for_everyone()
    return LatentCache([load_file(folder / name)[_TENSOR] for name in names], plan.indices, key)


def stream_latents(
    cache: LatentCache, stream: IndexStream, first_step: int = 0, rank: int = 0, num_ranks: int = 1, num_parts: int = 1
) -> Iterator[torch.Tensor]:
    """Latents of a stream without end, as `stream_batches` gives images; a random variant of each row.

    Args:
        cache: holds every row of the stream.
        stream: which rows, in which order.
        first_step: where to enter the stream.
        rank: this process.
        num_ranks: number of processes.
        num_parts: accumulation steps per optimizer step.

    Yields:
        Shape `(slice, channels, height, width)`.
    """
    step = first_step
    while True:
        batch = stream.batch(step)
        for part in range(num_parts):
            own = []
            for item in take_slice(batch, part * num_ranks + rank, num_ranks * num_parts):
                rng = keyed_rng(stream.seed, stream.name, "variant", item.position)
                own.append(cache.latents(item.row, int(rng.integers(cache.num_variants))))
            yield torch.stack(own) if own else torch.empty(0, *cache.latent_shape)
        step += 1


class _Variants(Dataset):
    """Pixels of (row, variant) pairs, row after row; the augmentation is keyed by the pair."""

    def __init__(self, plan: CachePlan, indices: np.ndarray, num_variants: int):
        self.plan, self.indices, self.num_variants = plan, indices, num_variants

    def __len__(self) -> int:
        return len(self.indices) * self.num_variants

    def __getitem__(self, number: int) -> torch.Tensor:
        row, variant = int(self.indices[number // self.num_variants]), number % self.num_variants
        rng = keyed_rng("latent cache", row, variant) if self.plan.is_augmented else None
        return self.plan.transform(self.plan.rows.picture(row), rng)


@torch.no_grad()
def _encode_shards(
    folder: Path, vae: Any, plan: CachePlan, shards: dict[str, np.ndarray], num_variants: int, batch_size: int
) -> None:
    total = num_variants * sum(len(chunk) for chunk in shards.values())
    bar = tqdm(total=total, desc=f"Encoding {plan.description}", unit="image", disable=total == 0)
    for name, chunk in shards.items():
        if (folder / name).is_file():  # another run has finished it meanwhile
            bar.update(num_variants * len(chunk))
            continue
        loader: DataLoader = DataLoader(
            _Variants(plan, chunk, num_variants), batch_size=batch_size, num_workers=plan.num_workers
        )
        parts = []
        for pixels in loader:
            parts.append(encode_pixels(vae, pixels.to(vae.device)).float().cpu())
            bar.update(len(pixels))
        latents = torch.cat(parts).unflatten(0, (len(chunk), num_variants)).contiguous()
        with staged_file(folder / _STAGING, folder / name) as file:
            file.write(save({_TENSOR: latents}))
    bar.close()


def _drop_damaged(folder: Path, shapes: dict[str, tuple[int, ...]], plan: CachePlan) -> None:
    """Delete what killed runs left unfinished, and shards that are not what the manifest says, naming each."""
    remove_abandoned(folder / _STAGING)
    manifest = folder / MANIFEST
    known: dict[str, Any] = {}
    if manifest.is_file():
        try:
            known = dict(json.loads(manifest.read_text())["shards"])
        except (ValueError, KeyError, TypeError, RecursionError):
            logger.warning(f"{manifest} is damaged; it is written anew.")
    is_whole = known.keys() == shapes.keys()
    present = [name for name in shapes if (folder / name).is_file()]
    for name in tqdm(present, desc=f"Checking latents of {plan.description}", disable=len(present) < 4, leave=False):
        path = folder / name
        reason = _damage(path, shapes[name], known.get(name))
        if reason is not None:
            logger.warning(f"{path} {reason}; it is encoded again.")
            path.unlink(missing_ok=True)
            is_whole = False
    if not is_whole or len(present) < len(shapes):
        manifest.unlink(missing_ok=True)


def _damage(path: Path, shape: tuple[int, ...], expected: dict[str, Any] | None) -> str | None:
    """What is wrong with a shard; `None` if nothing."""
    if expected is not None and expected != _facts_of(path):
        return "is not what its manifest says"
    try:
        found = tuple(load_file(path)[_TENSOR].shape)
    except (SafetensorError, KeyError) as error:
        return f"cannot be read ({error})"
    if found != shape:
        return f"holds latents of shape {found} instead of {shape}"
    return None


def _facts_of(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path)}


def _footer_digest(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _FOOTER_BYTES))
        return hashlib.sha256(file.read()).hexdigest()
