"""Parameters carry no gradient while sampling: only the latents do."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import nn
from torch.autograd.graph import saved_tensors_hooks


def hold_saved_tensors() -> saved_tensors_hooks:
    """Keep for the backward pass the weights that the forward pass used.

    Layerwise casting and group offloading exchange a parameter's data right after its forward; a graph that refers to
    the parameter would find the small or absent copy.
    """
    return saved_tensors_hooks(lambda tensor: tensor.detach(), lambda tensor: tensor)


@dataclass
class _Held:
    """What a module was before the first of those who sample with it.

    Args:
        training: its mode.
        frozen: names of its own parameters that carried a gradient.
        num_holders: how many are sampling with it.
    """

    training: bool
    frozen: list[str]
    num_holders: int = 0


_held: dict[nn.Module, _Held] = {}
_lock = threading.Lock()


@contextmanager
def sampling_mode(*modules: nn.Module) -> Iterator[None]:
    """Put modules in evaluation mode and freeze their parameters; the last one to leave restores both.

    Several threads may sample with the same modules: each is changed by the first and restored by the last of them.
    """
    parts = list(dict.fromkeys(part for root in modules for part in root.modules()))
    with _lock:
        for part in parts:
            _hold(part)
    try:
        yield
    finally:
        with _lock:
            for part in parts:
                _let_go(part)


def _hold(module: nn.Module) -> None:
    held = _held.get(module)
    if held is None:
        # By name: sequential offloading puts new parameters in the place of the old ones.
        own = module.named_parameters(recurse=False)
        held = _held[module] = _Held(module.training, [name for name, parameter in own if parameter.requires_grad])
        module.training = False
        for name in held.frozen:
            getattr(module, name).requires_grad_(False)
    held.num_holders += 1


def _let_go(module: nn.Module) -> None:
    held = _held[module]
    held.num_holders -= 1
    if held.num_holders > 0:
        return
    del _held[module]
    module.training = held.training
    for name in held.frozen:
        getattr(module, name).requires_grad_(True)
