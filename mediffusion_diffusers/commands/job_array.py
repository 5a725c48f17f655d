"""Which part of a dataset is this launch's, among the tasks of a job array."""

from __future__ import annotations

from collections.abc import Mapping


def job_array_place(
    num_shards: int | None, shard_index: int | None, environment: Mapping[str, str]
) -> tuple[int, int]:
    """Number of tasks and index of this one: as given, else as SLURM says, else one alone.

    Args:
        num_shards: number of tasks, or `None`.
        shard_index: this task, or `None`.
        environment: where `SLURM_ARRAY_TASK_COUNT`, `_ID`, `_MIN` and `_STEP` are, if at all.

    Raises:
        ValueError: if only one of the two is given, SLURM's numbers are none, or its tasks are not evenly spaced.
    """
    if (num_shards is None) != (shard_index is None):
        raise ValueError("`num_shards` and `shard_index` belong together: give both, or neither.")
    if num_shards is not None and shard_index is not None:
        return num_shards, shard_index
    if "SLURM_ARRAY_TASK_ID" not in environment:
        return 1, 0
    names = ("ID", "COUNT", "MIN", "STEP")
    defaults = {"COUNT": "1", "MIN": environment["SLURM_ARRAY_TASK_ID"], "STEP": "1"}
    task, count, first, step = (
        _number(f"SLURM_ARRAY_TASK_{name}", environment.get(f"SLURM_ARRAY_TASK_{name}", defaults.get(name, "0")))
        for name in names
    )
    index, rest = divmod(task - first, max(step, 1))
    if rest or index >= count:
        raise ValueError(
            f"SLURM's array tasks are not evenly spaced (task {task} of {count} from {first} on, step {step}). Pass "
            "`--num_shards` and `--shard_index`."
        )
    return count, index


def _number(variable: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(
            f"The environment variable `{variable}` must be a whole number, but is {text!r}. Pass `--num_shards` and "
            "`--shard_index`."
        ) from None
