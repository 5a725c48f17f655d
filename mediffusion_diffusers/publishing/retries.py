"""Try again what a network may lose, and only that."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from diffusers.utils import logging

from ..privacy import without_tokens


logger = logging.get_logger(__name__)

NUM_ATTEMPTS, FIRST_DELAY = 5, 5.0

Result = TypeVar("Result")


def with_retries(
    action: Callable[[], Result],
    what: str,
    token: str | None = None,
    num_attempts: int | None = None,
    first_delay: float | None = None,
) -> Result:
    """Try until it works, waiting twice as long each time; errors that no repetition mends are raised at once.

    Args:
        action: what to do.
        what: its name in warnings.
        token: never shown.
        num_attempts: `NUM_ATTEMPTS` by default.
        first_delay: seconds before the second attempt, `FIRST_DELAY` by default.

    Returns:
        What `action` returned.

    Raises:
        PermissionError: if the token may not do it.
        ValueError: if the arguments are wrong.
        Exception: the last one, after `num_attempts`.
    """
    num_attempts = NUM_ATTEMPTS if num_attempts is None else num_attempts
    delay = FIRST_DELAY if first_delay is None else first_delay
    for attempt in range(1, num_attempts):
        try:
            return action()
        except (PermissionError, ValueError):
            raise
        except Exception as error:
            text = without_tokens(str(error), token)
            logger.warning(f"{what} failed ({attempt} of {num_attempts}), again in {delay:g} s: {text}")
        time.sleep(delay)
        delay *= 2
    return action()
