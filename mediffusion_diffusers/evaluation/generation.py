"""How generated images compare with real ones (Table 11), and whether they are copies of training images.

KID comes first: it is unbiased. FID stands beside it, at the same number of images. Both stand beside the *floor*, the
distance of other real images to the same references: at a few hundred images it is far from zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .bootstrap import bootstrap_mean
from .distributions import fid, kid, kid_interval


MIN_IMAGES = 3  # of each set: fewer have no interval


@dataclass(frozen=True)
class RealSets:
    """Real images of each label, twice: those that generated ones are compared with, and others for the floor.

    Args:
        references: rows by label.
        others: as many rows for each label, of other patients.
    """

    references: list[np.ndarray]
    others: list[np.ndarray]

    @property
    def num_per_label(self) -> list[int]:
        """Images of each label, in either set."""
        return [len(rows) for rows in self.references]


def draw_real_sets(labels: np.ndarray, patients: np.ndarray, num_images_per_label: int, seed: int = 0) -> RealSets:
    """Draw real images of each label in two sets that share no patient; no image stands for two labels.

    Args:
        labels: 1, 0 or NaN, shape `(num, num_labels)`.
        patients: number of each image's patient, shape `(num,)`.
        num_images_per_label: at most so many for each label, in each set.
        seed: of the draw.
    """
    generator = np.random.default_rng(seed)
    side = generator.permutation(np.arange(int(patients.max(initial=-1)) + 1) % 2)[patients]
    order = generator.permutation(len(labels))
    is_free = np.ones(len(labels), dtype=bool)
    drawn: dict[int, list[np.ndarray]] = {}
    for label in np.argsort((labels == 1).sum(0), kind="stable").tolist():  # the rarest first
        fits = order[(labels[order, label] == 1) & is_free[order]]
        num = min(num_images_per_label, *((side[fits] == one).sum() for one in (0, 1)))
        drawn[label] = [fits[side[fits] == one][:num] for one in (0, 1)]
        is_free[np.concatenate(drawn[label])] = False
    by_label = [drawn[label] for label in range(labels.shape[1])]
    return RealSets([one for one, _ in by_label], [other for _, other in by_label])


def distances(features: np.ndarray, references: np.ndarray) -> dict[str, Any]:
    """KID with its interval, and FID.

    Args:
        features: of generated or other real images, shape `(num, d)`.
        references: of real images, shape `(num_references, d)`.

    Returns:
        `kid`, `kid_interval_95`, `fid` and `num_images`; NaN with fewer than `MIN_IMAGES`.
    """
    if min(len(features), len(references)) < MIN_IMAGES:
        nan = float("nan")
        return {"kid": nan, "kid_interval_95": [nan, nan], "fid": nan, "num_images": len(features)}
    interval = list(kid_interval(features, references))
    return {
        "kid": kid(features, references),
        "kid_interval_95": interval,
        "fid": fid(features, references),
        "num_images": len(features),
    }


def distances_per_label(
    sets: Mapping[str, np.ndarray], references: np.ndarray, num_per_label: Sequence[int], label_names: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """`distances` of the images of each label to the references of that label.

    Args:
        sets: features by name, each of the length of `references` and in the order of the labels.
        references: features of real images, shape `(num, d)`.
        num_per_label: how many of them belong to each label, in order.
        label_names: their names.
    """
    ends = np.cumsum(num_per_label).tolist()
    return {
        name: {
            each: distances(features[end - num : end], references[end - num : end]) for each, features in sets.items()
        }
        for name, num, end in zip(label_names, num_per_label, ends, strict=True)
    }


def nearest_distances(points: np.ndarray, neighbours: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Euclidean distance of each point to the nearest neighbour, and which one it is.

    Args:
        points: shape `(num, d)`.
        neighbours: shape `(num_neighbours, d)`.

    Returns:
        Two arrays of shape `(num,)`.
    """
    from scipy.spatial.distance import cdist

    apart = cdist(points, neighbours)
    nearest = apart.argmin(1)
    return apart[np.arange(len(points)), nearest], nearest


@dataclass(frozen=True)
class Memorisation:
    """Nearest training image against nearest held-out image, for each of a set of images.

    With as many held-out images as training ones, an image that owes nothing to a single training image is as often
    nearer to one of the former as to one of the latter (van den Burg and Williams, "On memorization in probabilistic
    deep generative models", 2021, compare the same two distances for density).

    Args:
        to_training: distance to the nearest training image, shape `(num,)`.
        to_held_out: distance to the nearest held-out image, shape `(num,)`.
        nearest_training: which training image that is.
        nearest_held_out: which held-out image that is.
    """

    to_training: np.ndarray
    to_held_out: np.ndarray
    nearest_training: np.ndarray
    nearest_held_out: np.ndarray

    @classmethod
    def of(cls, points: np.ndarray, training: np.ndarray, held_out: np.ndarray) -> Memorisation:
        """Measure.

        Args:
            points: generated images, or their features, flattened: shape `(num, d)`.
            training: likewise, of training images.
            held_out: likewise, of as many held-out images.

        Raises:
            ValueError: if there are more of one than of the other, which alone would make them nearer.
        """
        if len(training) != len(held_out):
            raise ValueError(
                "`training` and `held_out` must hold equally many images, since the nearest of many is nearer, but "
                f"hold {len(training)} and {len(held_out)}. Draw as many of the larger set."
            )
        to_training, nearest_training = nearest_distances(points, training)
        to_held_out, nearest_held_out = nearest_distances(points, held_out)
        return cls(to_training, to_held_out, nearest_training, nearest_held_out)

    def summarize(self) -> dict[str, Any]:
        """`share_nearer_to_training`, 0.5 if nothing was learnt by heart, ties counting one half, with its interval
        over images; and `distance_ratio`, the median distance to training over that to held-out images."""
        nearer = np.where(
            self.to_training == self.to_held_out, 0.5, (self.to_training < self.to_held_out).astype(np.float64)
        )
        interval = bootstrap_mean(nearer, range(len(nearer)))
        ratio = self.to_training / np.maximum(self.to_held_out, 1e-12)
        return {
            "num_images": len(nearer),
            "share_nearer_to_training": interval.estimate,
            "share_nearer_to_training_interval_95": [interval.low, interval.high],
            "distance_ratio": float(np.median(ratio)) if len(ratio) else float("nan"),
        }

    def most_suspicious(self, num: int) -> np.ndarray:
        """Places of the images that are nearest to training, relative to held-out ones."""
        return np.argsort(self.to_training / np.maximum(self.to_held_out, 1e-12), kind="stable")[:num]
