"""Who says what a counterfactual shows: the known truth, an outside classifier, a named region, or a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from ..data.tables import find_column, read_rows
from ..evaluation.counterfactual_selection import Selection
from ..evaluation.counterfactual_study import CounterfactualStudyRunner
from ..evaluation.counterfactuals import Counterfactuals
from .places import energy_of_change, pixels_in


class Teacher(Protocol):
    """Answers for counterfactual images whether they show the finding that was to be changed."""

    def answer(self, made: Counterfactuals, chosen: Selection, image_ids: Sequence[str]) -> np.ndarray:
        """The answers.

        Args:
            made: the counterfactuals.
            chosen: the rows and findings they were made of.
            image_ids: names of the new images.

        Returns:
            1, 0 or NaN (no answer: the image is not used), shape `(num,)`.
        """


@dataclass(frozen=True)
class TruthTeacher:
    """Phantoms can be drawn anew with the finding toggled: has the image gone at least half of the way there?

    The way is measured along the true change, so that whatever else was changed does not count.

    Args:
        runner: of a phantom dataset.

    Raises:
        ValueError: for another dataset, whose truth is not known.
    """

    runner: CounterfactualStudyRunner

    def __post_init__(self) -> None:
        if not self.runner.references.know_truth:
            raise ValueError("`teacher` truth needs phantoms: only there the true counterfactual is known.")

    def answer(self, made: Counterfactuals, chosen: Selection, image_ids: Sequence[str]) -> np.ndarray:
        """See `Teacher`."""
        truth = self.runner.truth(chosen)
        assert truth is not None
        change = (made.images - made.originals).reshape(len(truth), -1).astype(np.float64)
        wanted = (truth - made.originals).reshape(len(truth), -1).astype(np.float64)
        way = (change * wanted).sum(1) / np.maximum((wanted**2).sum(1), 1e-12)
        before = 1.0 if made.direction == "remove" else 0.0
        return np.where(way >= 0.5, 1 - before, before)


class OracleTeacher:
    """An outside classifier, that of the study, which has not learnt the shortcut."""

    def answer(self, made: Counterfactuals, chosen: Selection, image_ids: Sequence[str]) -> np.ndarray:
        """See `Teacher`.

        Raises:
            ValueError: without an oracle.
        """
        if made.oracle is None:
            raise ValueError("`teacher` oracle needs an `oracle_path`.")
        scores = made.oracle.after[np.arange(len(made)), made.targets]
        thresholds = made.oracle.thresholds
        if thresholds is None:
            return (made.oracle.after.argmax(1) == made.targets).astype(np.float64)
        return (scores >= thresholds[made.targets]).astype(np.float64)


@dataclass(frozen=True)
class RegionTeacher:
    """Somebody has said which places mean nothing: a change that lies in them leaves the finding as it was.

    Args:
        boxes: the places, in relative units.
        share: of the change's energy that must lie in them; other images get no answer.

    Raises:
        ValueError: for a box that is no place in a picture.
    """

    boxes: Sequence[Mapping[str, float]]
    share: float = 0.5

    def __post_init__(self) -> None:
        try:
            pixels_in(self.boxes, (1, 1))
        except ValueError as error:
            raise ValueError(f"`region` is no place in a picture. {error}") from None

    def answer(self, made: Counterfactuals, chosen: Selection, image_ids: Sequence[str]) -> np.ndarray:
        """See `Teacher`."""
        energies = energy_of_change(made.images, made.originals)
        inside = energies[:, pixels_in(self.boxes, energies.shape[1:])].sum(1)
        before = 1.0 if made.direction == "remove" else 0.0
        return np.where(inside >= self.share, before, np.nan)


class TableTeacher:
    """People have looked: a table says it.

    Args:
        path: CSV file with the columns `image_id` and `present` (1, 0, or empty for no answer).

    Raises:
        ValueError: for a table that cannot be used.
    """

    def __init__(self, path: Path):
        self.path = path
        columns, rows = read_rows(path, exact=True)
        name, present = (find_column(columns, [column], path) for column in ("image_id", "present"))
        self.answers: dict[str, float] = {}
        for line, row in rows:
            text = row[present].strip()
            if text not in ("0", "1", ""):
                raise ValueError(f"{path}, line {line}: `present` must be 1, 0 or empty, but got {text!r}.")
            self.answers[row[name].strip()] = float(text) if text else np.nan

    def answer(self, made: Counterfactuals, chosen: Selection, image_ids: Sequence[str]) -> np.ndarray:
        """See `Teacher`.

        Raises:
            ValueError: if the table knows none of the images.
        """
        if not self.answers.keys() & set(image_ids):
            raise ValueError(f"{self.path} names none of the counterfactuals, such as {image_ids[0]!r}.")
        return np.array([self.answers.get(one, np.nan) for one in image_ids])
