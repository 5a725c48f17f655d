"""The losses of the steps, which stay on their device until somebody wants to know them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch

from ...metrics_log import LossWindow


# More would wait on the device than one read should bring.
_MOST_UNREAD = 1000


class StepLosses:
    """Losses of the steps since they were last read, and their means since the last record.

    A step leaves one small tensor on the device; reading brings all of them to the host at once, summed over the
    processes, and adds them up there in the order of the steps. When they are read therefore changes nothing.

    Args:
        sum_over_processes: of a tensor.
        window: what `LossWindow.state` gave.
    """

    def __init__(
        self,
        sum_over_processes: Callable[[torch.Tensor], torch.Tensor],
        window: dict[str, list[float]] | None = None,
    ):
        self.sum_over_processes = sum_over_processes
        self.window = LossWindow(window)
        self._unread: list[tuple[int, list[str], torch.Tensor]] = []

    @property
    def is_full(self) -> bool:
        """Whether it is time to read."""
        return len(self._unread) >= _MOST_UNREAD

    def add(self, step: int, losses: Mapping[str, torch.Tensor]) -> None:
        """Note the losses of this process's slice of a step, from 0; nothing waits for the device."""
        stacked = torch.stack([value.detach().float() for value in losses.values()])
        self._unread.append((step, list(losses), stacked))

    def read(self) -> None:
        """Bring the losses to the host; all processes together.

        Raises:
            FloatingPointError: for the first that is not finite, with its step.
        """
        if not self._unread:
            return
        unread, self._unread = self._unread, []
        values = iter(self.sum_over_processes(torch.cat([stacked for _, _, stacked in unread])).tolist())
        for step, names, _ in unread:
            losses = {name: next(values) for name in names}
            for name, value in losses.items():
                if not math.isfinite(value):
                    raise FloatingPointError(
                        f"`{name}` became {value} at step {step + 1}. Lower `learning_rate`, or resume from an "
                        "earlier checkpoint with another one."
                    )
            self.window.add(losses)
