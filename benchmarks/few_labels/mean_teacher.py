"""Mean Teacher (Tarvainen and Valpola, 2017): the averaged weights' answers to another view are what is asked for."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from mediffusion_diffusers.training.classification import classification_loss, probabilities
from mediffusion_diffusers.training.joint.batches import JointImages

from .pixel_network import on_pixels
from .setting import Setting
from .task import Outcome, outcome_of
from .unlabelled_views import UnlabelledViewsTask


CONSISTENCY_WEIGHT = 10.0  # of the squared difference of probabilities
RAMP_UP_SHARE = 0.4  # of the steps, in which that weight rises as exp(-5 (1 - x)^2)


class MeanTeacherTask(UnlabelledViewsTask):
    """The class loss on labelled images, and agreement with the teacher on unlabelled ones."""

    def losses(self, batch: JointImages, step: int, part: int) -> dict[str, torch.Tensor]:
        """Both losses, differentiated."""
        assert batch.labelled is not None and self.ema is not None
        labelled = self.batch_maker.labelled(batch.labelled, step, part)
        transform, problem_type = self.batch_maker.classifier_transform, self.data.info.problem_type
        with torch.no_grad():
            teacher = probabilities(self.ema.averaged()(self.view(step, "teacher", transform)).logits, problem_type)
        views = torch.cat([labelled.latents, self.view(step, "student", transform)])
        known, unknown = self.unet(views).logits.split([len(labelled.latents), self.num_unlabelled])
        class_loss = classification_loss(known, labelled.labels, problem_type, labelled.num_known)
        consistency = F.mse_loss(probabilities(unknown, problem_type), teacher)
        progress = min(1.0, step / (RAMP_UP_SHARE * self.config.run.max_train_steps))
        weight = CONSISTENCY_WEIGHT * math.exp(-5 * (1 - progress) ** 2)
        loss = class_loss + weight * consistency
        self.run.backward(loss)
        return {"loss": loss.detach(), "classification_loss": class_loss.detach(), "consistency": consistency.detach()}


def mean_teacher(setting: Setting) -> Outcome:
    """As many steps as our consolidation, which takes about as long as ours does after pre-training."""
    config = setting.class_stage("mean_teacher", max_train_steps=setting.pool_steps)
    return outcome_of(on_pixels(config), MeanTeacherTask)
