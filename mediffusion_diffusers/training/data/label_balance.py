"""How the labelled images are distributed over the classes, and what can be done about it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from diffusers.utils import logging

from ..run.randomness import keyed_rng
from .streams import IndexStream, StreamItem


logger = logging.get_logger(__name__)

MAX_BALANCED_WEIGHT = 100.0


def positives_per_label(labels: np.ndarray) -> np.ndarray:
    """Images known to show each label, int64 `(num_labels,)`.

    Args:
        labels: `(num_images, num_labels)`: 1 present, 0 absent, NaN unknown.
    """
    return np.nansum(labels == 1, axis=0).astype(np.int64)


def warn_about_missing_labels(labels: np.ndarray, label_names: Sequence[str]) -> list[str]:
    """Warn, by name, about labels that no labelled image shows, or that every one of them shows.

    Args:
        labels: of the labelled images, `(num_images, num_labels)`, NaN = unknown.
        label_names: one per column.

    Returns:
        The names warned about.
    """
    absent = [name for name, count in zip(label_names, positives_per_label(labels), strict=True) if count == 0]
    negatives = np.nansum(labels == 0, axis=0)
    constant = [name for name, count in zip(label_names, negatives, strict=True) if count == 0 and name not in absent]
    if absent:
        logger.warning(
            f"No labelled training image shows {', '.join(absent)}: the classifier cannot learn it. Draw another or a "
            "larger labelled split."
        )
    if constant:
        logger.warning(
            f"Every labelled training image that says so shows {', '.join(constant)}: the classifier has nothing to "
            "tell it from."
        )
    return absent + constant


def resolve_pos_weight(pos_weight: Sequence[str], labels: np.ndarray, problem_type: str) -> torch.Tensor | None:
    """Turn `--pos_weight` into one weight per label.

    `balanced` is, multi-label, the ratio of known negatives to positives (the `pos_weight` of
    `torch.nn.BCEWithLogitsLoss`) and, single-label, `num_images / (num_labels * images of the class)`; both at most
    `MAX_BALANCED_WEIGHT`, and 1 for a label without positives.

    Args:
        pos_weight: `["none"]`, `["balanced"]`, or one number per label.
        labels: of the labelled images, `(num_images, num_labels)`, NaN = unknown.
        problem_type: `"multi_label_classification"` or `"single_label_classification"`.

    Returns:
        Float32, `(num_labels,)`; `None` for `["none"]`.

    Raises:
        ValueError: for another word, another number of weights, or a weight that is not above 0.
    """
    words = list(pos_weight)
    num_labels = labels.shape[1]
    if words == ["none"]:
        return None
    if words == ["balanced"]:
        positives = positives_per_label(labels)
        if problem_type == "multi_label_classification":
            weights = np.nansum(labels == 0, axis=0) / np.maximum(positives, 1)
        else:
            weights = positives.sum() / (num_labels * np.maximum(positives, 1))
        weights = np.where((positives > 0) & (weights > 0), np.minimum(weights, MAX_BALANCED_WEIGHT), 1.0)
        return torch.from_numpy(weights.astype(np.float32))
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        numbers = []
    if len(numbers) != num_labels or not all(0 < number < float("inf") for number in numbers):
        raise ValueError(
            f"`pos_weight` must be 'none', 'balanced' or {num_labels} numbers above 0, one per label, but got {words}."
        )
    return torch.tensor(numbers)


def rows_by_class(rows: np.ndarray, labels: np.ndarray) -> list[np.ndarray]:
    """The rows that show each label, and those that show none; without empty classes.

    Args:
        rows: the labelled examples.
        labels: their labels in the same order, `(len(rows), num_labels)`, NaN = unknown.
    """
    shows = labels == 1
    members = [rows[shows[:, label]] for label in range(labels.shape[1])] + [rows[~shows.any(axis=1)]]
    return [each for each in members if len(each) > 0]


class BalancedIndexStream(IndexStream):
    """An `IndexStream` in which all classes come equally often.

    A class is the images that show a label; images that show none are a class of their own, and an image that shows
    several belongs to several. Round r shows one image of every class, in shuffled order, so that place p follows
    from (seed, name, p) alone, like in an `IndexStream`. Within a class the images come in shuffled passes.

    Args:
        indices: the labelled examples.
        labels: their labels in the same order, `(len(indices), num_labels)`, NaN = unknown.
        batch_size: examples per step, over all processes.
        seed: seed of the shuffles.
        name: names the stream.

    Raises:
        ValueError: if there is no example or `batch_size` is below 1.
    """

    def __init__(self, indices: np.ndarray, labels: np.ndarray, batch_size: int, seed: int, name: str):
        super().__init__(indices, batch_size, seed, name)
        self.classes = rows_by_class(self.indices, labels)
        self._shuffled: dict[int, tuple[int, np.ndarray]] = {}

    def _item(self, position: int) -> StreamItem:
        turn, place = divmod(position, len(self.classes))
        number = int(keyed_rng(self.seed, self.name, "class order", turn).permutation(len(self.classes))[place])
        epoch, place = divmod(turn, len(self.classes[number]))
        return StreamItem(position, int(self._shuffled_class(number, epoch)[place]))

    def _shuffled_class(self, number: int, epoch: int) -> np.ndarray:
        """A class in the order of one of its passes; the last one asked for is kept."""
        known = self._shuffled.get(number)
        if known is None or known[0] != epoch:
            rng = keyed_rng(self.seed, self.name, "class", number, epoch)
            known = self._shuffled[number] = (epoch, rng.permutation(self.classes[number]))
        return known[1]


class SquareRootIndexStream(IndexStream):
    """An `IndexStream` in which a class comes as often as the root of its images (Mahajan et al., 2018, Sec. 2.2).

    The classes are those of `BalancedIndexStream`. Each place draws a class, then one of its images, with replacement,
    from (seed, name, place) alone.

    Args:
        indices: the labelled examples.
        labels: their labels in the same order, `(len(indices), num_labels)`, NaN = unknown.
        batch_size: examples per step, over all processes.
        seed: seed of the draws.
        name: names the stream.

    Raises:
        ValueError: if there is no example or `batch_size` is below 1.
    """

    def __init__(self, indices: np.ndarray, labels: np.ndarray, batch_size: int, seed: int, name: str):
        super().__init__(indices, batch_size, seed, name)
        self.classes = rows_by_class(self.indices, labels)
        roots = np.sqrt([len(rows) for rows in self.classes])
        self.probabilities = roots / roots.sum()

    def _item(self, position: int) -> StreamItem:
        rng = keyed_rng(self.seed, self.name, "place", position)
        rows = self.classes[int(rng.choice(len(self.classes), p=self.probabilities))]
        return StreamItem(position, int(rows[rng.integers(len(rows))]))
