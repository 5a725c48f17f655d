"""Fit a calibration to a checkpoint's probabilities on validation images, measure it, and store it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import logit

from ..atomic_files import read_json, write_json
from ..choices import CalibrationMethod
from ..models.label_calibration import check_label_calibration
from ..pipelines import MediffusionClassifyPipeline
from .bootstrap import patient_numbers
from .classification import nan_to_none
from .classification_study import predict_split
from .defaults import CLASSIFICATION_BATCH_SIZE
from .held_out import HeldOutSplit
from .probability_calibration import calibration_figures, cross_validated, curves_of, fit_calibration
from .provenance import describe_provenance


UNET_CONFIG = Path("unet") / "config.json"
_TINY = 1e-300  # keeps logits of probabilities finite


def study_calibration(
    pipeline_folder: str | Path,
    dataset_folder: str | Path,
    split: str = "validation",
    method: CalibrationMethod | None = None,
    batch_size: int = CLASSIFICATION_BATCH_SIZE,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> dict[str, Any]:
    """Fit and measure.

    Args:
        pipeline_folder: folder of a pipeline.
        dataset_folder: a prepared dataset.
        split: split to fit on; not the one that final figures come from.
        method: `"platt"` or `"temperature"`; by default the former for independent findings.
        batch_size: images per forward pass.
        device: where the model runs.
        dtype: precision of its weights.

    Returns:
        Ready for JSON: `label_calibration`, fitted on all images; `before` and `after`, figures and curves of every
        label, `after` by cross-validation over patients; `method`, numbers of images and patients, provenance.

    Raises:
        ValueError: if model and dataset do not fit, no image can be used, or the method does not fit the model.
    """
    pipeline = MediffusionClassifyPipeline.from_pretrained(pipeline_folder, dtype=dtype).to(device)
    held_out = HeldOutSplit(dataset_folder, split, pipeline.label_names)
    single_label = not held_out.info.is_multi_label
    method = method or ("temperature" if single_label else "platt")
    parts = list(predict_split(pipeline, held_out, batch_size))
    if not parts:
        raise ValueError(f"No image of `split` {split!r} can be used. {' '.join(held_out.notes())}")
    labels, probabilities = (np.concatenate([part[key] for part in parts]) for key in ("references", "predictions"))
    patient_ids = [patient for part in parts for patient in part["patient_ids"]]
    logits = np.log(probabilities.clip(_TINY)) if single_label else logit(probabilities.clip(_TINY, 1 - 1e-16))

    patients = patient_numbers(patient_ids)
    calibration = fit_calibration(labels, logits, method, single_label)
    after = cross_validated(labels, logits, patients, method, single_label)
    names = pipeline.label_names
    measured = {
        when: {
            "per_label": {name: calibration_figures(labels[:, k], scores[:, k]) for k, name in enumerate(names)},
            "curves": curves_of(labels, scores, names),
        }
        for when, scores in (("before", probabilities), ("after", after))
    }
    return nan_to_none(
        {
            "provenance": describe_provenance(pipeline_folder, held_out.info, split),
            "method": method,
            "label_calibration": calibration,
            "num_images": len(labels),
            "num_patients": len(set(patient_ids)),
            **measured,
            "notes": held_out.notes(),
        }
    )


def write_label_calibration(pipeline_folder: str | Path, calibration: dict[str, list[float]] | None) -> None:
    """Store a calibration in the checkpoint's config, where the classify pipeline finds it when it is asked to.

    Args:
        pipeline_folder: a pipeline folder; only `unet/config.json` changes, aside and renamed.
        calibration: `slope` and `intercept`, one per label; None removes it.

    Raises:
        ValueError: for one that does not fit the model.
    """
    path = Path(pipeline_folder) / UNET_CONFIG
    config = read_json(path)
    check_label_calibration(calibration, config["num_labels"], config["problem_type"])
    write_json(path, {**config, "label_calibration": calibration})
