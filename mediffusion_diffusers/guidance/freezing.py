"""Parameters carry no gradient while sampling: only the latents do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.autograd.graph import saved_tensors_hooks


def hold_saved_tensors() -> saved_tensors_hooks:
    """Keep for the backward pass the weights that the forward pass used.

    Layerwise casting and group offloading exchange a parameter's data right after its forward; a graph that refers to
    the parameter would find the small or absent copy.
    """
    return saved_tensors_hooks(lambda tensor: tensor.detach(), lambda tensor: tensor)


@contextmanager
def sampling_mode(*modules: nn.Module) -> Iterator[None]:
    """Put modules in evaluation mode and freeze their parameters, and restore both afterwards."""
    training = [(module, module.training) for root in modules for module in root.modules()]
    # By name: sequential offloading puts new parameters in the place of the old ones.
    frozen = [
        (module, name)
        for root in modules
        for module in root.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.requires_grad
    ]
    try:
        for root in modules:
            root.eval()
        for module, name in frozen:
            getattr(module, name).requires_grad_(False)
        yield
    finally:
        for module, was_training in training:
            module.training = was_training
        for module, name in frozen:
            getattr(module, name).requires_grad_(True)
