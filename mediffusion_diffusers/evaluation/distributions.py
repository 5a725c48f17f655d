"""How far edited images lie from real ones as a set: KID, FID and sFID in the features of an outside network.

Every one of them depends on the network, the resolution and, but for KID, on the number of images; so the network is
named, and the distance of real images to *other real images*, the floor, stands beside. The network must not be the
classifier that guided the edits: an attack is far from real images only for a network that it does not attack.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.stats import norm


NUM_SPLITS = 10  # random halves that sFID and the floor are averaged over


def kid(features: np.ndarray, references: np.ndarray) -> float:
    """Kernel inception distance: the unbiased squared MMD with the kernel (x y / d + 1)^3.

    Binkowski et al., "Demystifying MMD GANs" (2018), Sec. 4, with features of any network; unlike FID it is unbiased,
    so that it may be a little below 0 and can be compared between numbers of images.

    Args:
        features: of one set, shape `(num, d)`; num at least 2.
        references: of the other, shape `(num_references, d)`; likewise.
    """
    own, other, mixed = (
        _kernel(one, two) for one, two in ((features, features), (references, references), (features, references))
    )
    return float(_mean_off_diagonal(own) + _mean_off_diagonal(other) - 2 * mixed.mean())


def kid_interval(features: np.ndarray, references: np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of `kid` over the images of both sets, by the jackknife: every image is left out once.

    Efron and Tibshirani, "An introduction to the bootstrap" (1993), Eq. 11.5, for each set, and the variances added.
    A bootstrap would draw images twice, whose kernel with themselves makes sets look further apart.

    Args:
        features: as `kid`; num at least 3.
        references: likewise.
        confidence: coverage of the interval, in (0, 1).

    Returns:
        Its ends, around `kid`.
    """
    own, other = _kernel(features, features), _kernel(references, references)
    mixed = _kernel(features, references)
    variance = _jackknife_variance(own, mixed) + _jackknife_variance(other, mixed.T)
    half = float(norm.ppf(0.5 + confidence / 2) * np.sqrt(variance))
    estimate = kid(features, references)
    return estimate - half, estimate + half


def fid(features: np.ndarray, references: np.ndarray) -> float:
    """Frechet distance of two normal distributions: |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)).

    Heusel et al., "GANs trained by a two time-scale update rule" (2017), Eq. 6, with features of any network. The
    trace of the root is the nuclear norm of the product of the centred features, which needs no root of a large
    matrix. It is biased upwards, the more so the fewer images: compare equal numbers only.

    Args: as `kid`.
    """
    first, second = (np.asarray(one, dtype=np.float64) for one in (features, references))
    means = first.mean(0), second.mean(0)
    centred = [(one - mean) / np.sqrt(len(one) - 1) for one, mean in zip((first, second), means, strict=True)]
    root = np.linalg.norm(centred[0] @ centred[1].T, ord="nuc")
    spread = sum(float((one**2).sum()) for one in centred)
    return float(((means[0] - means[1]) ** 2).sum() + spread - 2 * root)


def split_fid(features: np.ndarray, references: np.ndarray, seed: int = 0) -> float:
    """FID of half of one set to the *other* half of another, mean over `NUM_SPLITS` random halvings.

    An edited image shares most of its pixels with its own original, so that FID between them rewards not editing at
    all; with its half left out it does not: sFID of Jeanneret et al., "Adversarial counterfactual visual explanations"
    (2023), Sec. 4.1. Halved alike, the floor of real images has the same bias as what stands beside it.

    Args:
        features: shape `(num, d)`; num at least 4.
        references: of as many images, those at one place belonging together.
        seed: of the halvings.
    """
    halves = _halves(min(len(features), len(references)), seed)
    return float(np.mean([fid(features[one], references[other]) for one, other in halves]))


def feature_similarity(edited: np.ndarray, originals: np.ndarray) -> np.ndarray:
    """Cosine of the features of each edited image and its original: a perceptual proximity; 1 for no change.

    As S3 of Jeanneret et al. (2023), with the named network in the place of SimSiam.

    Returns:
        Shape `(num,)`, in [-1, 1].
    """
    norms = np.linalg.norm(edited, axis=1) * np.linalg.norm(originals, axis=1)
    return (edited * originals).sum(1) / np.maximum(norms, 1e-12)


def summarize_distributions(
    edited: np.ndarray, real: np.ndarray, originals: np.ndarray, network: str, seed: int = 0
) -> dict[str, Any]:
    """All distances of edited images from real ones.

    Args:
        edited: features of the edited images, shape `(num, d)`.
        real: features of real images, shape `(num_real, d)`.
        originals: features of the edited images' originals, shape `(num, d)`.
        network: what gave the features.
        seed: of the halvings.

    Returns:
        `network`; `feature_similarity`; `kid` and `fid` to the real images and `sfid` to the originals, the last two
        by `split_fid`; and the floors `kid_floor` and `fid_floor`, between halves of the real images. NaN with fewer
        than 4 images.
    """
    similarity = float(feature_similarity(edited, originals).mean())
    result: dict[str, Any] = {"network": network, "feature_similarity": similarity}
    if min(len(edited), len(real)) < 4:
        return result | dict.fromkeys(("kid", "kid_floor", "fid", "fid_floor", "sfid"), float("nan"))
    return result | {
        "kid": kid(edited, real),
        "kid_floor": float(np.mean([kid(real[one], real[other]) for one, other in _halves(len(real), seed)])),
        "fid": split_fid(edited, real, seed),
        "fid_floor": split_fid(real, real, seed),
        "sfid": split_fid(edited, originals, seed),
    }


def _kernel(features: np.ndarray, others: np.ndarray) -> np.ndarray:
    first, second = (np.asarray(one, dtype=np.float64) for one in (features, others))
    return (first @ second.T / first.shape[1] + 1) ** 3


def _mean_off_diagonal(kernel: np.ndarray) -> float:
    num = len(kernel)
    return float((kernel.sum() - np.trace(kernel)) / (num * (num - 1)))


def _jackknife_variance(own: np.ndarray, mixed: np.ndarray) -> float:
    """Variance of `kid` from leaving out each image of one set.

    Args:
        own: the kernel within that set, shape `(num, num)`.
        mixed: the kernel with the other set, shape `(num, num_others)`.
    """
    num = len(own)
    rest = own.sum() - np.trace(own) - 2 * (own.sum(1) - np.diag(own))  # off the diagonal, without row and column
    without = rest / ((num - 1) * (num - 2)) - 2 * (mixed.sum() - mixed.sum(1)) / ((num - 1) * mixed.shape[1])
    return float((num - 1) / num * ((without - without.mean()) ** 2).sum())


def _halves(num: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Random halves of `num` places, both ways round."""
    generator = np.random.default_rng(seed)
    halves = []
    for _ in range(NUM_SPLITS):
        order = generator.permutation(num)
        halves.append((order[: num // 2], order[num // 2 :]))
    return halves
