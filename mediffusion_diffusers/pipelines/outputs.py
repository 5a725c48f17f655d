"""What the three pipelines return."""

from __future__ import annotations

from dataclasses import dataclass

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
class MediffusionCounterfactualPipelineOutput(BaseOutput):
    """Output of [`MediffusionCounterfactualPipeline`].

    The *null edit* has the same start, timesteps and noise as the counterfactual, at guidance scale 0: what it changes
    is due to the autoencoder and the noise, not to the explanation.

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
        settings: the values used, after the checkpoint's defaults: `strength`, `guidance_scale`,
            `num_inference_steps`, `num_inversion_steps`, `start`, `guidance_mode`, `solver_order`, `eta`.
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
    settings: dict[str, float | int | str]
