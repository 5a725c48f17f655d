"""Label names, problem type and thresholds in a model's config, as in transformers."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import Any

from .config_rules import MAX_LABELS, MAX_NAME_LENGTH, whole
from .label_calibration import check_label_calibration


PROBLEM_TYPES = ("multi_label_classification", "single_label_classification")


def resolve_label_config(
    num_labels: int,
    problem_type: str,
    id2label: dict[int, str] | None,
    label2id: dict[str, int] | None,
    label_thresholds: list[float] | None,
    label_calibration: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Check the label settings against each other and fill in what was left out.

    Returns:
        `num_labels`, `id2label` with integer keys in order, `label2id`.

    Raises:
        ValueError: for settings of another type or size, or that contradict each other.
    """
    if problem_type not in PROBLEM_TYPES:
        raise ValueError(f"`problem_type` must be one of {PROBLEM_TYPES}, but got {problem_type!r}.")
    if id2label is None and label2id is not None:
        id2label = {index: name for name, index in _names("label2id", label2id).items()}
    if id2label is not None:
        id2label = {_index("id2label", index): str(name) for index, name in _names("id2label", id2label).items()}
        num_labels = len(id2label)
        if sorted(id2label) != list(range(num_labels)) or len(set(id2label.values())) != num_labels:
            raise ValueError(
                f"`id2label` must name every index from 0 to {num_labels - 1} once, with distinct names, but got "
                f"{id2label}."
            )
    whole(1, MAX_LABELS)("num_labels", num_labels)
    least = 2 if problem_type == "single_label_classification" else 1
    if num_labels < least:
        raise ValueError(f"`num_labels` must be at least {least} for {problem_type!r}, but got {num_labels}.")
    id2label = {index: id2label[index] if id2label else f"LABEL_{index}" for index in range(num_labels)}
    names = {name: index for index, name in id2label.items()}
    given = label2id and {str(name): _index("label2id", index) for name, index in _names("label2id", label2id).items()}
    if given is not None and given != names:
        raise ValueError(f"`label2id` must be the inverse of `id2label`, but got {label2id} for {id2label}.")
    if label_thresholds is not None and (
        not isinstance(label_thresholds, (list, tuple))
        or len(label_thresholds) != num_labels
        or not all(isinstance(threshold, Real) and 0 < threshold < 1 for threshold in label_thresholds)
    ):
        raise ValueError(
            f"`label_thresholds` must hold {num_labels} numbers in (0, 1), one per label, but got {label_thresholds}."
        )
    check_label_calibration(label_calibration, num_labels, problem_type)
    return {"num_labels": num_labels, "id2label": id2label, "label2id": names}


def _names(parameter: str, value: Any) -> Mapping[Any, Any]:
    """A mapping between labels and indices, not too large and not nested."""
    if not isinstance(value, Mapping) or not 1 <= len(value) <= MAX_LABELS:
        raise ValueError(
            f"`{parameter}` must be a mapping of 1 to {MAX_LABELS} labels, but is a {type(value).__name__}."
        )
    for part in (*value.keys(), *value.values()):
        if not isinstance(part, (str, int)) or len(str(part)) > MAX_NAME_LENGTH:
            raise ValueError(
                f"`{parameter}` must hold names of at most {MAX_NAME_LENGTH} characters and whole numbers, but holds "
                f"a {type(part).__name__}."
            )
    return value


def _index(parameter: str, value: Any) -> int:
    """A label's index; JSON turns keys into strings."""
    try:
        return int(value)
    except ValueError:
        raise ValueError(f"`{parameter}` must number the labels from 0, but holds {value!r} as a number.") from None
