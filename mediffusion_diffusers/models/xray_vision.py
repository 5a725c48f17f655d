"""TorchXRayVision's classifiers of chest X-rays as classifiers that judge and guide.

TorchXRayVision is not installed with this package: it needs torchvision, and its own weights are pickled. Load a model
with it yourself, wrap it and save it once; from then on its weights are safetensors:

    import torchxrayvision
    XRayVisionClassifier(torchxrayvision.models.DenseNet(weights="densenet121-res224-chex")).save_pretrained("judge")
"""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from ..atomic_files import new_folder, read_json, write_json


XRAY_VISION_FILE, WEIGHTS_FILE = "torchxrayvision.json", "model.safetensors"
_LARGEST = 1024.0  # its images lie in [-1024, 1024]
_EPSILON = 1e-6  # keeps the logits of its calibrated probabilities finite
_SIDE = 224
# Weights whose training images hold those of ChestX-ray14's official test list, by the end of their name.
_SEEN_CHESTXRAY14 = ("-nih", "-all")


class XRayVisionClassifier(nn.Module):
    """A TorchXRayVision classifier with the interface of transformers' image classifiers.

    Args:
        model: such as `torchxrayvision.models.DenseNet(weights="densenet121-res224-chex")`: takes grey images in
            [-1024, 1024], and answers with a probability for each name in its `pathologies`; an empty name is none.

    Raises:
        ValueError: for another model.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        pathologies = list(getattr(model, "pathologies", None) or getattr(model, "targets", None) or [])
        if not any(pathologies):
            raise ValueError(
                f"`model` must be a classifier of TorchXRayVision, with `pathologies`, but got {type(model).__name__}."
            )
        self.model = model.eval()
        self.pathologies = [str(name) for name in pathologies]
        self.columns = [column for column, name in enumerate(pathologies) if name]
        self.weights_name = str(getattr(model, "weights", None) or "unknown")
        self.config = SimpleNamespace(
            id2label=dict(enumerate(pathologies[column] for column in self.columns)),
            problem_type="multi_label_classification",
            num_channels=1,
            image_size=_SIDE,
        )

    def forward(self, pixel_values: torch.Tensor, output_hidden_states: bool = False) -> SimpleNamespace:
        """Classify images.

        Args:
            pixel_values: shape `(batch, 1, 224, 224)` in [-1, 1].
            output_hidden_states: also give the features before the last layer.

        Returns:
            With `logits`, shape `(batch, num_labels)`, of its calibrated probabilities: 0 is its operating point. And
            with `hidden_states`, one of shape `(batch, 1, num_features)`, or None.
        """
        images = _LARGEST * pixel_values
        probabilities = self.model(images)[:, self.columns]
        features: Any = self.model
        return SimpleNamespace(
            logits=torch.logit(probabilities.clamp(_EPSILON, 1 - _EPSILON)),
            hidden_states=(features.features2(images)[:, None],) if output_hidden_states else None,
        )

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Save names, operating points and weights; no pickle."""
        tensors = {name: value.detach().contiguous().cpu() for name, value in self.model.state_dict().items()}
        thresholds: Any = getattr(self.model, "op_threshs", None)
        described = {
            "weights": self.weights_name,
            "pathologies": self.pathologies,
            "op_threshs": None if thresholds is None else [float(one) for one in thresholds],
        }
        with new_folder(folder) as aside:
            save_file(tensors, aside / WEIGHTS_FILE)
            write_json(aside / XRAY_VISION_FILE, described)

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str]) -> XRayVisionClassifier:
        """Load what `save_pretrained` wrote into a DenseNet of TorchXRayVision.

        Raises:
            ImportError: without torchxrayvision.
            ValueError: for files that do not fit.
        """
        try:
            from torchxrayvision.models import DenseNet
        except ImportError as error:
            raise ImportError(
                f"{os.fspath(folder)!r} needs TorchXRayVision: pip install torchxrayvision, with the torchvision "
                "that fits your torch."
            ) from error
        described = read_json(Path(folder) / XRAY_VISION_FILE)
        try:
            model = DenseNet(weights=None, num_classes=len(described["pathologies"]), in_channels=1)
            points = described["op_threshs"]
            state = load_file(Path(folder) / WEIGHTS_FILE)
            state.pop("op_threshs", None)  # told in the description; a buffer in some versions, an attribute in others
            model.load_state_dict(state, strict=False)
            missing = set(model.state_dict()) - set(state) - {"op_threshs"}
            if missing:
                raise ValueError(f"it lacks the weights {sorted(missing)[:3]}.")
            model.op_threshs = None if points is None else torch.tensor(points)
            model.pathologies, model.weights = described["pathologies"], described["weights"]
        except (KeyError, TypeError, ValueError, OSError, RuntimeError, SafetensorError) as error:
            raise ValueError(
                f"The classifier in {os.fspath(folder)!r} cannot be used: {' '.join(str(error).split())}"
            ) from error
        return cls(model)


def check_independent(weights_name: str, dataset_name: str) -> None:
    """Refuse a judge that has learnt from the images it would judge.

    Args:
        weights_name: TorchXRayVision's name of the weights.
        dataset_name: of the dataset that is judged.

    Raises:
        ValueError: for weights that were trained on ChestX-ray14, on ChestX-ray14.
    """
    if dataset_name == "chestxray14" and weights_name.endswith(_SEEN_CHESTXRAY14):
        raise ValueError(
            f"`oracle_path` must name an independent judge, but {weights_name!r} has seen 81 % of ChestX-ray14's "
            "official test images in its training. Take weights of another hospital, such as densenet121-res224-chex."
        )
