"""Whether a flip holds: under noise and denoising, for a smoothed copy of the classifier, and pixel by pixel.

A flip by an invisible attack hangs on details that noise drowns. A change that shows the finding, or takes it away,
outlasts them.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from ..guidance import sampling_mode
from ..image_processor import denormalize, normalize
from ..pipelines import MediffusionClassifyPipeline, MediffusionCounterfactualPipeline
from ..pipelines.counterfactual.settings import timestep_of
from ..schedulers import MultistepDDIMScheduler
from .counterfactuals import Counterfactuals, Scores, flips, mean_of_known


DENOISED_STRENGTH = 0.1  # of the noise schedule: hides grain, keeps anatomy
DENOISING_STEPS = 5
SMOOTHING_NOISES = 4
NUM_INSERTIONS = 10  # steps of COUT's curve


class Validity:
    """The measures of counterfactuals of one set of originals.

    Args:
        pipeline: whose classifier was explained, and whose diffusion model denoises.
        originals: x, shape `(num, channels, height, width)` in [0, 1].
        batch_size: images at a time.
        seed: of the noise; originals and edited images get the same.
    """

    def __init__(
        self,
        pipeline: MediffusionCounterfactualPipeline,
        originals: np.ndarray,
        batch_size: int = 32,
        seed: int = 0,
    ):
        self.pipeline, self.originals, self.batch_size, self.seed = pipeline, originals, batch_size, seed
        self.classifier = MediffusionClassifyPipeline(**pipeline.components)
        self.classifier.set_progress_bar_config(disable=True)

    def summarize(self, counterfactuals: Counterfactuals) -> dict[str, float]:
        """All figures.

        Args:
            counterfactuals: of the originals.

        Returns:
            `denoised_flip_rate`: share of decisions that turn over if original and counterfactual are noised and
            denoised alike; `smoothed_flip_rate`: the same if both are judged by the smoothed classifier; `cout`, mean
            over images. NaN where a figure does not exist.
        """
        images, thresholds = counterfactuals.images, counterfactuals.own.thresholds
        figures = {}
        for name, ask in (("denoised", self.denoised_probabilities), ("smoothed", self.smoothed_probabilities)):
            before = self._before[name]
            flipped = flips(
                Scores(before, ask(images), before, thresholds), counterfactuals.targets, counterfactuals.direction
            )
            figures[f"{name}_flip_rate"] = mean_of_known(flipped)
        figures["cout"] = float(np.mean(self.cout(counterfactuals)))
        return figures

    @cached_property
    def _before(self) -> dict[str, np.ndarray]:
        """Scores of the originals."""
        return {
            "denoised": self.denoised_probabilities(self.originals),
            "smoothed": self.smoothed_probabilities(self.originals),
        }

    def denoised_probabilities(self, images: np.ndarray) -> np.ndarray:
        """The explained classifier's, of the denoised images, shape `(num, num_labels)`."""
        return self.probabilities(self.denoised(images))

    def probabilities(self, images: np.ndarray, **arguments: Any) -> np.ndarray:
        """The explained classifier's, shape `(num, num_labels)`."""
        output = self.classifier(torch.from_numpy(images).float(), batch_size=self.batch_size, **arguments)
        return output.probabilities

    def smoothed_probabilities(self, images: np.ndarray) -> np.ndarray:
        """The explained classifier's, averaged over noises: a smooth copy, which grain does not turn over.

        Randomised smoothing (Cohen et al., "Certified adversarial robustness", 2019) with the model's own noise and
        its own knowledge of the noise level.
        """
        generators = self._generators(len(images))
        return self.probabilities(
            images, timesteps=self._timestep, num_noise_samples=SMOOTHING_NOISES, generator=generators
        )

    @torch.no_grad()
    def denoised(self, images: np.ndarray) -> np.ndarray:
        """Images noised to `DENOISED_STRENGTH` and denoised by the diffusion model, which washes attacks out.

        Diffusion purification (Nie et al., "DiffPure", 2022), with few deterministic steps.

        Args:
            images: shape `(num, channels, height, width)` in [0, 1].

        Returns:
            Same shape, in [0, 1].
        """
        pipeline, parts = self.pipeline, []
        start = self._timestep
        generators = self._generators(len(images))
        with sampling_mode(pipeline.vae, pipeline.unet):
            for first in self._batches(len(images), "Denoising"):
                rows = slice(first, first + self.batch_size)
                pixels = torch.from_numpy(images[rows]).float().to(pipeline.device)
                latents = pipeline.encode_pixels(normalize(pixels))
                noise = torch.cat([torch.randn(latents[:1].shape, generator=one) for one in generators[rows]])
                scheduler = MultistepDDIMScheduler.from_config(pipeline.scheduler.config)
                scheduler.set_grid(DENOISING_STEPS, start, device=latents.device)
                at = torch.tensor([start], device=latents.device)
                latents = scheduler.add_noise(latents, noise.to(latents), at)
                for timestep in scheduler.timesteps:
                    prediction = pipeline.unet(latents, timestep, return_logits=False).sample
                    latents = scheduler.step(prediction, timestep, latents).prev_sample
                parts.append(denormalize(pipeline.decode_latents(latents)).clamp(0, 1).float().cpu())
        return torch.cat(parts).numpy()

    def cout(self, counterfactuals: Counterfactuals) -> np.ndarray:
        """COUT: how early the decision goes over while the changed pixels are inserted, most changed first.

        Area under the score of what is wanted minus that under the score of what was, over the share of inserted
        pixels (Khorram and Fuxin, "Cycle-consistent counterfactuals by latent transformations", 2022, Sec. 4.2). A
        sparse explanation that goes to the point goes over at once. For findings that may come together, the score of
        what was is the complement of what is wanted; for one class per image that of the class at first.

        Returns:
            Per image, in [-1, 1].
        """
        originals, images = self.originals, counterfactuals.images
        rank = change_rank(images - originals)
        curves = []
        for share in np.linspace(0, 1, NUM_INSERTIONS + 1):
            mixed = np.where(rank < share, images, originals)  # nothing of it at 0, everything at 1
            curves.append(self._wanted_minus_source(self.probabilities(mixed), counterfactuals))
        inner = np.sum(curves[1:-1], axis=0)
        return (inner + (curves[0] + curves[-1]) / 2) / NUM_INSERTIONS  # the trapezoidal rule

    def _wanted_minus_source(self, scores: np.ndarray, counterfactuals: Counterfactuals) -> np.ndarray:
        rows, targets = np.arange(len(scores)), counterfactuals.targets
        present = scores[rows, targets]
        if counterfactuals.own.thresholds is not None or counterfactuals.direction == "remove":
            return (2 * present - 1) * (1 if counterfactuals.direction == "add" else -1)
        return present - scores[rows, counterfactuals.own.before.argmax(1)]

    @property
    def _timestep(self) -> int:
        return timestep_of(DENOISED_STRENGTH, self.pipeline.scheduler)

    def _generators(self, num: int) -> list[torch.Generator]:
        """One per image, so that batches do not matter."""
        return [torch.Generator().manual_seed(self.seed * 1_000_003 + row) for row in range(num)]

    def _batches(self, num: int, description: str) -> Any:
        starts = range(0, num, self.batch_size)
        return tqdm(starts, desc=description, unit="batch", disable=len(starts) < 2)


def change_rank(difference: np.ndarray) -> np.ndarray:
    """Place of each pixel when they are sorted by their change, most changed first.

    Args:
        difference: signed changes, shape `(num, channels, height, width)`.

    Returns:
        Shape `(num, 1, height, width)`, in [0, 1): the share of pixels that changed more.
    """
    size = np.abs(difference).mean(1).reshape(len(difference), -1)
    order = np.argsort(-size, axis=1, kind="stable")
    places = np.argsort(order, axis=1) / size.shape[1]
    return places.reshape(len(difference), 1, *difference.shape[-2:])
