"""What an evaluation script measured goes beside the model and into its card."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .evaluations import Evaluation, keep_evaluation
from .model_card import CARD_FILE, refresh_model_card


def record_results(pipeline_folder: str | Path, kind: str, results: Mapping[str, Any]) -> str:
    """Keep results in `evaluation/` beside the checkpoint that they were measured with, and fill its card with them.

    The results themselves are written after it, and hours of work must not end here: what cannot be recorded is told,
    not raised, whatever it is.

    Args:
        pipeline_folder: folder of the evaluated pipeline, or its repository on the Hub.
        kind: `"classification"`, `"calibration"`, `"counterfactuals"`, `"generation"` or `"audit"`.
        results: content of `classification.json`, `guidance_calibration.json`, `counterfactuals.json`,
            `generation.json` or `audit.json`.

    Returns:
        What was done, or why not, in a sentence for the user.
    """
    folder = Path(pipeline_folder)
    if not (folder / "model_index.json").is_file():
        return f"Not recorded in a model card: {str(pipeline_folder)!r} is no folder of a pipeline here."
    try:
        path = keep_evaluation(folder, Evaluation(kind, results))
        if refresh_model_card(folder):
            return f"Recorded beside the model, in {path} and {folder / CARD_FILE}."
    except (OSError, ValueError) as error:
        return f"Not recorded beside the model: {error}"
    except Exception as error:
        return f"Not recorded beside the model, by a fault of the software: {error!r}. Please report it."
    return f"Recorded beside the model, in {path}; it has no card of ours to fill."
