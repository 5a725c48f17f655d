"""One step of the demo, in a process of its own that has torch and the pipelines loaded already."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import sys
import threading
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path


# What most steps need, loaded once and forked from there: a second of work each time, and ten processes.
PRELOAD = (
    "mediffusion_diffusers.pipelines",
    "mediffusion_diffusers.data",
    "mediffusion_diffusers.commands.mediffusion",
)


def work(words: Sequence[str], log: Path, num_threads: int, is_nice: bool, report: Connection) -> None:
    """Run a command of `mediffusion`, and end the process with its exit code.

    Args:
        words: the command line after `mediffusion`.
        log: where everything goes that it prints.
        num_threads: of torch.
        is_nice: whether to leave the cores to others that want them.
        report: gets the CPU seconds that were used.
    """
    end_with_the_parent()
    with log.open("ab", buffering=0) as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    if is_nice and hasattr(os, "nice"):
        os.nice(10)
    import torch

    torch.set_num_threads(num_threads)
    sys.argv = ["mediffusion", *words]
    from ..mediffusion import main

    try:
        main()
    finally:
        sys.stdout.flush()
        report.send(sum(os.times()[:4]))  # user and system time, of this process and of those that it started


def end_with_the_parent() -> None:
    """End this process when its parent's ends, however it ends: the next demo finds nobody in its folders."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
