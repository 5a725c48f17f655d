"""What is left when the disk fills up, and what to do (signals: `stop_request`)."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from .checkpoints import find_checkpoint


_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def explained_full_disk(output_dir: str | Path) -> Iterator[None]:
    """Say what is left and what to do when the disk fills up inside the block.

    Args:
        output_dir: folder of the run.

    Raises:
        OSError: in place of an error that a full disk (or an exhausted quota) caused.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        if not is_disk_full(error):
            raise
        newest, _ = find_checkpoint(Path(output_dir), "latest")
        kept = "there is no checkpoint yet" if newest is None else f"the last good checkpoint is {newest}"
        raise OSError(
            errno.ENOSPC,
            f"The disk of `output_dir` is full ({error}); {kept}. Make room, for example with a lower "
            "`checkpoints_total_limit`, and start the same command again with `--resume_from_checkpoint latest`.",
        ) from error


def is_disk_full(error: BaseException) -> bool:
    """Whether an error says that there is no room left; safetensors tells it in words only."""
    if isinstance(error, OSError):
        return error.errno in _DISK_FULL
    return any(f"(os error {number})" in str(error) for number in _DISK_FULL)
