"""One split of a prepared dataset, as a study reads it: labels, patients, boxes, and pictures that may be damaged."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch

from ..data.input_rows import InputRow, read_picture
from ..data.schema import label_matrix, load_info, load_prepared


_SHOWN = 5  # reasons in a note


class HeldOutSplit:
    """A split with at least one labelled image.

    Args:
        folder: a prepared dataset.
        split: one of its splits.
        label_names: the model's labels.

    Raises:
        ValueError: if the folder is no prepared dataset, its labels are not the model's, or the split has no labelled
            image.
    """

    def __init__(self, folder: str | Path, split: str, label_names: Sequence[str]):
        self.info, self.name = load_info(folder), split
        if list(self.info.label_names) != list(label_names):
            raise ValueError(
                f"The dataset's labels must be the model's, {list(label_names)}, but are "
                f"{list(self.info.label_names)}. Evaluate on data with the labels that the model was trained on."
            )
        self.dataset = load_prepared(folder, split).cast_column("image", datasets.Image(decode=False))
        self.labels = label_matrix(self.dataset, self.info)
        if not len(self.labelled_rows()):
            raise ValueError(f"`split` {split!r} of {str(folder)!r} has no labelled image. Choose another split.")
        self.patient_ids: list[str] = self.dataset["patient_id"][:]
        self.problems: dict[int, str] = {}

    def labelled_rows(self) -> np.ndarray:
        """Rows with at least one known label."""
        return np.flatnonzero(~np.isnan(self.labels).all(axis=1))

    def read(self, rows: np.ndarray, pipeline: Any) -> tuple[np.ndarray, torch.Tensor]:
        """Read images at a model's size; those that cannot be read are left out, and named in `problems`.

        Args:
            rows: of the split.
            pipeline: one of ours.

        Returns:
            The rows that can be read, and their images, shape `(num, channels, height, width)` in [0, 1].
        """
        channels, size = pipeline.image_processor.config.channels, pipeline.image_size
        kept, images = [], [torch.zeros(0, channels, *size)]
        encoded = self.dataset[rows.tolist()]["image"]
        for row, picture in zip(rows.tolist(), encoded, strict=True):
            try:
                image = read_picture(InputRow(row, None, (picture or {}).get("bytes")), channels, *size)
            except ValueError as error:
                self.problems[row] = str(error)
            else:
                kept.append(row)
                images.append(image[None])
        return np.array(kept, dtype=np.int64), torch.cat(images)

    def unreadable(self) -> list[str]:
        """Names of the images that could not be read."""
        return [self.dataset["image_id"][row] for row in sorted(self.problems)]

    def notes(self) -> list[str]:
        """What a table must say of images that could not be read, without their names, which may name patients."""
        if not self.problems:
            return []
        reasons = sorted(set(self.problems.values()))
        shown = " ".join(reasons[:_SHOWN]) + (" ..." if len(reasons) > _SHOWN else "")
        return [f"{len(self.problems)} images of {self.name!r} are left out, because they cannot be read: {shown}"]
