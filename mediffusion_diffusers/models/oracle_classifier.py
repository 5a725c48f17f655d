"""The outside classifier ("oracle") that judges counterfactuals: any transformers image classifier behind one call."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ..device import memory_format_for
from .config_rules import MAX_SIDE, whole
from .label_config import resolve_label_config
from .model_folder import load_transformers


PATIENTS_FILE = "training_patients.json"  # digests of the patients that the oracle was trained on
MIN_INPUT_SIZE = 64  # smaller images are enlarged to this: the stems of these networks reduce them fourfold at once


class OracleClassifier:
    """A trained outside classifier.

    Args:
        model: a transformers model for image classification, whose config states `num_channels`, `image_size` (the
            resolution of its training images), `problem_type`, `id2label` and, optionally, `label_thresholds`.
    """

    def __init__(self, model: Any):
        self.model = model.eval()

    @property
    def label_names(self) -> list[str]:
        """Names of the columns of the probabilities."""
        id2label = self.model.config.id2label
        return [id2label[index] for index in range(len(id2label))]

    @property
    def resolution(self) -> int:
        """Side of the images that it was trained on, in pixels."""
        return int(self.model.config.image_size)

    @property
    def num_channels(self) -> int | None:
        """Channels of the images that it takes; None for any."""
        return int(self.model.config.num_channels)

    @property
    def is_multi_label(self) -> bool:
        """Whether an image may carry several findings at once."""
        return self.model.config.problem_type != "single_label_classification"

    @property
    def thresholds(self) -> np.ndarray | None:
        """Probability from which each label counts as present; None if the most probable label is the decision."""
        if not self.is_multi_label:
            return None
        stored = getattr(self.model.config, "label_thresholds", None)
        return np.full(len(self.label_names), 0.5) if stored is None else np.asarray(stored, dtype=np.float64)

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """Logits of images in [-1, 1], shape `(batch, channels, height, width)`; differentiable."""
        return self.model(pixel_values=self._prepare(images)).logits.float()

    @torch.no_grad()
    def features(self, images: torch.Tensor, batch_size: int = 250) -> torch.Tensor:
        """The last hidden state, averaged over places: what distances of distributions are measured in.

        Args:
            images: as for `__call__`, and so is `batch_size`.

        Returns:
            Shape `(num, num_features)`, float32, on the CPU.
        """
        parts = []
        for part in images.split(batch_size):
            last = self.model(pixel_values=self._prepare(part), output_hidden_states=True).hidden_states[-1].float()
            parts.append((last.mean((2, 3)) if last.ndim == 4 else last.mean(1)).cpu())  # maps, or tokens
        return torch.cat(parts)

    @property
    def network(self) -> str:
        """What kind of network it is, for tables."""
        return f"{type(self.model).__name__}, {self.resolution}x{self.resolution}"

    def _prepare(self, images: torch.Tensor) -> torch.Tensor:
        """Images as the network takes them."""
        expected = self.model.config.num_channels
        if images.ndim != 4 or images.shape[1] != expected:
            raise ValueError(
                f"`images` must have shape (batch, {expected}, height, width), but got {tuple(images.shape)}."
            )
        parameter = next(self.model.parameters())
        images = images.to(device=parameter.device, dtype=parameter.dtype)
        images = resize_for_oracle(images, self.resolution)
        return images.contiguous(memory_format=memory_format_for(images.device))

    @torch.no_grad()
    def __call__(self, images: torch.Tensor, batch_size: int = 250) -> torch.Tensor:
        """Classify images.

        Args:
            images: shape `(num, channels, height, width)` in [-1, 1].
            batch_size: images per forward pass.

        Returns:
            Probabilities of shape `(num, num_labels)`, on the CPU.
        """
        logits = torch.cat([self.logits(part).cpu() for part in images.split(batch_size)])
        return logits.sigmoid() if self.is_multi_label else logits.softmax(dim=1)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Save config and safetensors weights."""
        self.model.save_pretrained(folder)


def load_oracle(path: str | os.PathLike[str], device: str | torch.device = "cpu") -> OracleClassifier:
    """Load an outside classifier from a folder written by `train_oracle.py`.

    Raises:
        ValueError: if `path` holds none, or one whose files are damaged, pickled or ask for too much.
    """
    from transformers import AutoModelForImageClassification

    if not (Path(path) / "config.json").is_file():
        raise ValueError(
            f"`oracle_path` must be a folder written by train_oracle.py, but {str(path)!r} holds no config.json."
        )
    model = load_transformers(AutoModelForImageClassification, path)
    missing = [name for name in ("image_size", "num_channels") if not hasattr(model.config, name)]
    if missing:
        raise ValueError(f"The config in {str(path)!r} must state {missing}: write them into its config.json.")
    try:
        whole(1, MAX_SIDE)("image_size", model.config.image_size)
        whole(1, 4)("num_channels", model.config.num_channels)
        resolve_label_config(
            model.config.num_labels,
            model.config.problem_type or "multi_label_classification",
            model.config.id2label,
            None,
            getattr(model.config, "label_thresholds", None),
        )
    except ValueError as error:
        raise ValueError(f"{Path(path) / 'config.json'} cannot be used: {error}") from error
    return OracleClassifier(model.to(device))


def patient_digest(dataset_name: str, patient_id: str) -> str:
    """A short digest that tells whether two data sets share a patient without naming anyone."""
    return hashlib.sha256(f"{dataset_name}\x1f{patient_id}".encode()).hexdigest()[:12]


def resize_for_oracle(images: torch.Tensor, resolution: int) -> torch.Tensor:
    """Bring images to the training resolution, then to the network's input size of at least `MIN_INPUT_SIZE`."""
    for size in (resolution, max(resolution, MIN_INPUT_SIZE)):
        if images.shape[-2:] != (size, size):
            shrinks = size < images.shape[-1]
            images = F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False, antialias=shrinks)
    return images
