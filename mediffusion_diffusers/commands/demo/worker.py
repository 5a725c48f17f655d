"""One step of the demo, in processes of its own that have torch and the pipelines loaded already."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import socket
import sys
import threading
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path


# What most steps need, loaded once and forked from there: a second of work each time, and ten processes.
PRELOAD = (
    "mediffusion_diffusers.pipelines",
    "mediffusion_diffusers.data",
    "mediffusion_diffusers.commands.mediffusion",
)


def work(
    words: Sequence[str], log: Path, num_threads: int, environment: Mapping[str, str], report: Connection
) -> None:
    """Run a command of `mediffusion`, and end the process with its exit code.

    Args:
        words: the command line after `mediffusion`.
        log: where everything goes that it prints.
        num_threads: of torch.
        environment: variables that say which of a step's processes this is, see `environments`.
        report: gets the CPU seconds that were used.
    """
    end_with_the_parent()
    with log.open("ab", buffering=0) as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    os.environ.update(environment, OMP_NUM_THREADS=str(num_threads))
    import torch

    torch.set_num_threads(num_threads)
    sys.argv = ["mediffusion", *words]
    from ..mediffusion import main

    try:
        main()
    finally:
        sys.stdout.flush()
        report.send(sum(os.times()[:4]))  # user and system time, of this process and of those that it started


def environments(num_processes: int) -> list[dict[str, str]]:
    """What tells each process of a step its place among them, as `accelerate launch` would; they meet on loopback.

    Args:
        num_processes: that share the step.

    Returns:
        Variables for each; none if it is alone.
    """
    if num_processes == 1:
        return [{}]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    loopback = [name for _, name in getattr(socket, "if_nameindex", list)() if name.startswith("lo")]
    if loopback:  # else gloo looks for the interface of this machine's name, which may not resolve
        meeting["GLOO_SOCKET_IFNAME"] = loopback[0]
    size = str(num_processes)
    return [
        {**meeting, "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
        for rank in map(str, range(num_processes))
    ]


def end_with_the_parent() -> None:
    """End this process when its parent's ends, however it ends: the next demo finds nobody in its folders."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
