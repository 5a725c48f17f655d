"""What all methods share: the images, who is labelled, who is asked at the end, and how answers are scored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mediffusion_diffusers.data.schema import DatasetInfo, label_matrix, load_info, load_prepared
from mediffusion_diffusers.data.splits import LabelledSplit, draw_labelled_split
from mediffusion_diffusers.data.transforms import ImageTransform
from mediffusion_diffusers.training.classification import auroc_record, probabilities
from mediffusion_diffusers.training.data.image_rows import ImageRows
from mediffusion_diffusers.training.joint.config import JointConfig
from mediffusion_diffusers.training.presets import JOINT_PRESETS


Logits = Callable[[torch.Tensor], torch.Tensor]  # of images in [-1, 1], `(batch, channels, height, width)`
_BATCH_SIZE = 150


@dataclass(frozen=True)
class HeldOut:
    """Images that no method learns from.

    Args:
        images: `(num, channels, side, side)` in [-1, 1].
        labels: `(num, num_labels)`, NaN = unknown.
        patient_ids: of each image.
    """

    images: torch.Tensor
    labels: np.ndarray
    patient_ids: Sequence[str]


class Problem:
    """A prepared dataset with validation and test splits, and the preset whose recipe is on trial.

    Args:
        dataset_dir: the prepared dataset.
        preset: row of `JOINT_PRESETS`; its augmentations and sampling are those of every method.
        work_dir: where runs and labelled splits are kept.
        num_views: at test time the answers to the plain image and, with 2, to the mirrored one are averaged.
    """

    def __init__(self, dataset_dir: Path, preset: str, work_dir: Path, num_views: int):
        self.dataset_dir, self.preset, self.work_dir, self.num_views = dataset_dir, preset, work_dir, num_views
        self.info: DatasetInfo = load_info(dataset_dir)

    @property
    def recipe(self) -> JointConfig:
        """All options of the preset, for this dataset."""
        return JOINT_PRESETS[self.preset].with_options(dataset_dir=str(self.dataset_dir))

    @cached_property
    def validation(self) -> HeldOut:
        """What choices are made on, by every method alike."""
        return self._held_out("validation")

    @cached_property
    def test(self) -> HeldOut:
        """What the figures are of."""
        return self._held_out("test")

    def labelled_split(self, share: float, draw: int) -> Path:
        """The file that names the labelled images of a draw, stratified by class."""
        path = self.work_dir / "splits" / f"{self.info.name}-{share:g}pct-{draw}.json"
        if not path.is_file():
            table = load_prepared(self.dataset_dir, "train")
            draw_labelled_split(table, self.info, share, seed=draw, by="class").save(path)
        return path

    def split_facts(self, share: float, draw: int) -> dict[str, Any]:
        """Its hash and counts."""
        split = LabelledSplit.load(self.labelled_split(share, draw))
        return {"sha256": split.hash, "num_images": split.num_images, "positives": split.positives}

    def scores(self, logits: Logits, held_out: HeldOut) -> np.ndarray:
        """Probabilities of held-out images, the mean over the views: `(num, num_labels)`, float64."""
        views = [held_out.images, held_out.images.flip(-1)][: self.num_views]
        answers = []
        with torch.no_grad():
            for view in views:
                parts = [logits(part).float() for part in view.split(_BATCH_SIZE)]
                answers.append(probabilities(torch.cat(parts).double(), self.info.problem_type))
        return torch.stack(answers).mean(dim=0).double().numpy()

    def record(self, scores: np.ndarray, held_out: HeldOut) -> dict[str, Any]:
        """Macro AUROC, and the AUROC of each label."""
        return auroc_record(held_out.labels, scores, self.info.label_names)

    def _held_out(self, split: str) -> HeldOut:
        data = self.recipe.data
        table = load_prepared(self.dataset_dir, split)
        labels = label_matrix(table, self.info)
        rows = ImageRows(table, data.cache_images, f"{split} images")
        chosen = np.intersect1d(rows.indices, np.flatnonzero(~np.isnan(labels).all(axis=1)))
        images = rows.batch(chosen, ImageTransform(data.image_size, self.info.channels))
        patients = table["patient_id"][:]
        return HeldOut(images, labels[chosen], [patients[row] for row in chosen.tolist()])
