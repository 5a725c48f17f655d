"""Everything that a set of changed images of one direction is measured by: counterfactuals and controls alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ..image_processor import normalize
from ..models.oracle_classifier import OracleClassifier
from .classification import nan_to_none
from .counterfactual_summary import summarize
from .counterfactuals import Counterfactuals
from .distributions import summarize_distributions
from .realism import DETECTOR, Realism
from .references import RealImages
from .truth import error_difference, summarize_truth
from .validity import Validity


WITH_VALIDITY = ("plain_gradient", "truth")  # beside the counterfactuals: it takes many evaluations


@dataclass
class DirectionMeasures:
    """The measures of one direction, with what they compare with.

    Args:
        counterfactuals: ours.
        validity: of the explained pipeline.
        oracle: an outside classifier, if there is one: its features are those of KID and FID.
        real: what edited images should look like; None if there are too few.
        truth: true counterfactuals, shape of the images, where they are known.
        ways: for each image the true ways to do the same, where there are several.
    """

    counterfactuals: Counterfactuals
    validity: Validity
    oracle: OracleClassifier | None = None
    real: RealImages | None = None
    truth: np.ndarray | None = None
    ways: Sequence[np.ndarray] | None = None
    _features: dict[str, np.ndarray] = field(default_factory=dict)
    _realism: Realism | None = None

    def __post_init__(self) -> None:
        if self.real is not None:
            self._realism = Realism(self.real.images, self.real.patient_ids)
        if self.oracle is not None:
            self._features["originals"] = self._features_of(self.counterfactuals.originals)
            if self.real is not None:
                self._features["real"] = self._features_of(self.real.images)

    def of_ours(self) -> dict[str, Any]:
        """All figures of the counterfactuals."""
        return self._measure("counterfactual", self.counterfactuals)

    def of_control(self, name: str, changed: Counterfactuals) -> dict[str, Any]:
        """All figures of a control, and `ours_minus_it`: differences on the same patients with their intervals."""
        results = self._measure(name, changed)
        ours = self.counterfactuals
        minus: dict[str, Any] = {}
        if self.truth is not None:
            minus |= error_difference(ours.images, changed.images, ours.originals, self.truth, ours.patients)
        if self._realism is not None:
            minus |= self._realism.difference("counterfactual", name)
        return results | ({"ours_minus_it": nan_to_none(minus)} if minus else {})

    def of_truth(self, changed: Counterfactuals) -> dict[str, Any]:
        """All figures of the true counterfactuals: the best that can be had."""
        return self._measure("truth", changed)

    def _measure(self, name: str, changed: Counterfactuals) -> dict[str, Any]:
        results = summarize(changed)
        originals = self.counterfactuals.originals
        if self.truth is not None:
            figures = summarize_truth(changed.images, originals, self.truth, changed.patients, self.ways)
            results["to_truth"] = nan_to_none(figures)
        realism: dict[str, Any] = {}
        is_compared_with_itself = name == "truth" and self.real is not None and self.real.images is changed.images
        if self._realism is not None and not is_compared_with_itself:
            realism = {"detector": DETECTOR, "compared_with": self.real.origin if self.real else ""}
            realism |= self._realism.summarize(name, changed.images, changed.patients)
        if self.oracle is not None and self.real is not None:
            features = self._features_of(changed.images)
            realism |= summarize_distributions(
                features, self._features["real"], self._features["originals"], self.oracle.network
            )
        if realism:
            results["realism"] = nan_to_none(realism)
        if name == "counterfactual" or name in WITH_VALIDITY:
            results["validity"] = nan_to_none(self.validity.summarize(changed))
        return results

    def _features_of(self, images: np.ndarray) -> np.ndarray:
        assert self.oracle is not None
        return self.oracle.features(normalize(torch.from_numpy(images).float())).numpy()
