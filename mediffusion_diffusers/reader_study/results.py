"""What a reader study found: grades by method and direction, paired tests, and agreement between readers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np

from .agreement import krippendorff_alpha
from .answers import Answer
from .pairs import DIRECTIONS


_MEANING = {"remove": "lower is better: less of the finding is left", "add": "higher is better: more of it appeared"}


def study_results(answers: Sequence[Answer]) -> dict[str, Any]:
    """Figures of a study, as plain types for JSON.

    Args:
        answers: of all readers.

    Returns:
        `num_readers`, `num_answers`, `alpha` (of all items), `methods`, `seconds` (median), and for each direction
        `meaning`, `num_cases`, `alpha`, `grades` (by method: counts of the grades, mean, quartiles) and `tests`, one
        for each pair of methods.
    """
    methods = sorted({answer.method for answer in answers})
    results: dict[str, Any] = {
        "num_readers": len({answer.reader for answer in answers}),
        "num_answers": len(answers),
        "methods": methods,
        "median_seconds": float(np.median([answer.seconds for answer in answers])),
        "alpha": reader_agreement(answers),
    }
    for direction in DIRECTIONS:
        part = [answer for answer in answers if answer.direction == direction]
        if part:
            results[direction] = {
                "meaning": _MEANING[direction],
                "num_cases": len({(answer.case, answer.label) for answer in part}),
                "alpha": reader_agreement(part),
                "grades": {method: _grades([one for one in part if one.method == method]) for method in methods},
                "tests": paired_tests(part, methods),
            }
    return results


def reader_agreement(answers: Sequence[Answer]) -> float:
    """Krippendorff's alpha of the readers over the items."""
    readers = {reader: row for row, reader in enumerate(sorted({answer.reader for answer in answers}))}
    items = {item: column for column, item in enumerate(sorted({answer.item for answer in answers}))}
    grades = np.full((len(readers), len(items)), np.nan)
    for answer in answers:
        grades[readers[answer.reader], items[answer.item]] = answer.grade
    return krippendorff_alpha(grades)


def paired_tests(answers: Sequence[Answer], methods: Sequence[str]) -> list[dict[str, Any]]:
    """Wilcoxon's signed-rank test for each pair of methods, over cases.

    Grades of several readers for one case are not independent: what is tested is, for each case, the mean over the
    readers who graded both methods of the difference of their grades.

    Args:
        answers: of one direction.
        methods: to compare.

    Returns:
        For each pair `first`, `second`, `num_cases`, `mean_difference` (first minus second), `p_value` (two-sided,
        NaN for no case) and `p_value_holm`, corrected for the number of pairs (Holm 1979).
    """
    grades = {
        method: {(one.reader, one.case, one.label): one.grade for one in answers if one.method == method}
        for method in methods
    }
    tests: list[dict[str, Any]] = []
    for first, second in combinations(methods, 2):
        by_case: dict[tuple[str, str], list[int]] = {}
        for reader, case, label in sorted(grades[first].keys() & grades[second].keys()):
            difference = grades[first][reader, case, label] - grades[second][reader, case, label]
            by_case.setdefault((case, label), []).append(difference)
        differences = [float(np.mean(of_case)) for of_case in by_case.values()]
        tests.append(
            {
                "first": first,
                "second": second,
                "num_cases": len(differences),
                "mean_difference": float(np.mean(differences)) if differences else float("nan"),
                "p_value": _wilcoxon(differences),
            }
        )
    for test, corrected in zip(tests, holm([test["p_value"] for test in tests]), strict=True):
        test["p_value_holm"] = corrected
    return tests


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: each p-value times the number of hypotheses that are left, never descending.

    NaN stays NaN and counts for none.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    known = [place for place in np.argsort(p_values).tolist() if not np.isnan(p_values[place])]
    corrected = [float("nan")] * len(p_values)
    largest = 0.0
    for rank, place in enumerate(known):
        largest = max(largest, min(1.0, p_values[place] * (len(known) - rank)))
        corrected[place] = largest
    return corrected


def _wilcoxon(differences: Sequence[float]) -> float:
    """Two-sided p-value; ties and zeros as Pratt (1959) does: the zeros take part in the ranking."""
    if not differences:
        return float("nan")
    if not np.any(differences):
        return 1.0
    from scipy.stats import wilcoxon

    return float(wilcoxon(differences, zero_method="pratt").pvalue)


def _grades(answers: Sequence[Answer]) -> dict[str, Any]:
    grades = np.array([answer.grade for answer in answers], dtype=np.float64)
    if not len(grades):
        return {"num_answers": 0, "mean": None, "quartiles": None, "counts": {}}
    return {
        "num_answers": len(grades),
        "mean": float(grades.mean()),
        "quartiles": [float(value) for value in np.quantile(grades, [0.25, 0.5, 0.75])],
        "counts": {str(int(grade)): int((grades == grade).sum()) for grade in np.unique(grades)},
    }
