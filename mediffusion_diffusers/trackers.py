"""The trackers of accelerate (tensorboard, wandb, ...), as `--report_to` names them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import GeneralTracker, get_available_trackers


def check_tracker(report_to: str | GeneralTracker | None, otherwise: str) -> None:
    """Refuse a tracker that is not installed before the work begins.

    Args:
        report_to: its name; one that was made already is right.
        otherwise: where the figures stand in any case, for the message.

    Raises:
        ValueError: naming those that are installed.
    """
    available = [tracker.value for tracker in get_available_trackers()]
    if isinstance(report_to, str) and report_to not in available:
        raise ValueError(
            f"`report_to` must be an installed tracker, but {report_to!r} is not. Installed: {available or 'none'}; "
            f"{otherwise}."
        )


class Reporter:
    """Tells a tracker how far a run is; without one, does nothing.

    Args:
        report_to: see `check_tracker`.
        output_dir: below which trackers that write files put them.
        facts: what describes the run.
    """

    def __init__(
        self, report_to: str | GeneralTracker | None, output_dir: str | os.PathLike[str], facts: Mapping[str, Any]
    ):
        self._accelerator: Accelerator | None = None
        if report_to is not None:
            self._accelerator = Accelerator(log_with=report_to, project_dir=output_dir)
            self._accelerator.init_trackers("mediffusion", {name: str(value) for name, value in facts.items()})

    def report(self, values: Mapping[str, float], step: int) -> None:
        """Tell it some figures."""
        if self._accelerator is not None:
            self._accelerator.log(dict(values), step=step)

    def close(self) -> None:
        """End the tracker."""
        if self._accelerator is not None:
            self._accelerator.end_training()
