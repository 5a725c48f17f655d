"""Perceptual distances: how far apart two images are for a network that has seen many (paper App. C)."""

from __future__ import annotations

import importlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ...image_processor import denormalize
from ...models.model_folder import load_transformers


PerceptualLoss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

MAX_STAGES = 5


class PerceptualNetwork(ABC):
    """A frozen network that measures distances. Not a module, so that it is neither trained nor stored by others.

    Args:
        model: the network.
    """

    def __init__(self, model: nn.Module):
        self.model = model.requires_grad_(False).eval()

    def to(self, device: torch.device | str) -> PerceptualNetwork:
        """Move the network to a device."""
        self.model.to(device)
        return self

    @abstractmethod
    def __call__(self, images: torch.Tensor, reconstructions: torch.Tensor) -> torch.Tensor:
        """Distances `(batch,)` of images `(batch, 1 or 3, height, width)` in [-1, 1]."""


def load_perceptual_loss(name: str) -> PerceptualNetwork | None:
    """Load the perceptual network that `--perceptual` names.

    Args:
        name: `"none"`; `"lpips"` for the package of that name (Zhang et al., 2018; VGG), which needs torchvision; or
            the folder or repository of any image model of transformers, such as `"microsoft/resnet-50"`.

    Returns:
        The network; `None` for `"none"`.

    Raises:
        ValueError: if lpips is not installed, or the model cannot be loaded.
    """
    if name == "none":
        return None
    if name == "lpips":
        return LpipsLoss()
    return TransformersPerceptualLoss.from_pretrained(name)


class TransformersPerceptualLoss(PerceptualNetwork):
    """Distance between the features of an image model, stage by stage, as LPIPS without its learned weights.

    The features of each stage are scaled to unit length over channels (Zhang et al., 2018, Eq. 1); the squared
    differences are summed over channels and averaged over places and stages: a number in [0, 4].

    Args:
        model: image model that returns `hidden_states`, as feature maps `(batch, channels, rows, columns)` or as
            tokens `(batch, tokens, channels)`.
        image_mean: mean that the model expects to be taken off images in [0, 1], one number or one per channel.
        image_std: what it expects them to be divided by then.
    """

    def __init__(self, model: nn.Module, image_mean: Any = 0.5, image_std: Any = 0.5):
        super().__init__(model)
        self.mean = torch.as_tensor(image_mean, dtype=torch.float32).reshape(1, -1, 1, 1)
        self.std = torch.as_tensor(image_std, dtype=torch.float32).reshape(1, -1, 1, 1)
        parameters = inspect.signature(model.forward).parameters
        # Vision transformers refuse other sizes than their own without it.
        self.options = {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in parameters else {}

    @classmethod
    def from_pretrained(cls, name: str) -> TransformersPerceptualLoss:
        """Load a model and the input normalisation of its image processor; without one, images go in as [-1, 1].

        Raises:
            ValueError: if there is no such model.
        """
        from transformers import AutoModel
        from transformers.image_processing_base import ImageProcessingMixin

        try:
            model = load_transformers(AutoModel, name)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"`perceptual` must be 'none', 'lpips', or the folder or repository of an image model of "
                f"transformers, but {name!r} cannot be loaded: {error}"
            ) from error
        try:
            processor, _ = ImageProcessingMixin.get_image_processor_dict(name)
        except (OSError, ValueError):
            processor = {"image_mean": 0.5, "image_std": 0.5}
        if not processor.get("do_normalize", True):
            processor = {"image_mean": 0.0, "image_std": 1.0}
        return cls(model, processor.get("image_mean", 0.5), processor.get("image_std", 0.5))

    def features(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Unit-length features of up to `MAX_STAGES` stages, channels second, of images in [-1, 1]."""
        images = grey_to_rgb(denormalize(images))
        images = (images - self.mean.to(images.device)) / self.std.to(images.device)
        output = self.model(images, output_hidden_states=True, **self.options)
        stages = output.hidden_states[1:]  # the first is the embedding of the pixels
        places = torch.linspace(0, len(stages) - 1, min(MAX_STAGES, len(stages))).round().long().tolist()
        chosen = [stages[place] if stages[place].ndim == 4 else stages[place].transpose(1, 2) for place in places]
        return [F.normalize(stage.float(), dim=1, eps=1e-10) for stage in chosen]

    def __call__(self, images: torch.Tensor, reconstructions: torch.Tensor) -> torch.Tensor:
        """Distances `(batch,)` in [0, 4]; a gradient goes through the reconstructions."""
        with torch.no_grad():
            wanted = self.features(images)
        pairs = zip(wanted, self.features(reconstructions), strict=True)
        return torch.stack([(a - b).square().sum(dim=1).flatten(1).mean(dim=1) for a, b in pairs]).mean(dim=0)


class LpipsLoss(PerceptualNetwork):
    """LPIPS with VGG, as the paper's authors used; opt-in, because the package needs torchvision.

    Raises:
        ValueError: if the package is not installed.
    """

    def __init__(self) -> None:
        try:
            lpips = importlib.import_module("lpips")
        except ImportError as error:
            raise ValueError(
                f"`perceptual=lpips` needs the packages lpips and torchvision ({error}). Install them with "
                "`pip install lpips torchvision`, taking the torchvision that belongs to your torch: another one "
                "breaks `import diffusers`. Or name an image model of transformers instead."
            ) from error
        super().__init__(lpips.LPIPS(net="vgg", verbose=False))

    def __call__(self, images: torch.Tensor, reconstructions: torch.Tensor) -> torch.Tensor:
        """Distances `(batch,)` of images in [-1, 1]."""
        return self.model(grey_to_rgb(images), grey_to_rgb(reconstructions)).flatten()


def grey_to_rgb(images: torch.Tensor) -> torch.Tensor:
    """Repeat one channel three times; three stay as they are."""
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
