"""Consolidation: the model learns its own soft answers of the whole pool, on clean and on noised latents.

Beyond the paper. At the start of the stage the averaged model answers every training image, labelled or not: clean,
the mean over some views, probabilities as they are. These answers are the targets from then on, about half of them
asked on noised latents; so the head learns from all images and becomes a guide that knows noise, while L_diff goes on.
It is self-distillation with an unlabelled pool (Chen et al., 2020, "Big Self-Supervised Models", Eq. 2).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from tqdm.auto import tqdm

from ...models import JointUNet2DModel
from ..classification import probabilities
from ..run.run import TrainingRun


SOFT_ANSWERS = "soft_answers"  # their file in a checkpoint


class SoftAnswers:
    """A probability per training image and label.

    Args:
        rows: the images' rows in the dataset, ascending.
        probabilities: `(len(rows), num_labels)`, float32.
    """

    def __init__(self, rows: np.ndarray, probabilities: torch.Tensor):
        self.rows, self.probabilities = rows, probabilities

    def of(self, rows: list[int]) -> torch.Tensor:
        """The answers for some rows, `(len(rows), num_labels)`."""
        return self.probabilities[torch.from_numpy(np.searchsorted(self.rows, rows))]


@torch.no_grad()
def answer(
    run: TrainingRun,
    unet: JointUNet2DModel,
    latents: Callable[[np.ndarray, int], torch.Tensor],
    rows: np.ndarray,
    num_views: int,
) -> SoftAnswers:
    """Ask the model about every image, clean; every process takes a share of the batches.

    Args:
        run: the training run.
        unet: the model in evaluation mode.
        latents: gives the clean latents of some rows, seen in the view of a number, on the run's device.
        rows: the images' rows, ascending.
        num_views: views of each image, over whose probabilities the mean is taken.

    Returns:
        The same on all processes.
    """
    size, problem_type = run.options.validation_batch_size, unet.config.problem_type
    starts = list(enumerate(range(0, len(rows), size)))
    own = [each for each in starts if each[0] % run.num_processes == run.accelerator.process_index]
    chunks = []
    for number, start in tqdm(own, desc="Soft answers", unit="batch", leave=False, disable=not run.is_main):
        views = []
        for view in range(num_views):
            with run.accelerator.autocast():
                logits = unet(latents(rows[start : start + size], view), 0, return_sample=False).logits
            views.append(probabilities(logits, problem_type))
        chunks.append((number, torch.stack(views).mean(dim=0).cpu()))
    return SoftAnswers(rows, torch.cat(run.gather_chunks(chunks)))
