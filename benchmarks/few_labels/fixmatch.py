"""FixMatch (Sohn et al., 2020): what the network is sure of on a weak view is the label of a strong one.

Single-label as published, but for the strong view's operations, which are the recipe's own at larger strength, then
Cutout.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from mediffusion_diffusers.training.classification import classification_loss
from mediffusion_diffusers.training.joint.batches import JointImages
from mediffusion_diffusers.training.joint.pseudo_labels import confident_labels, num_pseudo_terms
from mediffusion_diffusers.training.run.randomness import keyed_generator

from .pixel_network import on_pixels
from .setting import Setting
from .task import Outcome, outcome_of
from .unlabelled_views import UnlabelledViewsTask


THRESHOLD, STRONG_JITTER, UNLABELLED_WEIGHT = 0.95, 0.6, 1.0
_CUTOUT_SHARE = 0.5  # largest side of the square, relative to the image's


class FixMatchTask(UnlabelledViewsTask):
    """The class loss on labelled images, and on strong views with the labels that weak views gave (Eqs. 3 and 4)."""

    def losses(self, batch: JointImages, step: int, part: int) -> dict[str, torch.Tensor]:
        """Both losses, differentiated; the statistics of the normalisation are those of all views together."""
        assert batch.labelled is not None
        labelled = self.batch_maker.labelled(batch.labelled, step, part)
        transform, problem_type = self.batch_maker.transform, self.data.info.problem_type
        weak = self.view(step, "weak", transform)
        strong = self.view(step, "strong", replace(transform, color_jitter=STRONG_JITTER))
        strong = cutout(strong, keyed_generator(self.config.run.seed, "cutout", step))
        views = torch.cat([labelled.latents, weak, strong]).contiguous(memory_format=torch.channels_last)
        sizes = [len(labelled.latents), len(weak), len(strong)]
        known, guessed, asked = self.unet(views).logits.split(sizes)
        class_loss = classification_loss(known, labelled.labels, problem_type, labelled.num_known)
        labels = confident_labels(guessed.detach(), THRESHOLD, problem_type)
        num_terms = num_pseudo_terms(len(weak), labels.shape[1], problem_type)
        pool_loss = classification_loss(asked, labels, problem_type, num_terms)
        loss = class_loss + UNLABELLED_WEIGHT * pool_loss
        self.run.backward(loss)
        sure = (~torch.isnan(labels[:, 0])).float().mean()
        return {"loss": loss.detach(), "classification_loss": class_loss.detach(), "sure_share": sure}


def cutout(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Set a square of random place and size to 0, the mean (DeVries and Taylor, 2017).

    Args:
        images: `(batch, channels, height, width)`, of mean 0.
        generator: of the squares.
    """
    num, _, height, width = images.shape
    half = torch.rand(num, 1, generator=generator) * _CUTOUT_SHARE * min(height, width) / 2
    centre = torch.rand(num, 2, generator=generator) * torch.tensor([height, width])
    down = (torch.arange(height)[None] - centre[:, :1]).abs() < half
    across = (torch.arange(width)[None] - centre[:, 1:]).abs() < half
    return images.masked_fill((down[:, :, None] & across[:, None, :])[:, None], 0.0)


def fixmatch(setting: Setting) -> Outcome:
    """As many steps as our consolidation, which takes about as long as ours does after pre-training."""
    config = setting.class_stage("fixmatch", max_train_steps=setting.pool_steps)
    return outcome_of(on_pixels(config), FixMatchTask)
