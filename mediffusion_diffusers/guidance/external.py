"""A classifier of pixels, such as any of transformers', as the one that guides (App. H)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..models.config_rules import number, several
from ..models.model_folder import load_transformers


class ExternalClassifier(nn.Module):
    """Logits of a transformers image classifier for images in the range of the autoencoder, differentiable.

    Resizing, grey to colour and normalisation are done on tensors, as its image processor does them on images, so
    that the gradient reaches the pixels.

    Args:
        model: an image classifier of transformers (`AutoModelForImageClassification.from_pretrained(...)`), or any
            module with its `config` and an output with `logits`.
        image_mean: mean of each channel that the model expects to be subtracted from images in [0, 1].
        image_std: likewise the standard deviation to divide by.
        image_size: side of the images in pixels; by default the config's `image_size`, else they keep their size.

    Raises:
        ValueError: if the model is no image classifier.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self,
        model: nn.Module,
        image_mean: tuple[float, ...] = (0.5, 0.5, 0.5),
        image_std: tuple[float, ...] = (0.5, 0.5, 0.5),
        image_size: int | None = None,
    ):
        super().__init__()
        config = getattr(model, "config", None)
        if config is None or not getattr(config, "id2label", None):
            raise ValueError(
                "`classifier` must be an image classifier of transformers (with `config.id2label`), but got "
                f"{type(model).__name__}."
            )
        self.model = model
        self.image_size = image_size or _side(getattr(config, "image_size", None))
        self.register_buffer("mean", torch.tensor(image_mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(image_std).view(1, -1, 1, 1), persistent=False)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str, **kwargs: Any) -> ExternalClassifier:
        """Load model and preprocessing of a folder or a Hub repository; `kwargs` go to both.

        Raises:
            ValueError: if their files are damaged, pickled, ask for too much or hold NaN.
            HubFailure: if it is no folder and cannot be read on the Hub.
        """
        from transformers import AutoImageProcessor, AutoModelForImageClassification

        model = load_transformers(AutoModelForImageClassification, pretrained_model_name_or_path, **kwargs)
        processor = AutoImageProcessor.from_pretrained(pretrained_model_name_or_path, **kwargs)
        size = getattr(processor, "crop_size", None) or getattr(processor, "size", None) or {}
        side = _side(size.get("height") or size.get("shortest_edge")) if hasattr(size, "get") else None
        mean, std = (getattr(processor, name, None) or (0.5, 0.5, 0.5) for name in ("image_mean", "image_std"))
        several(number(), 4)("image_mean", mean)
        several(number(above=0), 4)("image_std", std)
        return cls(model, tuple(mean), tuple(std), side)

    @property
    def label_names(self) -> list[str]:
        """The model's labels in the order of its logits."""
        id2label = {int(index): name for index, name in self.model.config.id2label.items()}  # type: ignore
        return [id2label[index] for index in sorted(id2label)]

    @property
    def problem_type(self) -> str:
        """As in transformers; without it the classes exclude one another."""
        return getattr(self.model.config, "problem_type", None) or "single_label_classification"

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Classify images.

        Args:
            pixels: shape `(batch, channels, height, width)` in [-1, 1], the autoencoder's range.

        Returns:
            Logits of shape `(batch, num_labels)`.
        """
        return self.model(self.prepare(pixels)).logits.to(pixels.device)

    def prepare(self, pixels: torch.Tensor) -> torch.Tensor:
        """Images as the model takes them: its size, channels and normalisation.

        Args:
            pixels: as for `forward`.

        Returns:
            Shape `(batch, model's channels, height, width)`, on the model's device and in its precision.
        """
        weight = next((each for each in self.model.parameters() if each.is_floating_point()), pixels)
        images = (pixels.to(weight) + 1) / 2  # the model may lie elsewhere, or compute in another precision
        channels = self.mean.numel()
        if images.shape[1] != channels:
            # Grey images are repeated, colour images of a grey classifier averaged.
            images = images.mean(1, keepdim=True).expand(-1, channels, -1, -1)
        if self.image_size is not None and images.shape[-2:] != (self.image_size, self.image_size):
            size = (self.image_size, self.image_size)
            images = F.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)
        mean, std = (buffer.to(images) for buffer in (self.mean, self.std))
        return (images - mean) / std


def _side(size: Any) -> int | None:
    """One side of a square size, however it is written."""
    if isinstance(size, (list, tuple)):
        size = size[0]
    return None if size is None else int(size)
