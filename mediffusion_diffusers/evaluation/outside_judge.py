"""Judges from outside: image classifiers of transformers or of TorchXRayVision, in the place of an oracle."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from ..guidance import ExternalClassifier
from ..hub import HubFailure
from ..models.model_folder import local_model
from ..models.oracle_classifier import OracleClassifier, load_oracle
from ..models.xray_vision import XRAY_VISION_FILE, XRayVisionClassifier, check_independent


_PROCESSOR_FILE = "preprocessor_config.json"  # image processors write it; oracles of `train oracle` have none


class OutsideJudge(OracleClassifier):
    """A classifier of pixels behind the call of an oracle, its labels by the names of ours.

    Args:
        classifier: takes images of any size, grey or colour, in [-1, 1].
        label_names: of the model that is judged.
        names: its own name for each of these, where they differ by more than case, spaces and underscores.

    Raises:
        ValueError: if it knows no label of a name, or `names` has one that the model does not have.
    """

    def __init__(
        self, classifier: ExternalClassifier, label_names: Sequence[str], names: Mapping[str, str] | None = None
    ):
        super().__init__(classifier.model)
        self.classifier = classifier.eval().requires_grad_(False)
        self._label_names = list(label_names)
        unknown = sorted(set(names or ()) - set(label_names))
        if unknown:
            raise ValueError(
                f"`oracle_labels` must name labels of the model, {', '.join(label_names)}, but names "
                f"{', '.join(map(repr, unknown))}."
            )
        theirs = {_plain(name): column for column, name in enumerate(classifier.label_names)}
        wanted = {name: _plain((names or {}).get(name, name)) for name in label_names}
        missing = [name for name, plain in wanted.items() if plain not in theirs]
        if missing:
            raise ValueError(
                f"The outside classifier must know the labels of the model, but not {', '.join(missing)}: it has "
                f"{', '.join(classifier.label_names)}. If it calls them otherwise, say so: "
                f"`oracle_labels` {missing[0]}=..."
            )
        self.columns = [theirs[plain] for plain in wanted.values()]

    @property
    def label_names(self) -> list[str]:
        """Names of the columns of the probabilities: the model's."""
        return self._label_names

    @property
    def resolution(self) -> int:
        """Side of the images that it takes, in pixels; 0 for any."""
        return self.classifier.image_size or 0

    @property
    def num_channels(self) -> int | None:
        """It takes grey and colour images."""
        return None

    @property
    def is_multi_label(self) -> bool:
        """Whether an image may carry several findings at once."""
        return self.classifier.problem_type != "single_label_classification"

    @property
    def thresholds(self) -> np.ndarray | None:
        """0.5 for each label; None if the most probable label is the decision."""
        return np.full(len(self.columns), 0.5) if self.is_multi_label else None

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """Logits of the model's labels, of images in [-1, 1]; differentiable."""
        return self.classifier(self._placed(images))[:, self.columns].float()

    @torch.no_grad()
    def __call__(self, images: torch.Tensor, batch_size: int = 250) -> torch.Tensor:
        """Probabilities of the model's labels; classes that the model does not have keep their share.

        Args:
            images: shape `(num, channels, height, width)` in [-1, 1].
            batch_size: images per forward pass.

        Returns:
            Shape `(num, num_labels)`, on the CPU.
        """
        parts = [self.classifier(self._placed(part)).float().cpu() for part in images.split(batch_size)]
        logits = torch.cat(parts)
        probabilities = logits.sigmoid() if self.is_multi_label else logits.softmax(dim=1)
        return probabilities[:, self.columns]

    def _prepare(self, images: torch.Tensor) -> torch.Tensor:
        return self.classifier.prepare(self._placed(images))

    def _placed(self, images: torch.Tensor) -> torch.Tensor:
        parameter = next(self.classifier.model.parameters(), images)
        return images.to(parameter.device)


def load_judge(
    path: str | os.PathLike[str],
    label_names: Sequence[str],
    dataset_name: str,
    device: str | torch.device = "cpu",
    names: Mapping[str, str] | None = None,
) -> tuple[OracleClassifier, Path]:
    """Load who judges.

    Args:
        path: folder of an oracle (`mediffusion train oracle`); folder or Hub repository of an image classifier of
            transformers with its image processor; or folder of an `XRayVisionClassifier`.
        label_names: of the model that is judged.
        dataset_name: that it is judged on.
        device: where the judge computes.
        names: as for `OutsideJudge`.

    Returns:
        The judge, and the folder that its files lie in.

    Raises:
        ValueError: if there is none, it lacks a label, or has learnt from the images that are judged.
        HubFailure: if `path` is no folder and cannot be read on the Hub.
        ImportError: for an XRayVisionClassifier without torchxrayvision.
    """
    folder = Path(path)
    if (folder / XRAY_VISION_FILE).is_file():
        network = XRayVisionClassifier.from_pretrained(folder)
        check_independent(network.weights_name, dataset_name)
        external = ExternalClassifier(network, (0.5,), (0.5,))
    elif folder.exists() and not (folder / _PROCESSOR_FILE).is_file():
        return load_oracle(folder, device), folder
    else:
        try:
            folder = local_model(path)
        except HubFailure as error:
            raise HubFailure(f"`oracle_path` names no judge that can be had: {error}") from error
        external = ExternalClassifier.from_pretrained(str(folder))
    return OutsideJudge(external.to(device), label_names, names), folder


def _plain(name: str) -> str:
    """A name without what people write differently."""
    return re.sub(r"[\W_]+", "", name).lower()
