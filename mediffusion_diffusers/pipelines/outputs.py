"""What the three pipelines return."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.utils import BaseOutput
from PIL import Image


Images = list[Image.Image] | np.ndarray | torch.Tensor
Scores = np.ndarray | torch.Tensor


@dataclass
class MediffusionClassifyPipelineOutput(BaseOutput):
    """Output of [`MediffusionClassifyPipeline`].

    Args:
        probabilities: shape `(batch, num_labels)`, in [0, 1].
        logits: the scores they come from, averaged over noises and timesteps if there are several; same shape.
        labels: names of the labels that reach their thresholds, one list per image; for a model of one class per
            image, the most probable class.
        label_names: names of the columns.
        thresholds: the thresholds used, one per label.
        image_size: height and width at which the model saw the images; other sizes were resized.
    """

    probabilities: Scores
    logits: Scores
    labels: list[list[str]]
    label_names: list[str]
    thresholds: list[float]
    image_size: tuple[int, int]


@dataclass
class MediffusionGuidedPipelineOutput(BaseOutput):
    """Output of [`MediffusionGuidedPipeline`].

    With a list of guidance scales every field but the last two holds one entry per scale, in their order.

    Args:
        images: generated images, in the asked-for `output_type`, `num_images` of them.
        probabilities: the model's own probabilities for these images, shape `(num_images, num_labels)`.
        label_names: names of the columns.
        timesteps: timesteps of the evaluations of the model, noisiest first.
    """

    images: Images | list[Images]
    probabilities: Scores
    label_names: list[str]
    timesteps: list[int]


@dataclass
class ControlEdit:
    """A change of the size (L1) of a counterfactual, to compare it with; see `mediffusion_diffusers.controls`.

    Args:
        images: the changed images.
        probabilities: the model's probabilities for them, shape `(batch, num_labels)`.
        high_frequency_share: share of the change's energy above half of the highest frequency, shape `(batch,)`.
    """

    images: Images
    probabilities: Scores
    high_frequency_share: Scores


@dataclass
class MediffusionCounterfactualPipelineOutput(BaseOutput):
    """Output of [`MediffusionCounterfactualPipeline`].

    The *null edit* has the same start, timesteps and noise as the counterfactual, at guidance scale 0: what it changes
    is due to the autoencoder and the noise, not to the explanation. With `detail="keep"` it is the image itself, and
    both differences are the explanation alone.

    Args:
        images: the counterfactuals, in the asked-for `output_type`.
        null_images: the null edits.
        originals: the given images at the model's size.
        difference: counterfactual minus original, signed, in units of the full intensity range ([-1, 1]); shape of
            the images as arrays (tensors for `"pt"` and `"latent"`; for `"latent"` the difference of the latents).
        null_difference: counterfactual minus null edit, likewise: the explanation alone.
        probabilities_before: the model's probabilities for the originals, shape `(batch, num_labels)`.
        probabilities_after: for the counterfactuals as returned.
        probabilities_null: for the null edits as returned.
        label_names: names of the columns.
        timesteps: timesteps of the guided evaluations, noisiest first.
        image_size: height and width of the results; images of other sizes were resized.
        settings: the options used, after the checkpoint's defaults, by name; `mask` is `"auto"`, `"everywhere"` or
            `"given"`. See `CounterfactualSettings.to_dict`.
        guidance_scales: the scale of each counterfactual, as given or found.
        strengths: likewise.
        reached: of a search: whether the counterfactual, as returned, reaches the target probability; bool.
        plain_gradient_images: each image changed as much (L1) as its counterfactual by the model's plain gradient, in
            the same region; None, like all of the controls, for `controls=False` and `output_type="latent"`.
        plain_gradient_probabilities: the model's probabilities for them.
        random_noise_images: each image changed as much by white noise.
        random_noise_probabilities: the model's probabilities for them.
        l1: mean absolute change of each counterfactual, in units of the full intensity range.
        high_frequency_shares: share of the change's energy above half of the highest frequency, of the
            counterfactual, the plain gradient and the noise (0.80), shape `(batch, 3)`.
        region: where the image was allowed to change, on the latents' grid, in [0, 1]; None for everywhere.
        agreement: with `start="noised_paths"`: how far its noises agree on the change of each place, on the latents'
            grid, shape `(batch, 1, *latent_size)`, in [0, 1]: 1 where all of them make the same change, about
            `1 / sqrt(num_noises)` where they have nothing in common. None with other starts.
        unet_evaluations: evaluations of the U-Net that the edit of one counterfactual took, in the mean: the start,
            the steps and the trials of a search, not the classification of pictures and not the controls.
        external_probabilities_before: the external classifier's probabilities for the originals.
        external_probabilities_after: for the counterfactuals.
        external_probabilities_null: for the null edits.
        external_label_names: names of their columns.

    Several counterfactuals of one image repeat its original and its scores, so that all fields have one entry per
    counterfactual.
    """

    images: Images
    null_images: Images
    originals: Images
    difference: Scores
    null_difference: Scores
    probabilities_before: Scores
    probabilities_after: Scores
    probabilities_null: Scores
    label_names: list[str]
    timesteps: list[int]
    image_size: tuple[int, int]
    settings: dict[str, Any]
    guidance_scales: Scores | None = None
    strengths: Scores | None = None
    reached: np.ndarray | None = None
    plain_gradient_images: Images | None = None
    plain_gradient_probabilities: Scores | None = None
    random_noise_images: Images | None = None
    random_noise_probabilities: Scores | None = None
    l1: Scores | None = None
    high_frequency_shares: Scores | None = None
    region: np.ndarray | None = None
    agreement: np.ndarray | None = None
    unet_evaluations: float | None = None
    external_probabilities_before: Scores | None = None
    external_probabilities_after: Scores | None = None
    external_probabilities_null: Scores | None = None
    external_label_names: list[str] | None = None

    def settings_of(self, row: int) -> dict[str, Any]:
        """The settings of one counterfactual: its own scale and strength, of a list or found, in place of the call's.

        Args:
            row: of the counterfactual.
        """
        own = {"guidance_scale": self.guidance_scales, "strength": self.strengths}
        return {**self.settings, **{name: _plain(values, row) for name, values in own.items() if values is not None}}

    @property
    def controls(self) -> dict[str, ControlEdit] | None:
        """The counterfactual, the plain gradient and the noise, by name, side by side; None without controls."""
        if self.plain_gradient_images is None:
            return None
        changes = {
            "counterfactual": (self.images, self.probabilities_after),
            "plain_gradient": (self.plain_gradient_images, self.plain_gradient_probabilities),
            "random_noise": (self.random_noise_images, self.random_noise_probabilities),
        }
        return {
            name: ControlEdit(*change, self.high_frequency_shares[:, column])  # type: ignore
            for column, (name, change) in enumerate(changes.items())
        }


def _plain(values: Scores, row: int) -> float:
    """A number of single precision as it is written: 0.3, not 0.30000001192092896."""
    return float(str(torch.as_tensor(values)[row].cpu().numpy()))
