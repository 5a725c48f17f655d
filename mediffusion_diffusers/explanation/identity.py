"""What tells one run from another: the model, what is asked, and what is read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ..digests import pipeline_digest
from ..version import __version__


def run_identity(request: Any, pipe: Any, columns: Mapping[str, Any]) -> dict[str, Any]:
    """What two chunks must have in common to belong to one run, as plain values for JSON.

    The batch size, the engine and the number of processes are not among it: they change results by rounding at most.

    Args:
        request: what is asked.
        pipe: the pipeline.
        columns: names of the input columns that are read.
    """
    identity = {"model_hash": pipeline_digest(pipe), "version": __version__, **asdict(request), **columns}
    return json.loads(json.dumps(identity))


def identity_differences(there: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """In words, what differs between an earlier identity and this run's; empty if they are the same.

    What one of them lacks counts as `None`: an option that was added since and is not given changes nothing.
    """
    names = sorted(there.keys() | now.keys())
    return [
        f"`{name}` is {there.get(name)!r} there and {now.get(name)!r} now"
        for name in names
        if there.get(name) != now.get(name)
    ]
