"""Whose decision a counterfactual changes: the model's own classifier, or an outside one (App. H)."""

from __future__ import annotations

from typing import Any

import torch

from ...guidance import ExternalClassifier, LatentClassifier
from ...latents import decode_latents
from ..base import MediffusionPipeline
from .display import Shown


class OwnJudge:
    """The model's own classifier.

    Args:
        pipe: the pipeline.
    """

    latent_classifier: LatentClassifier | None = None  # the U-Net's head needs none

    def __init__(self, pipe: MediffusionPipeline):
        self.pipe = pipe
        self.label_names: list[str] = pipe.label_names
        self.problem_type: str = pipe.unet.config.problem_type

    def logits(self, latents: torch.Tensor) -> torch.Tensor:
        """Of clean latents, differentiable, shape `(num, num_labels)`."""
        return self.pipe.classify_latents(latents)

    def probabilities(self, shown: Shown) -> torch.Tensor:
        """Of pictures, shape `(num, num_labels)`, float32."""
        return self.pipe.logits_to_probabilities(self.logits(shown.latents))


class ExternalJudge:
    """A classifier of pixels.

    Args:
        pipe: the pipeline.
        classifier: the classifier.
    """

    def __init__(self, pipe: MediffusionPipeline, classifier: ExternalClassifier):
        self.pipe, self.classifier = pipe, classifier
        self.label_names: list[str] = classifier.label_names
        self.problem_type: str = classifier.problem_type

    def latent_classifier(self, latents: torch.Tensor) -> torch.Tensor:
        """Logits for guidance, whose gradient must not end where pixels leave [-1, 1]."""
        return self.classifier(decode_latents(self.pipe.vae, latents))

    def logits(self, latents: torch.Tensor) -> torch.Tensor:
        """Of clean latents, as the user sees them decoded; differentiable."""
        return self.classifier(self.pipe.decode_latents(latents))

    def probabilities(self, shown: Shown) -> torch.Tensor:
        """Of pictures; softmax or sigmoid by the classifier's `problem_type`."""
        are_pictures = shown.pictures.shape[-2:] == self.pipe.image_size
        logits = (self.classifier(shown.pictures) if are_pictures else self.logits(shown.latents)).float()
        is_single = self.problem_type == "single_label_classification"
        return logits.softmax(-1) if is_single else logits.sigmoid()


Judge = OwnJudge | ExternalJudge


def as_external(classifier: Any) -> ExternalClassifier | None:
    """An image classifier of transformers as one that takes the autoencoder's pixels; None stays None.

    Raises:
        ValueError: for what is no image classifier.
    """
    is_ready = classifier is None or isinstance(classifier, ExternalClassifier)
    return classifier if is_ready else ExternalClassifier(classifier)
