"""What belongs to one running call, and to no pipeline: several threads may call one at the same time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch


@dataclass
class CallState:
    """What a call shows of itself, and what its callback may change.

    Args:
        guidance_scale: of the next step, a number or one per image.
        num_timesteps: number of denoising steps.
        interrupt: whether to skip the remaining steps.
        is_running: whether the call has not ended yet.
        num_evaluations: on how many latents the U-Net was evaluated, where it was `counted`.
    """

    guidance_scale: Any = 0.0
    num_timesteps: int = 0
    interrupt: bool = False
    is_running: bool = False
    num_evaluations: int = 0

    def counted(self, unet: Callable[..., Any]) -> Callable[..., Any]:
        """The U-Net, counting this call's evaluations; other calls may use the same one at the same time."""

        def evaluate(sample: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            self.num_evaluations += len(sample)
            return unet(sample, *args, **kwargs)

        return evaluate

    def steps(self, timesteps: torch.Tensor, shown: Callable[[Any], Iterable[Any]]) -> Iterator[tuple[int, Any]]:
        """Number and timestep of each denoising step, until a callback interrupts.

        Args:
            timesteps: on the CPU, so that no step waits for a device.
            shown: wraps them into a progress bar.
        """
        self.num_timesteps = len(timesteps)
        for step, t in enumerate(shown(timesteps)):
            if not self.interrupt:
                yield step, t


class ThreadCalls(threading.local):
    """The running or last call of each thread."""

    def __init__(self) -> None:
        self.current = CallState()

    def __reduce__(self) -> tuple[Any, ...]:  # a copied pipeline begins without calls
        return ThreadCalls, ()


def changed_by_callback(
    callback: Callable[..., Any] | None,
    pipe: Any,
    step: int,
    timestep: int,
    tensors: Mapping[str, torch.Tensor],
    names: Iterable[str],
) -> Mapping[str, torch.Tensor]:
    """Call a `callback_on_step_end`; what it does not return stays as it is, and so does all where it returns nothing.

    Args:
        callback: of the user, or None.
        pipe: its first argument.
        step: number of the step.
        timestep: where the step began.
        tensors: what the pipeline offers, by name.
        names: what the callback asked for.

    Raises:
        ValueError: if it returns anything but a dict of tensors of the same shapes, or new ones that are not finite.
    """
    changed = None if callback is None else callback(pipe, step, timestep, {name: tensors[name] for name in names})
    if changed is None:
        return tensors
    if not isinstance(changed, Mapping):
        raise ValueError(
            "`callback_on_step_end` must return a dict of the tensors that it changed, or None, but returned "
            f"{type(changed).__name__}."
        )
    result = {name: changed.get(name, tensor) for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        if not isinstance(result[name], torch.Tensor) or result[name].shape != tensor.shape:
            raise ValueError(
                f"`callback_on_step_end` must return {name!r} as a tensor of shape {tuple(tensor.shape)}, but "
                f"returned {getattr(result[name], 'shape', type(result[name]).__name__)}."
            )
        if result[name] is not tensor and not torch.isfinite(result[name]).all():
            raise ValueError(
                f"`callback_on_step_end` returned {name!r} with NaN or infinite values after step {step}."
            )
    return result
