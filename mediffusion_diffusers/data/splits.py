"""Which images are labelled, and who is held out: seeded draws that do not depend on the order of the rows.

Shares are percentages. Every draw sorts by identifier first and takes the beginning of one seeded permutation, so for
the same seed a smaller share is contained in a larger one.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from ..atomic_files import write_json
from ..choices import Draw
from ..options import Range, check_number
from .schema import DatasetInfo, label_matrix
from .summary import count_positives, no_finding_rows


if TYPE_CHECKING:
    import datasets


DRAWS = get_args(Draw)
NO_FINDING = "No Finding"


@dataclass(frozen=True)
class LabelledSplit:
    """The images whose labels training may see.

    Args:
        dataset: name of the dataset.
        share: share that was asked for, in percent.
        by: `"patient"` or `"class"`.
        seed: seed of the draw.
        image_ids: the labelled images, sorted.
        num_patients: different patients among them.
        positives: positive images per class name.
    """

    dataset: str
    share: float
    by: str
    seed: int
    image_ids: tuple[str, ...]
    num_patients: int
    positives: dict[str, int]

    @property
    def num_images(self) -> int:
        """Number of labelled images."""
        return len(self.image_ids)

    @property
    def hash(self) -> str:
        """SHA-256 of the split: of its values as canonical JSON (sorted keys, no spaces), in hexadecimal."""
        text = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(text.encode("utf-8")).hexdigest()

    def indices(self, dataset: datasets.Dataset) -> np.ndarray:
        """Rows of `dataset` that are labelled.

        Args:
            dataset: any dataset with the column `image_id`, in any order.

        Returns:
            int64 of shape `(num_images,)`, ascending.

        Raises:
            ValueError: if an image of the split is not in the dataset.
        """
        row_of = {image_id: row for row, image_id in enumerate(dataset["image_id"][:])}
        missing = [image_id for image_id in self.image_ids if image_id not in row_of]
        if missing:
            raise ValueError(
                f"The labelled split of {self.dataset!r} names {len(missing):,} of {self.num_images:,} images that "
                f"the dataset does not have (the first: {missing[0]!r}). Use the dataset that it was drawn from."
            )
        return np.sort(np.array([row_of[image_id] for image_id in self.image_ids], dtype=np.int64))

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the split and its hash as JSON.

        Raises:
            ValueError: if `path` is a folder, or lies where no folder can be made.
        """
        path = Path(path)
        if path.is_dir():
            raise ValueError(f"`path` must be a file to write, such as labelled.json, but {str(path)!r} is a folder.")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(
                f"`path` must be a file to write, such as labelled.json, but folder {str(path.parent)!r} cannot be "
                f"made: {error.strerror}."
            ) from error
        write_json(path, {**asdict(self), "num_images": self.num_images, "sha256": self.hash})
        return path

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> LabelledSplit:
        """Read a split file and verify its hash.

        Raises:
            ValueError: if the file is no split file, or was changed after it was written.
        """
        try:
            values: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
            stored = values["sha256"]
            given = {each.name: values[each.name] for each in fields(cls)}
            split = cls(**{**given, "image_ids": tuple(given["image_ids"])})
        except (OSError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise ValueError(
                f"`path` must be a split file written by `mediffusion prepare split`, but {str(path)!r} cannot be "
                f"read: {type(error).__name__}: {error}."
            ) from error
        if split.hash != stored:
            raise ValueError(
                f"The split file {str(path)!r} was changed after it was written: its content has the SHA-256 "
                f"{split.hash}, but it states {stored}. Draw it again."
            )
        return split


def draw_labelled_split(
    dataset: datasets.Dataset, info: DatasetInfo, share: float, seed: int = 0, by: str = "patient"
) -> LabelledSplit:
    """Draw the labelled share of a training split.

    - `"patient"`: every image of `share` % of the patients (those with any known label), rounded down.
    - `"class"`: of every class `share` % of its images, rounded down, but at least one; the union of them. Images
      without any finding count as one more class, "No Finding". As images carry several findings and the draws are
      independent, the size of the union varies with the seed: 2 % of the official ChestX-ray14 training list is 2,083
      draws, of 2,075 +- 3 different images (40 seeds; exactly 2,075, as in ACPL's published split, with seed 7).

    Args:
        dataset: the training split, with the columns `image_id`, `patient_id` and the labels.
        info: what the labels mean.
        share: percent, in (0, 100].
        seed: seed of the draw.
        by: `"patient"` or `"class"`.

    Raises:
        ValueError: for a share outside its range, an unknown `by`, or a draw without any image.

    Warns:
        UserWarning: naming the classes without a positive image in the draw.
    """
    check_number("seed", seed, Range(at_least=0), whole=True)
    if not 0 < share <= 100:
        raise ValueError(f"`share` must be a percentage in (0, 100], but got {share}.")
    if by not in DRAWS:
        raise ValueError(f"`by` must be one of {list(DRAWS)}, but got {by!r}.")
    image_ids = np.array(dataset["image_id"][:], dtype=object)
    order = np.argsort(image_ids, kind="stable")
    image_ids = image_ids[order]
    patient_ids = np.array(dataset["patient_id"][:], dtype=object)[order]
    labels = label_matrix(dataset, info)[order]
    known = ~np.isnan(labels).all(axis=1)

    rng = np.random.default_rng(seed)
    if by == "patient":
        patients = _draw(np.unique(patient_ids[known]), share, rng)
        drawn = known & np.isin(patient_ids, patients)
    else:
        members = [labels[:, index] == 1 for index in range(info.num_labels)]
        if info.is_multi_label:
            members.append(no_finding_rows(labels))
        drawn = np.zeros(len(labels), dtype=bool)
        for member in members:
            drawn[_draw(np.flatnonzero(member), share, rng, at_least=1)] = True
    if not drawn.any():
        raise ValueError(
            f"The labelled split is empty: {share} % by {by} of {int(known.sum()):,} labelled images of "
            f"{len(np.unique(patient_ids[known])):,} patients in {info.name!r} rounds down to no image. "
            "Choose a larger `share`."
        )
    positives = count_positives(labels[drawn], info.label_names)
    absent = [name for name, count in positives.items() if count == 0]
    if absent:
        warnings.warn(
            f"The labelled split ({share} % by {by}, seed {seed}) of {info.name!r} has no positive image of: "
            f"{', '.join(absent)}. The classifier cannot learn what it never sees.",
            stacklevel=2,
        )
    if info.is_multi_label:
        positives[NO_FINDING] = int(no_finding_rows(labels[drawn]).sum())
    return LabelledSplit(
        dataset=info.name,
        share=float(share),
        by=by,
        seed=seed,
        image_ids=tuple(image_ids[drawn].tolist()),
        num_patients=len(np.unique(patient_ids[drawn])),
        positives=positives,
    )


def check_draws(seed: int, **shares: float) -> None:
    """Check the options of a draw.

    Args:
        seed: a whole number from 0.
        shares: percentages in [0, 100), by the name of the option.

    Raises:
        ValueError: naming the option.
    """
    check_number("seed", seed, Range(at_least=0), whole=True)
    for name, share in shares.items():
        check_number(name, share, Range(at_least=0, below=100))


def patient_validation_split(
    patient_ids: Sequence[str],
    share: float,
    seed: int = 0,
    strata: Sequence[Any] | None = None,
    max_images: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Hold out a share of the patients, with all their images.

    Args:
        patient_ids: patient (or lesion) of every image.
        share: percent of the patients (of every stratum) to hold out, rounded down, in [0, 100).
        seed: seed of the draw.
        strata: a value per image, such as its class; a patient belongs to the first (in sorted order) of their
            images' strata, and the share is drawn from every stratum.
        max_images: hold out fewer patients if their images would be more than this: the size of the labelled set, for
            a validation set that is no larger than it.

    Returns:
        Indices of the images kept and of the images held out, int64, ascending.

    Raises:
        ValueError: for a share outside its range, or if no image is left to keep.
    """
    if not 0 <= share < 100:
        raise ValueError(f"`share` must be a percentage in [0, 100), but got {share}.")
    owners = np.array(patient_ids, dtype=object)
    stratum_of: dict[str, str] = {}
    for row, patient in enumerate(owners):
        stratum = "" if strata is None else str(strata[row])
        stratum_of[patient] = min(stratum_of.get(patient, stratum), stratum)
    members: dict[str, list[str]] = {}
    for patient, stratum in stratum_of.items():
        members.setdefault(stratum, []).append(patient)

    rng = np.random.default_rng(seed)
    draws = [_draw(np.array(sorted(members[stratum]), dtype=object), share, rng) for stratum in sorted(members)]
    held_out = [patient for draw in draws for patient in draw.tolist()]
    if max_images is not None:
        held_out = _at_most(held_out, owners, max_images, rng)
    chosen = np.isin(owners, np.array(held_out, dtype=object)) if held_out else np.zeros(len(owners), dtype=bool)
    if len(owners) and chosen.all():
        raise ValueError(f"Holding out {share} % of the patients leaves no image to train on. Choose a smaller share.")
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def limit_by_patient(patient_ids: Sequence[str], max_images: int, seed: int = 0) -> np.ndarray:
    """Keep whole patients, drawn at random, as long as there are no more than `max_images` images.

    For a validation split that must not be larger than the labelled set.

    Args:
        patient_ids: patient of every image.
        max_images: most images to keep, at least 1.
        seed: seed of the draw.

    Returns:
        Indices of the images kept, int64, ascending; empty only if every patient has more images than `max_images`.
    """
    if max_images < 1:
        raise ValueError(f"`max_images` must be at least 1, but got {max_images}.")
    owners = np.array(patient_ids, dtype=object)
    rng = np.random.default_rng(seed)
    kept = _at_most(sorted(set(owners.tolist())), owners, max_images, rng)
    return np.flatnonzero(np.isin(owners, np.array(kept, dtype=object)))


def _draw(sorted_items: np.ndarray, share: float, rng: np.random.Generator, at_least: int = 0) -> np.ndarray:
    """The first `share` % of a permutation, rounded down exactly (0.57 * 100 is 57, not 56)."""
    count = max(at_least, int(Fraction(str(share)) * len(sorted_items) / 100))
    return sorted_items[rng.permutation(len(sorted_items))[:count]]


def _at_most(patients: list[str], owners: np.ndarray, max_images: int, rng: np.random.Generator) -> list[str]:
    """Patients in random order, leaving out those whose images no longer fit."""
    names, counts = np.unique(owners, return_counts=True)
    images_of = dict(zip(names.tolist(), counts.tolist(), strict=True))
    kept, total = [], 0
    for index in rng.permutation(len(patients)):
        patient = patients[index]
        if total + images_of[patient] <= max_images:
            kept.append(patient)
            total += images_of[patient]
    return kept
