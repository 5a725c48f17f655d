"""Endless, seeded streams of training indices that can be entered at any step.

Joint training draws from two streams of independent batch sizes: every training image for the diffusion loss, the
labelled ones for the classification loss (paper Sec. 3.3). A stream has no state: what step 1,000 sees follows from
(seed, name, step) alone, so resuming skips nothing and each process takes its slice of the same global batch.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..run.randomness import keyed_rng


class StreamItem(NamedTuple):
    """One place of a stream.

    Args:
        position: running number of the place, from 0; random augmentation is keyed by it.
        row: the example that stands there.
    """

    position: int
    row: int


class IndexStream:
    """An endless sequence of examples: one shuffled pass over all of them after the other.

    Place p lies in pass (epoch) `p // n` and shows example `permutation(seed, name, epoch)[p % n]`. A batch may be
    larger than the number of examples; it then runs over several passes.

    Args:
        indices: the examples to draw from, for example the labelled rows of a dataset.
        batch_size: examples per step, over all processes.
        seed: seed of the shuffles.
        name: names the stream, so that two streams of one seed differ.

    Raises:
        ValueError: if there is no example or `batch_size` is below 1.
    """

    def __init__(self, indices: np.ndarray | list[int] | range, batch_size: int, seed: int, name: str):
        self.indices = np.asarray(indices, dtype=np.int64)
        if len(self.indices) == 0:
            raise ValueError(f"The {name} stream needs at least one example, but `indices` is empty.")
        if batch_size < 1:
            raise ValueError(f"`batch_size` of the {name} stream must be at least 1, but got {batch_size}.")
        self.batch_size = batch_size
        self.seed = seed
        self.name = name
        self._passes: dict[int, np.ndarray] = {}

    def batch(self, step: int) -> list[StreamItem]:
        """The global batch of a step: places `step * batch_size` to `(step + 1) * batch_size - 1`."""
        first = step * self.batch_size
        return [self._item(position) for position in range(first, first + self.batch_size)]

    def _item(self, position: int) -> StreamItem:
        epoch, place = divmod(position, len(self.indices))
        return StreamItem(position, int(self._permutation(epoch)[place]))

    def _permutation(self, epoch: int) -> np.ndarray:
        if epoch not in self._passes:
            for old in [number for number in self._passes if number < epoch - 1]:
                del self._passes[old]
            self._passes[epoch] = keyed_rng(self.seed, self.name, epoch).permutation(self.indices)
        return self._passes[epoch]


def slice_bounds(length: int, part: int, num_parts: int) -> tuple[int, int]:
    """Start and stop of one of `num_parts` contiguous slices whose lengths differ by one at most."""
    return length * part // num_parts, length * (part + 1) // num_parts


def take_slice(batch: list[StreamItem], part: int, num_parts: int) -> list[StreamItem]:
    """One of `num_parts` contiguous slices of a batch; together they are the batch."""
    start, stop = slice_bounds(len(batch), part, num_parts)
    return batch[start:stop]
