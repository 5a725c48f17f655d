"""Numbers that have left their range end a training, before they are saved."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch


def require_finite(record: Mapping[str, Any]) -> None:
    """Check the numbers of a record of metrics.jsonl, which holds `kind` and `step`.

    Raises:
        FloatingPointError: for the first that is NaN or infinite.
    """
    for name, value in record.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise FloatingPointError(
                f"`{name}` of the {record['kind']} became {value} after step {record['step']}. Lower `learning_rate`, "
                "or resume from an earlier checkpoint with another one."
            )


def require_finite_tensors(groups: Mapping[str, Mapping[str, torch.Tensor]], step: int) -> None:
    """Check the tensors of a checkpoint; each group is read from its device once.

    Args:
        groups: tensors by group and name.
        step: optimizer steps done.

    Raises:
        FloatingPointError: naming the first group with NaN or infinite numbers.
    """
    for group, tensors in groups.items():
        answers = [tensor.isfinite().all() for tensor in tensors.values()]
        if answers and not bool(torch.stack([answer.to(answers[0].device) for answer in answers]).all()):
            raise FloatingPointError(
                f"The tensors of `{group}` hold NaN or infinite numbers after step {step}, and are not saved. Lower "
                "`learning_rate`, or resume from an earlier checkpoint with another one."
            )
