"""A residual network from transformers in the place of the U-Net: it reads pixels, and has nothing to denoise.

The latents are then the pixels, scaled to variance 1 as for the U-Net, so that loop, streams, augmentation, loss,
sampling and average are the very same code.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import ResNetConfig, ResNetModel

from mediffusion_diffusers.models.joint_unet_2d import JointUNet2DOutput
from mediffusion_diffusers.training.joint.config import JointConfig

from .task import BenchmarkTask


WIDTHS, DEPTHS, DROPOUT = [32, 64, 128], [2, 2, 2], 0.3


class PixelNetwork(nn.Module):
    """A small ResNet (He et al., 2016, basic blocks) with dropout before its linear layer.

    Args:
        channels: of the images.
        num_labels: number of logits.
        problem_type: as in transformers.
    """

    def __init__(self, channels: int, num_labels: int, problem_type: str):
        super().__init__()
        self.config = ResNetConfig(
            num_channels=channels,
            embedding_size=WIDTHS[0],
            hidden_sizes=WIDTHS,
            depths=DEPTHS,
            layer_type="basic",
            problem_type=problem_type,
        )
        self.trunk = ResNetModel(self.config)
        self.num_classifier_features = WIDTHS[-1]
        self.classifier = nn.Sequential(nn.Dropout(DROPOUT), nn.Linear(WIDTHS[-1], num_labels))

    def forward(self, latents: torch.Tensor, timestep: Any = 0, return_sample: bool = False) -> JointUNet2DOutput:
        """Logits of scaled pixels, `(batch, num_labels)`; the timestep is not looked at."""
        assert not return_sample
        features = self.trunk(pixel_values=latents).pooler_output.flatten(1)
        return JointUNet2DOutput(logits=self.classifier(features))


class PixelTask(BenchmarkTask):
    """Classification by a `PixelNetwork`."""

    def build_network(self, sample_size: int) -> Any:
        """The network; `sample_size` does not matter."""
        info = self.data.info
        return PixelNetwork(info.channels, info.num_labels, info.problem_type)


def on_pixels(config: JointConfig) -> JointConfig:
    """A configuration of the U-Net, for a `PixelTask`: whole pixels, and no diffusion loss."""
    return config.with_options(vae_path=None, vae="space_to_depth", vae_block_size=1, diffusion_loss_weight=0.0)
