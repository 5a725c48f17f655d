"""Classifier guidance (paper Sec. 3.4, Eq. 2 and 7), as functions of tensors and models."""

from .attribution import attribute_change
from .external import ExternalClassifier
from .fading import fade
from .formulas import guide_model_output, predict_epsilon, predict_original_sample
from .freezing import hold_saved_tensors, sampling_mode
from .prediction import (
    GUIDANCE_MODES,
    OWN_GUIDANCE_MODES,
    GuidedPrediction,
    LatentClassifier,
    OwnGuidanceMode,
    gradient_at_size,
    gradient_of,
    hold_at,
    predict_guided,
)
from .scales import SCALE_NAMES, GuidanceScale, plain_scale, scale_for, scales_of_rows, values_of_scale
from .targets import GuidanceTarget, Labels, build_target, count_label_rows


__all__ = [
    "GUIDANCE_MODES",
    "OWN_GUIDANCE_MODES",
    "SCALE_NAMES",
    "ExternalClassifier",
    "GuidanceScale",
    "GuidanceTarget",
    "GuidedPrediction",
    "Labels",
    "LatentClassifier",
    "OwnGuidanceMode",
    "attribute_change",
    "build_target",
    "count_label_rows",
    "fade",
    "gradient_at_size",
    "gradient_of",
    "guide_model_output",
    "hold_at",
    "hold_saved_tensors",
    "plain_scale",
    "predict_epsilon",
    "predict_guided",
    "predict_original_sample",
    "sampling_mode",
    "scale_for",
    "scales_of_rows",
    "values_of_scale",
]
