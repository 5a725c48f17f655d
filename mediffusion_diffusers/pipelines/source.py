"""Where several processes get the same pipeline from."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..device_options import DeviceOptions
from .counterfactual import MediffusionCounterfactualPipeline


@dataclass(frozen=True)
class PipelineSource:
    """Where every process gets the pipeline from.

    Args:
        pretrained_model_name_or_path: a folder that all of them see, or a repository on the Hub.
        revision: branch, tag or commit on the Hub.
        device_options: device and precision.
    """

    pretrained_model_name_or_path: str
    revision: str | None = None
    device_options: DeviceOptions = DeviceOptions()

    def load(self) -> tuple[MediffusionCounterfactualPipeline, torch.device]:
        """The pipeline, on the CPU, and the device that is chosen.

        Raises:
            ValueError, OSError: as `from_pretrained` and `DeviceOptions.choose`.
        """
        device, dtype = self.device_options.choose()
        pipe = MediffusionCounterfactualPipeline.from_pretrained(
            self.pretrained_model_name_or_path, revision=self.revision, dtype=dtype
        )
        return pipe, device
