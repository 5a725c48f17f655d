"""A linear probe on the features as they are, where the class loss begins (beyond the paper, off by default).

A head that knows nothing pulls the features that diffusion learned out of shape before it is any use. A probe that was
fitted while they stood still leaves fine-tuning little to do: LP-FT (Kumar et al., 2022, "Fine-Tuning can Distort
Pretrained Features", arXiv:2202.10054).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from accelerate.utils import broadcast
from torch import nn

from ...models import JointUNet2DModel
from ...models.classifier_head import standardise_by
from ..classification import classification_loss


_WEIGHT_PENALTY = 3e-2  # of the squared weights, beside the mean loss; features have variance 1
_MAX_ITERATIONS = 200
_SMALLEST_STD = 1e-3  # a feature that never changes says nothing


@torch.no_grad()
def begin_with_linear_probe(
    unet: JointUNet2DModel,
    latents: Callable[[np.ndarray], torch.Tensor],
    rows: np.ndarray,
    labels: np.ndarray,
    batch_size: int,
) -> None:
    """Make the head the linear probe of some labelled images, clean, at t = 0; the first process's, in all of them.

    Args:
        unet: the joint model, whose head must be one linear layer; it is replaced, and so are the running statistics
            of the normalisation before it, if there is one.
        latents: gives the clean latents of some rows, on the model's device.
        rows: the labelled images' rows.
        labels: of the whole dataset, `(num_rows, num_labels)`, NaN = unknown.
        batch_size: images that are encoded at once.
    """
    was_training = unet.training
    unet.eval()
    parts = np.array_split(rows, -(-len(rows) // batch_size))
    features = torch.cat([unet.pool_features(unet.encode(latents(part), 0)).float() for part in parts])
    unet.train(was_training)
    mean, std = features.mean(dim=0), features.std(dim=0, correction=0).clamp_min(_SMALLEST_STD)
    targets = torch.from_numpy(labels[rows]).to(features)
    probe = linear_probe((features - mean) / std, targets, unet.config.problem_type)
    if not standardise_by(unet.classifier, mean, std):  # then the layer has to
        probe.weight.div_(std)
        probe.bias.sub_(probe.weight @ mean)
    unet.classifier[-1].load_state_dict(probe.state_dict())
    for tensor in unet.classifier.state_dict().values():  # rounding may differ between machines
        broadcast(tensor)


def check_head(unet: JointUNet2DModel) -> None:
    """Refuse a head that is no linear probe.

    Raises:
        ValueError: for a head with a hidden layer.
    """
    if unet.config.classifier_hidden_size != 0:
        raise ValueError(
            "`linear_probe_first` needs a head of one linear layer, `classifier_hidden_size=0`, but the U-Net's has "
            f"{unet.config.classifier_hidden_size} hidden units."
        )


def linear_probe(features: torch.Tensor, labels: torch.Tensor, problem_type: str) -> nn.Linear:
    """Logistic regression with a penalty on the weights, by L-BFGS from zero.

    Args:
        features: standardised, shape `(num, num_features)`, float32.
        labels: shape `(num, num_labels)`, NaN = unknown; see `classification_loss`.
        problem_type: as there.

    Returns:
        The layer, without gradients.
    """
    probe = nn.Linear(features.shape[1], labels.shape[1], device=features.device)
    nn.init.zeros_(probe.weight)
    nn.init.zeros_(probe.bias)
    optimizer = torch.optim.LBFGS(probe.parameters(), max_iter=_MAX_ITERATIONS, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = classification_loss(probe(features), labels, problem_type)
        loss = loss + _WEIGHT_PENALTY * probe.weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    return probe.requires_grad_(False)
