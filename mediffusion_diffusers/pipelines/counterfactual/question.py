"""What is asked of a call: which labels of which image are to change, how firmly, and where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ...guidance import GuidanceTarget, Labels, build_target, count_label_rows, scales_of_rows
from .settings import CounterfactualSettings


@dataclass(frozen=True)
class Question:
    """The counterfactuals to make, one per row; several of them may belong to one image.

    Args:
        image_index: image of each row, shape `(rows,)`, on the CPU.
        target: what is wanted of each row.
        scales: guidance scale of each row, shape `(rows,)`, on the CPU, so that no step waits for a device.
        region: where rows may change, shape `(rows or 1, 1, *latent_size)` in [0, 1]; None for everywhere.
    """

    image_index: torch.Tensor
    target: GuidanceTarget
    scales: torch.Tensor
    region: torch.Tensor | None = None

    @classmethod
    def of(
        cls,
        num_images: int,
        towards: Labels | Sequence[Labels] | None,
        away: Labels | Sequence[Labels] | None,
        settings: CounterfactualSettings,
        label_names: Sequence[str],
        problem_type: str,
    ) -> Question:
        """The rows that labels, scales and images ask for together.

        Args:
            num_images: images given.
            towards: labels to add, as for the pipeline.
            away: labels to remove.
            settings: resolved ones.
            label_names: of the classifier that guides.
            problem_type: of the classifier that guides.

        Raises:
            ValueError: if their numbers do not fit together, a label is unknown, or a direction has no scale.
        """
        scale = settings.guidance_scale
        num_rows = count_rows(
            num_images,
            towards=count_label_rows(towards),
            away=count_label_rows(away),
            guidance_scale=len(scale) if isinstance(scale, (list, tuple)) else None,
        )
        target = build_target(towards, away, num_rows, label_names, problem_type, settings.hold)
        scales = torch.tensor(scales_of_rows(scale, target.direction), dtype=torch.float64)
        return cls(torch.arange(num_images).repeat_interleave(num_rows // num_images), target, scales)

    def __len__(self) -> int:
        return len(self.image_index)

    @property
    def guidance_scale(self) -> float | torch.Tensor:
        """One number if it holds for all rows, else one per row."""
        return float(self.scales[0]) if len(self.scales.unique()) == 1 else self.scales

    def select(self, rows: torch.Tensor) -> Question:
        """Some of the rows; `rows` is on the CPU."""
        region = self.region if self.region is None or len(self.region) == 1 else self.region[rows]
        return Question(self.image_index[rows], self.target.select(rows), self.scales[rows], region)

    def repeat(self, num_times: int) -> Question:
        """All rows, so many times one after another, without a region."""
        rows = torch.arange(len(self)).repeat(num_times)
        return Question(self.image_index[rows], self.target.select(rows), self.scales[rows])

    def at_scales(self, scales: torch.Tensor) -> Question:
        """The same at other scales, shape `(rows,)`."""
        return replace(self, scales=scales)

    def within(self, region: Any) -> Question:
        """The same where only a region may change."""
        return replace(self, region=region)

    def to(self, latents: torch.Tensor) -> Question:
        """With the tensors that every step needs beside these latents; index and scales stay."""
        target = self.target.to(latents.device)
        return replace(self, target=target, region=None if self.region is None else self.region.to(latents))


def count_rows(num_images: int, **per_row: int | None) -> int:
    """Number of counterfactuals of a call: of one image, or of each, there may be several.

    Args:
        num_images: images given.
        per_row: by argument, how many entries it has, or None where it holds for all.

    Returns:
        The number of rows; image i has the rows `i * rows / num_images` and following.

    Raises:
        ValueError: if the numbers do not fit together.
    """
    given = {name: count for name, count in per_row.items() if count is not None}
    num_rows = max([num_images, *given.values()])
    for name, count in given.items():
        if count != num_rows or num_rows % num_images:
            raise ValueError(
                f"`{name}` as a list of lists must hold one list of labels for each of the {num_images} images (or "
                f"the same number of them for every image), but it holds {count} items."
                if name != "guidance_scale"
                else f"`guidance_scale` as a list must hold one scale per counterfactual, {num_rows}, or the same "
                f"number of them for each of the {num_images} images, but it holds {count}."
            )
    return num_rows
