"""Whether edited images can be told from real ones: a detector trained for just that, by cross-validation.

An edit that leaves traces (a burnt hole, blur, adversarial grain) is found by a classifier that sees edited and real
images of other patients, as a classifier two-sample test finds any difference of two distributions (Lopez-Paz and
Oquab, 2017). AUROC 0.5: cannot be told; 1: every edit shows.

The detector sees what is left of an image without its anatomy, residuals of small linear filters, as the detectors of
hidden messages and forgeries do (Fridrich and Kodovsky, "Rich models for steganalysis", 2012), and is linear: with the
hundred images of a study a larger network learns the images by heart.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from .bootstrap import bootstrap, patient_numbers
from .classification import auroc


DETECTOR = (
    "logistic regression on statistics of filter residuals (first and second differences, high-pass, and its local "
    "energy) and of the spectrum; five folds of patients"
)
NUM_FOLDS = 5
MIN_PATIENTS = 10  # two per fold
# First and second differences along both axes, and the Laplacian.
_FILTERS = torch.tensor(
    [
        [[0, 0, 0], [0, -1, 1], [0, 0, 0]],
        [[0, 0, 0], [0, -1, 0], [0, 1, 0]],
        [[0, 0, 0], [1, -2, 1], [0, 0, 0]],
        [[0, 1, 0], [0, -2, 0], [0, 1, 0]],
        [[-1, 2, -1], [2, -4, 2], [-1, 2, -1]],
    ],
    dtype=torch.float64,
)[:, None]
_NUM_BANDS = 8  # of spatial frequency
_FLOOR = 1e-6
_REGULARISATION = 0.3  # inverse strength C of the penalty, on standardised features; the verdicts hardly depend on it


def residual_features(images: np.ndarray) -> np.ndarray:
    """Statistics of each image that anatomy hardly moves and an edit does.

    Args:
        images: shape `(num, channels, height, width)` in [0, 1]; rounded to 8 bits first, as a picture is stored, so
            that no edit is found by its fractions.

    Returns:
        Shape `(num, num_features)`.
    """
    grey = torch.from_numpy(np.asarray(images)).double().clamp(0, 1).mul(255).round().div(255).mean(1, keepdim=True)
    high = grey - F.avg_pool2d(grey, 3, stride=1, padding=1, count_include_pad=False)
    residuals = torch.cat([F.conv2d(grey, _FILTERS), high[..., 1:-1, 1:-1]], dim=1)
    size = residuals.abs().flatten(2)
    energy = size.square().mean(2)
    ends = torch.quantile(size, torch.tensor([0.5, 0.9, 0.99], dtype=size.dtype), dim=2)
    kurtosis = size.pow(4).mean(2) / energy.square().clamp_min(_FLOOR**2)
    local = (F.avg_pool2d(high.square(), 5, stride=2) + _FLOOR).log().flatten(1)
    places = torch.quantile(local, torch.tensor([0.02, 0.25, 0.5, 0.75, 0.98], dtype=local.dtype), dim=1).T
    shares = torch.stack([(grey <= 0).double().flatten(1).mean(1), (grey >= 1).double().flatten(1).mean(1)], dim=1)
    columns = [
        (energy + _FLOOR).log(),
        *(ends + _FLOOR).log(),
        kurtosis.log1p(),
        size.amax(2),
        places,
        local.std(1, keepdim=True),
        shares,
        _spectrum(grey[:, 0]),
    ]
    return torch.cat(columns, dim=1).numpy()


def _spectrum(grey: torch.Tensor) -> torch.Tensor:
    """Log energy in rings of spatial frequency, shape `(num, _NUM_BANDS)`."""
    height, width = grey.shape[-2:]
    energy = torch.fft.fft2(grey).abs().square() / (height * width) ** 2
    radius = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.fftfreq(width)[None])
    band = (radius / 0.5 * _NUM_BANDS).long().clamp_max(_NUM_BANDS - 1)
    return torch.stack([(energy[:, band == one].sum(1) + _FLOOR**2).log() for one in range(_NUM_BANDS)], dim=1)


class Realism:
    """A detector of edits, trained anew for every set of edited images.

    The scores of each image come from the detector that has not seen its patient. They are pooled over folds, so that
    AUROC may fall a little below 0.5 where nothing can be told.

    Args:
        real: real images, shape `(num, channels, height, width)` in [0, 1].
        patient_ids: patient of each, compared with those of the edited images.
    """

    def __init__(self, real: np.ndarray, patient_ids: Sequence[Hashable]):
        self.real, self.patients = residual_features(real), [str(patient) for patient in patient_ids]
        self.scores: dict[str, np.ndarray] = {}

    def summarize(self, name: str, edited: np.ndarray, patient_ids: Sequence[Hashable]) -> dict[str, Any]:
        """AUROC of the detector, with its interval over patients.

        Args:
            name: of the edited images, for `difference`.
            edited: shape `(num, channels, height, width)` in [0, 1].
            patient_ids: patient of each.

        Returns:
            `detector_auroc`, 0.5 if nothing can be told and 1 if every edit shows, and `detector_auroc_interval_95`;
            NaN with fewer patients than `MIN_PATIENTS`.
        """
        self.edited_patients = [str(patient) for patient in patient_ids]
        self.scores[name] = self._detect(edited)
        return self._interval("detector_auroc", [name])

    def difference(self, name: str, other: str) -> dict[str, Any]:
        """AUROC of one set minus that of another of the same originals, both summarized before.

        Returns:
            `detector_auroc` and `detector_auroc_interval_95`, over patients drawn for both alike.
        """
        return self._interval("detector_auroc", [name, other])

    def _interval(self, key: str, names: Sequence[str]) -> dict[str, Any]:
        patients = [*self.edited_patients, *self.patients]
        is_edited = np.repeat([1.0, 0.0], [len(self.edited_patients), len(self.patients)])
        scores = [self.scores[name] for name in names]
        if any(np.isnan(one).any() for one in scores):
            return {key: float("nan"), f"{key}_interval_95": [float("nan")] * 2}

        def statistic(weights: np.ndarray) -> float:
            values = [auroc(is_edited, one, weights) for one in scores]
            return values[0] - values[1] if len(values) == 2 else values[0]

        interval = bootstrap(statistic, patients)
        return {key: interval.estimate, f"{key}_interval_95": [interval.low, interval.high]}

    def _detect(self, edited: np.ndarray) -> np.ndarray:
        """How edited each image looks, the edited first, then the real; NaN with too few patients."""
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import GroupKFold, cross_val_predict
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        features = np.concatenate([residual_features(edited), self.real])
        patients = patient_numbers([*self.edited_patients, *self.patients])
        if len(np.unique(patients)) < MIN_PATIENTS:
            return np.full(len(features), np.nan)
        is_edited = np.repeat([1, 0], [len(edited), len(self.real)])
        classifier = LogisticRegression(C=_REGULARISATION, class_weight="balanced", max_iter=1000)
        folds = GroupKFold(NUM_FOLDS, shuffle=True, random_state=0)
        detector = make_pipeline(StandardScaler(), classifier)
        arguments = {"groups": patients, "cv": folds, "method": "decision_function"}
        return cross_val_predict(detector, features, is_edited, **arguments)
