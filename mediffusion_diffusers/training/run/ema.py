"""The moving average of the weights: the one set that is validated, saved and explained."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import torch
from diffusers.training_utils import EMAModel
from torch import nn


Model = TypeVar("Model", bound=nn.Module)


class EMAWeights(Generic[Model]):
    """A second model, in evaluation mode, whose parameters are diffusers' `EMAModel` over *all* of the first one's.

    Buffers are not averaged: `averaged` brings those of the model along.

    Args:
        model: the model to follow, where it is trained.
        decay: largest decay, in [0, 1); it warms up as (1 + step) / (10 + step).
    """

    def __init__(self, model: Model, decay: float = 0.9999):
        self.model = model
        self._averaged = copy.deepcopy(model).eval().requires_grad_(False)
        self.names = [name for name, _ in model.named_parameters()]
        self.ema = EMAModel([], decay=decay, foreach=True)
        self.ema.shadow_params = list(self._averaged.parameters())

    @torch.no_grad()
    def averaged(self) -> Model:
        """The model with the averaged weights, without gradients; the same object each time."""
        for own, current in zip(self._averaged.buffers(), self.model.buffers(), strict=True):
            own.copy_(current)
        return self._averaged

    def step(self) -> None:
        """Follow the model by one optimizer step."""
        self.ema.step(self.model.parameters())

    def set_decay(self, decay: float) -> None:
        """Another largest decay, from the next step on."""
        self.ema.decay = decay

    def restart_warmup(self) -> None:
        """Let the decay warm up from 0 again, so that the average forgets an untrained head quickly."""
        self.ema.optimization_step = 0

    @torch.no_grad()
    def begin_anew(self) -> None:
        """Take the model's weights as they are, and warm up from there."""
        for average, parameter in zip(self.ema.shadow_params, self.model.parameters(), strict=True):
            average.copy_(parameter)
        self.restart_warmup()

    @torch.no_grad()
    def copy_to_model(self) -> None:
        """Let training go on from the averaged weights."""
        for average, parameter in zip(self.ema.shadow_params, self.model.parameters(), strict=True):
            parameter.copy_(average)

    def state_tensors(self) -> dict[str, torch.Tensor]:
        """The averaged weights by parameter name."""
        return dict(zip(self.names, self.ema.shadow_params, strict=True))

    def state_scalars(self) -> dict[str, Any]:
        """What else a restart needs."""
        return {"optimization_step": self.ema.optimization_step, "decay": self.ema.decay}

    @torch.no_grad()
    def load_state(self, tensors: dict[str, torch.Tensor], scalars: dict[str, Any]) -> None:
        """Restore what `state_tensors` and `state_scalars` gave. The decay is the one asked for now."""
        for name, own in self.state_tensors().items():
            own.copy_(tensors[name])
        self.ema.optimization_step = int(scalars["optimization_step"])


@contextmanager
def validation_weights(model: Model, ema: EMAWeights[Model] | None) -> Iterator[Model]:
    """Give the model that is validated and saved: the average, or else the model itself in evaluation mode."""
    if ema is not None:
        yield ema.averaged()
        return
    was_training = model.training
    model.eval()
    try:
        yield model
    finally:
        model.train(was_training)
