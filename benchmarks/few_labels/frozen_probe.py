"""A linear probe on the frozen features of the U-Net that was trained to denoise: what fine-tuning is worth."""

from __future__ import annotations

import torch

from mediffusion_diffusers import JointUNet2DModel
from mediffusion_diffusers.data.schema import label_matrix, load_prepared
from mediffusion_diffusers.data.splits import LabelledSplit
from mediffusion_diffusers.data.transforms import ImageTransform
from mediffusion_diffusers.latents import encode_pixels
from mediffusion_diffusers.models import SpaceToDepthAutoencoder
from mediffusion_diffusers.training.data.image_rows import ImageRows
from mediffusion_diffusers.training.joint.linear_probe import linear_probe

from .setting import Setting
from .task import Outcome


def frozen_probe(setting: Setting) -> Outcome:
    """Multinomial logistic regression on the pooled maps of all encoder levels, clean, at t = 0."""
    problem = setting.problem
    unet = JointUNet2DModel.from_pretrained(setting.pretrained, subfolder="unet").eval()
    vae = SpaceToDepthAutoencoder.from_pretrained(setting.pretrained, subfolder="vae")

    @torch.no_grad()
    def features(images: torch.Tensor) -> torch.Tensor:
        latents = encode_pixels(vae, images).contiguous(memory_format=torch.channels_last)
        return unet.pool_features(unet.encode(latents, 0))

    table = load_prepared(problem.dataset_dir, "train")
    rows = LabelledSplit.load(problem.labelled_split(setting.share, setting.draw)).indices(table)
    targets = torch.from_numpy(label_matrix(table, problem.info)[rows]).float()
    pictures = ImageRows(table.select(rows))
    plain = ImageTransform(problem.recipe.data.image_size, problem.info.channels)
    known = features(pictures.batch(range(len(rows)), plain))
    mean, std = known.mean(dim=0), known.std(dim=0) + 1e-6
    probe = linear_probe((known - mean) / std, targets, problem.info.problem_type)
    return Outcome(lambda images: probe((features(images) - mean) / std))
