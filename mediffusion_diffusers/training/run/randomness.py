"""Random numbers that depend on what they are for, and on nothing that happened before.

Every draw of a training run is keyed by (seed, purpose, step or position). A restarted run, or one on another number
of processes, so draws the same numbers without saving or replaying the state of any generator.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch


def keyed_seed(*keys: int | str) -> int:
    """Turn keys such as `(seed, "noise", step)` into one well-mixed seed in [0, 2**63)."""
    text = "\x1f".join(f"{type(key).__name__}:{key}" for key in keys)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def keyed_generator(*keys: int | str) -> torch.Generator:
    """A CPU generator for torch, determined by the keys alone."""
    return torch.Generator().manual_seed(keyed_seed(*keys))


def keyed_rng(*keys: int | str) -> np.random.Generator:
    """A numpy generator, determined by the keys alone."""
    return np.random.Generator(np.random.PCG64(keyed_seed(*keys)))


def seed_step(*keys: int | str) -> None:
    """Seed torch's global generators, which dropout draws from, by the keys."""
    torch.manual_seed(keyed_seed(*keys))
