"""Features of images as a module of PyTorch: what the classifier reads, pooled, and the map of each level."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndNoAttention

from .image_processor import ImageInput, MediffusionImageProcessor
from .latents import encode_pixels, vae_scale_factor
from .models import JointUNet2DModel
from .pipelines import MediffusionClassifyPipeline


class MediffusionModel(nn.Module):
    """The encoder of a Mediffusion checkpoint without a head, in the form of transformers' bare image models.

    Gradients flow, so that it can be a part of a larger network; `requires_grad_(False)` freezes it.

    Args:
        vae: autoencoder of the checkpoint.
        unet: joint model.

    Example:
        >>> from PIL import Image
        >>> from mediffusion_diffusers import MediffusionModel
        >>> model = MediffusionModel.from_pretrained("org/mediffusion-cxr").requires_grad_(False)
        >>> output = model(model.preprocess([Image.open("a.png"), Image.open("b.png")]))
        >>> head = torch.nn.Linear(model.num_features, 2)  # a linear probe
        >>> head(output.pooler_output).shape
        torch.Size([2, 2])
    """

    def __init__(self, vae: Any, unet: JointUNet2DModel):
        super().__init__()
        self.vae, self.unet = vae, unet
        self.image_processor = MediffusionImageProcessor(channels=vae.config.in_channels)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> MediffusionModel:
        """Load a checkpoint, in evaluation mode.

        Args:
            pretrained_model_name_or_path: a pipeline folder, or a repository on the Hub.
            kwargs: as for `MediffusionClassifyPipeline.from_pretrained`, such as `dtype` or `revision`.
        """
        pipe = MediffusionClassifyPipeline.from_pretrained(pretrained_model_name_or_path, **kwargs)
        return cls(pipe.vae, pipe.unet).eval()

    @property
    def num_features(self) -> int:
        """Length of `pooler_output`."""
        return self.unet.num_classifier_features

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images in pixels."""
        size, factor = self.unet.config.sample_size, vae_scale_factor(self.vae)
        height, width = (size, size) if isinstance(size, int) else size
        return height * factor, width * factor

    def preprocess(self, images: ImageInput) -> torch.Tensor:
        """Images of any kind that the pipelines take, as `(batch, channels, *image_size)` in [-1, 1]."""
        return self.image_processor.preprocess(images, *self.image_size).to(self.unet.device)

    def forward(
        self, pixel_values: torch.Tensor, timestep: int | torch.Tensor = 0, return_dict: bool = True
    ) -> BaseModelOutputWithPoolingAndNoAttention | tuple[Any, ...]:
        """Encode images without noise, and read the features of the U-Net's encoder half.

        Args:
            pixel_values: shape `(batch, channels, *image_size)` in [-1, 1], from `preprocess`.
            timestep: what noise the U-Net is told to expect; 0, none, is what the classifier is asked at.
            return_dict: return an output object rather than a tuple of its fields.

        Returns:
            `last_hidden_state`, the middle block's output; `pooler_output`, shape `(batch, num_features)`, the pooled
            features that the classifier head reads; `hidden_states`, one map per level, finest first, each before it
            is halved: shape `(batch, block_out_channels[i], height / 2^i, width / 2^i)` for latents of that size.

        Raises:
            ValueError: for images of another shape.
        """
        expected = (self.vae.config.in_channels, *self.image_size)
        if pixel_values.ndim != 4 or tuple(pixel_values.shape[1:]) != expected:
            raise ValueError(
                f"`pixel_values` must have the shape (batch, {', '.join(map(str, expected))}), but got "
                f"{tuple(pixel_values.shape)}. Use `model.preprocess(images)`."
            )
        latents = encode_pixels(self.vae, pixel_values).to(self.unet.dtype)
        encoded = self.unet.encode(latents, timestep)
        # A level gives `layers_per_block` maps and its halved one, after that of `conv_in`.
        per_level = self.unet.config.layers_per_block + 1
        levels = range(len(self.unet.config.block_out_channels))
        output = BaseModelOutputWithPoolingAndNoAttention(
            last_hidden_state=encoded.sample,
            pooler_output=self.unet.pool_features(encoded),
            hidden_states=tuple(encoded.skips[per_level * (level + 1) - 1] for level in levels),
        )
        return output if return_dict else output.to_tuple()
