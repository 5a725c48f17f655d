"""Label names, problem type and thresholds in a model's config, as in transformers."""

from __future__ import annotations

from typing import Any


PROBLEM_TYPES = ("multi_label_classification", "single_label_classification")


def resolve_label_config(
    num_labels: int,
    problem_type: str,
    id2label: dict[int, str] | None,
    label2id: dict[str, int] | None,
    label_thresholds: list[float] | None,
) -> dict[str, Any]:
    """Check the label settings against each other and fill in what was left out.

    Returns:
        `num_labels`, `id2label` with integer keys in order, `label2id`.

    Raises:
        ValueError: for settings that contradict each other.
    """
    if problem_type not in PROBLEM_TYPES:
        raise ValueError(f"`problem_type` must be one of {PROBLEM_TYPES}, but got {problem_type!r}.")
    if id2label is None and label2id is not None:
        id2label = {index: name for name, index in label2id.items()}
    if id2label is not None:
        id2label = {int(index): str(name) for index, name in id2label.items()}
        num_labels = len(id2label)
        if sorted(id2label) != list(range(num_labels)) or len(set(id2label.values())) != num_labels:
            raise ValueError(
                f"`id2label` must name every index from 0 to {num_labels - 1} once, with distinct names, but got "
                f"{id2label}."
            )
    least = 2 if problem_type == "single_label_classification" else 1
    if num_labels < least:
        raise ValueError(f"`num_labels` must be at least {least} for {problem_type!r}, but got {num_labels}.")
    id2label = {index: id2label[index] if id2label else f"LABEL_{index}" for index in range(num_labels)}
    names = {name: index for index, name in id2label.items()}
    if label2id is not None and {str(name): int(index) for name, index in label2id.items()} != names:
        raise ValueError(f"`label2id` must be the inverse of `id2label`, but got {label2id} for {id2label}.")
    if label_thresholds is not None and (
        len(label_thresholds) != num_labels or not all(0 < threshold < 1 for threshold in label_thresholds)
    ):
        raise ValueError(
            f"`label_thresholds` must hold {num_labels} numbers in (0, 1), one per label, but got {label_thresholds}."
        )
    return {"num_labels": num_labels, "id2label": id2label, "label2id": names}
