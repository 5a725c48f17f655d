"""Counting a prepared dataset: images, patients and positives per class and split, and who the patients are."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .metadata import read_metadata
from .schema import SPLITS, DatasetInfo, label_matrix, load_info, load_prepared, parquet_files


@dataclass(frozen=True)
class SplitSummary:
    """Counts of one split.

    Args:
        images: rows.
        pictures: rows whose image is present.
        patients: different patients (or lesions).
        labelled: rows with at least one known label.
        no_finding: labelled rows without any finding; 0 for single-label datasets.
        positives: positive rows per class name.
    """

    images: int
    pictures: int
    patients: int
    labelled: int
    no_finding: int
    positives: dict[str, int]


def count_positives(labels: np.ndarray, label_names: Sequence[str]) -> dict[str, int]:
    """Positive rows per class of a `(num_rows, num_labels)` label matrix; unknown entries do not count."""
    return dict(zip(label_names, (labels == 1).sum(axis=0).tolist(), strict=True))


def no_finding_rows(labels: np.ndarray) -> np.ndarray:
    """Boolean `(num_rows,)`: every label is known and none is positive."""
    return (labels == 0).all(axis=1)


def summarize_prepared(folder: str | os.PathLike[str]) -> dict[str, SplitSummary]:
    """Count every split of a prepared dataset, without decoding an image."""
    import pyarrow.parquet as pq

    info = load_info(folder)
    target = "labels" if info.is_multi_label else "label"
    summaries = {}
    for split in SPLITS:
        files = parquet_files(folder, split)
        if not files:
            continue
        dataset = load_prepared(folder, split, columns=[target, "patient_id"])
        labels = label_matrix(dataset, info)
        # The paths stand for the pictures: a missing picture has neither path nor bytes.
        paths = [pq.ParquetFile(path).read(columns=["image.path"]).column("image") for path in files]
        missing = sum(column.combine_chunks().field("path").null_count for column in paths)
        summaries[split] = SplitSummary(
            images=len(dataset),
            pictures=len(dataset) - missing,
            patients=len(set(dataset["patient_id"][:])),
            labelled=int((~np.isnan(labels)).any(axis=1).sum()),
            no_finding=int(no_finding_rows(labels).sum()) if info.is_multi_label else 0,
            positives=count_positives(labels, info.label_names),
        )
    return summaries


def format_summary(info: DatasetInfo, summaries: Mapping[str, SplitSummary]) -> str:
    """A table with one column per split, for the console."""
    rows: list[list[Any]] = [[f"{info.name}, {info.problem_type}", *summaries]]
    for title in ("images", "pictures", "patients", "labelled"):
        rows.append([title, *(getattr(summary, title) for summary in summaries.values())])
    if info.is_multi_label:
        rows.append(["no finding", *(summary.no_finding for summary in summaries.values())])
    for name in info.label_names:
        rows.append([f"  {name}", *(summary.positives[name] for summary in summaries.values())])
    texts = [[cell if isinstance(cell, str) else f"{cell:,}" for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in texts) for column in range(len(texts[0]))]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in texts
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def demographics(metadata: Sequence[str], patient_ids: Sequence[str]) -> dict[str, Any]:
    """Age, sex and view of a split, as a model card has to state them.

    Args:
        metadata: the `metadata` column: JSON objects with `age` in years, `sex`, `view`, where known.
        patient_ids: the `patient_id` column.

    Returns:
        `images`, `patients`; counts of images by `sex` and `view`; `age` with the number known, mean, quartiles,
        smallest and largest, in years.
    """
    parsed = [read_metadata(text) for text in metadata]
    result: dict[str, Any] = {"images": len(parsed), "patients": len(set(patient_ids))}
    for key in ("sex", "view"):
        counts = Counter(str(row.get(key, "unknown")) for row in parsed)
        if set(counts) - {"unknown"}:
            result[key] = dict(sorted(counts.items()))
    ages = [row["age"] for row in parsed if isinstance(row.get("age"), (int, float))]
    if ages:
        lowest, lower, median, upper, highest = np.percentile(ages, [0, 25, 50, 75, 100]).tolist()
        result["age"] = {
            **{"known": len(ages), "mean": round(float(np.mean(ages)), 2), "min": lowest},
            **{"lower_quartile": lower, "median": median, "upper_quartile": upper, "max": highest},
        }
    return result
