"""The moving average of the weights: the one set that is validated, saved and explained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from diffusers.training_utils import EMAModel
from torch import nn


Model = TypeVar("Model", bound=nn.Module)


class EMAWeights:
    """diffusers' `EMAModel` over *all* parameters of a model, trunk and head, with the model at hand.

    Buffers are not averaged: inside `applied` the model keeps its own, current ones.

    Args:
        model: the model to follow.
        decay: largest decay, in [0, 1); it warms up as (1 + step) / (10 + step).
    """

    def __init__(self, model: nn.Module, decay: float = 0.9999):
        self.model = model
        self.names = [name for name, _ in model.named_parameters()]
        self.ema = EMAModel(model.parameters(), decay=decay, foreach=True)

    def step(self) -> None:
        """Follow the model by one optimizer step."""
        self.ema.step(self.model.parameters())

    def restart_warmup(self) -> None:
        """Let the decay warm up from 0 again, so that the average forgets an untrained head quickly."""
        self.ema.optimization_step = 0

    def to(self, device: torch.device) -> EMAWeights:
        """Move the average to a device."""
        self.ema.to(device=device)
        return self

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Lend the averaged weights to the model; its own come back afterwards, bit for bit."""
        parameters = list(self.model.parameters())
        self.ema.store(parameters)
        self.ema.copy_to(parameters)
        try:
            yield
        finally:
            self.ema.restore(parameters)

    def state_tensors(self) -> dict[str, torch.Tensor]:
        """The averaged weights by parameter name."""
        return dict(zip(self.names, self.ema.shadow_params, strict=True))

    def state_scalars(self) -> dict[str, Any]:
        """What else a restart needs."""
        return {"optimization_step": self.ema.optimization_step, "decay": self.ema.decay}

    def load_state(self, tensors: dict[str, torch.Tensor], scalars: dict[str, Any]) -> None:
        """Restore what `state_tensors` and `state_scalars` gave. The decay is the one asked for now."""
        for name, own in self.state_tensors().items():
            own.copy_(tensors[name])
        self.ema.optimization_step = int(scalars["optimization_step"])


@contextmanager
def validation_weights(model: Model, ema: EMAWeights | None) -> Iterator[Model]:
    """Give the model as it is validated and saved: in evaluation mode, with the averaged weights if there are any."""
    was_training = model.training
    model.eval()
    try:
        if ema is None:
            yield model
        else:
            with ema.applied():
                yield model
    finally:
        model.train(was_training)
