"""The trackers of accelerate (tensorboard, wandb, ...), as `--report_to` names them."""

from __future__ import annotations

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
