"""How far readers agree, beyond chance."""

from __future__ import annotations

import numpy as np


def krippendorff_alpha(grades: np.ndarray) -> float:
    r"""Krippendorff's alpha for ordinal grades, with any number of readers and missing answers.

    alpha = 1 - D_observed / D_expected, with the ordinal difference
    delta(c, k)^2 = (n_c / 2 + n_{c+1} + ... + n_{k-1} + n_k / 2)^2.

    Args:
        grades: shape `(num_readers, num_items)`; NaN where a reader gave none.

    Returns:
        1 for full agreement, 0 for what chance gives, below 0 for less; NaN if fewer than two readers share an item,
        or all grades are the same.

    References:
        K. Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011).

    Example:
        >>> import numpy as np
        >>> krippendorff_alpha(np.array([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]]))
        1.0
    """
    grades = np.asarray(grades, dtype=np.float64)
    values = np.unique(grades[~np.isnan(grades)])
    # Coincidences o(c, k): pairs of grades of one item by different readers, each item weighted by 1 / (m_u - 1).
    coincidences = np.zeros((len(values), len(values)))
    for item in grades.T:
        of_item = (item[:, None] == values).sum(axis=0)
        num_readers = of_item.sum()
        if num_readers > 1:
            coincidences += (np.outer(of_item, of_item) - np.diag(of_item)) / (num_readers - 1)
    marginals = coincidences.sum(axis=1)
    total = marginals.sum()
    if total == 0 or (marginals > 0).sum() < 2:
        return float("nan")
    middle = np.cumsum(marginals) - marginals / 2
    differences = (middle[:, None] - middle[None]) ** 2
    observed = (coincidences * differences).sum() / total
    expected = (np.outer(marginals, marginals) * differences).sum() / (total * (total - 1))
    return float(1 - observed / expected)
