"""The part of a model card that says what was measured, and what was not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from huggingface_hub import EvalResult

from ..notices import THRESHOLD_NOTICE
from ..reports.audit_tables import (
    PLACE_CAPTION,
    SUBGROUP_CAPTION,
    all_places_table,
    has_patient_groups,
    subgroup_table,
)
from ..reports.generation_tables import (
    generation_caption,
    generation_introduction,
    generation_label_table,
    generation_table,
    memorisation_caption,
    memorisation_table,
)
from ..reports.measure_tables import has_measures, measures_caption, measures_table, sanity_sentences
from ..reports.tables import (
    CALIBRATED_CAPTION,
    CLASSIFICATION_CAPTION,
    HEADINGS,
    OPERATING_CAPTION,
    Table,
    calibrated_table,
    calibration_table,
    classification_introduction,
    classification_table,
    operating_table,
    study_caption,
    study_introduction,
    study_label_caption,
    study_label_table,
    study_table,
)
from .evaluations import Evaluation


# In a card's provenance line; the rest stands in the JSON beside the model.
_PROVENANCE = ("checkpoint", "oracle", "labelled_split_hash", "seed", "weights", "version")


def results_context(
    validation: Mapping[str, Any],
    evaluations: Sequence[Evaluation],
    label_names: Sequence[str],
    training_data: str | None,
    uses_ema: bool | None,
    has_thresholds: bool,
) -> dict[str, Any]:
    """What `results.md` takes.

    Args:
        validation: the last validation record of `metrics.jsonl`, or what is known of it; empty if nothing is.
        evaluations: of this checkpoint.
        label_names: the model's labels.
        training_data: name of the dataset that it was trained on, if known.
        uses_ema: whether the saved weights are the moving average; `None` if nobody wrote it down.
        has_thresholds: whether the checkpoint holds thresholds for its labels.

    Raises:
        ValueError: for an evaluation that lacks figures.
    """
    weights = "the moving average of the weights, as saved here" if uses_ema else "the weights saved here"
    return {
        "weights": weights,
        "has_thresholds": has_thresholds,
        "threshold_notice": THRESHOLD_NOTICE,
        "validation": _validation_table(validation, label_names) if validation else None,
        "evaluations": [_shown(evaluation) for evaluation in evaluations],
        "not_measured": list(_not_measured(evaluations, training_data)),
    }


def eval_results(
    validation: Mapping[str, Any], evaluations: Sequence[Evaluation], data: str | None, dataset_id: str | None
) -> list[EvalResult]:
    """Entries of the card's `model-index`: macro AUROC of every classification.

    Args:
        validation: see `results_context`.
        evaluations: likewise.
        data: name of the dataset that the model was trained and validated on.
        dataset_id: its repository on the Hub, if it has one.
    """
    figures = [(data or "unknown", "validation", validation.get("macro_auroc"))] if validation else []
    for evaluation in evaluations:
        if evaluation.kind == "classification":
            provenance = evaluation.provenance
            figures.append((provenance["data"], provenance["split"], evaluation.results.get("macro_auroc")))
    return [
        EvalResult(
            task_type="image-classification",
            dataset_type=dataset_id if dataset_id and name == data else name,
            dataset_name=name,
            dataset_split=split,
            metric_type="roc_auc",
            metric_name="macro AUROC",
            metric_value=round(value, 4),
        )
        for name, split, value in figures
        if value is not None
    ]


def _validation_table(record: Mapping[str, Any], label_names: Sequence[str]) -> Table:
    """AUROC while training; labels without positives or without negatives have none."""
    rows = [["images", record["num_images"]]] if "num_images" in record else []
    rows.append(["macro AUROC", record.get("macro_auroc")])
    if "auroc" in record:
        rows += [[f"AUROC, {name}", record["auroc"].get(name)] for name in label_names]
    return ["measure", "value"], [[name, "not measured" if value is None else value] for name, value in rows]


def _shown(evaluation: Evaluation) -> dict[str, Any]:
    """An evaluation as `results.md` shows it."""
    results, provenance = evaluation.results, evaluation.provenance
    try:
        if evaluation.kind == "classification":
            title = "Classification"
            parts = [
                {
                    "heading": "",
                    "introduction": classification_introduction(results),
                    "tables": _classification_tables(results),
                }
            ]
        elif evaluation.kind == "calibration":
            title = "Choice of the counterfactuals' defaults"
            rule = f"Chosen: {results['rule']}."
            parts = [{"heading": "", "introduction": rule, "tables": [(calibration_table(results), "")]}]
        elif evaluation.kind == "generation":
            title = "Generated images"
            parts = [_shown_generation(results)]
        elif evaluation.kind == "audit":
            title = "Audit"
            tables = [(subgroup_table(results), SUBGROUP_CAPTION), (all_places_table(results), PLACE_CAPTION)]
            parts = [{"heading": "", "introduction": "Whom the model serves, and what it goes by.", "tables": tables}]
        else:
            title = "Counterfactuals"
            parts = [_shown_direction(name, results[name]) for name in HEADINGS if name in results]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"`evaluation/{evaluation.file_name}` lacks figures ({error!r}). Evaluate again with this version."
        ) from error
    settings = provenance.get("settings")
    known = [(name.replace("_", " "), provenance[name]) for name in _PROVENANCE if provenance.get(name) is not None]
    if isinstance(settings, Mapping):
        known.append(("settings", "; ".join(f"{name}: {value}" for name, value in settings.items())))
    return {
        "title": f"{title}: {provenance['data']}, split {provenance['split']}",
        "parts": parts,
        "notes": results.get("notes") or [],
        "provenance": known,
    }


def _classification_tables(results: Mapping[str, Any]) -> list[tuple[Table, str]]:
    tables = [(classification_table(results), CLASSIFICATION_CAPTION)]
    if all("thresholds" in label for label in results["per_label"].values()):
        tables.append((operating_table(results), OPERATING_CAPTION))
    if "calibrated" in results:
        tables.append((calibrated_table(results), CALIBRATED_CAPTION))
    return tables


def _shown_direction(direction: str, part: Mapping[str, Any]) -> dict[str, Any]:
    tables = [(study_table(part), study_caption(part))]
    if has_measures(part):
        caption = f"{measures_caption(part)} {sanity_sentences(part)}".rstrip()
        tables.append((measures_table(part), caption))
    return {
        "heading": HEADINGS[direction],
        "introduction": study_introduction(direction, part),
        "tables": [*tables, (study_label_table(part), study_label_caption(part))],
    }


def _shown_generation(results: Mapping[str, Any]) -> dict[str, Any]:
    tables = [
        (generation_table(results), generation_caption(results)),
        (generation_label_table(results), ""),
    ]
    if results["memorisation"] is not None:
        tables.append((memorisation_table(results), memorisation_caption(results)))
    return {"heading": "", "introduction": generation_introduction(results), "tables": tables}


def _not_measured(evaluations: Sequence[Evaluation], training_data: str | None) -> Iterator[str]:
    """What a reader might look for and not find."""
    held_out = [one for one in evaluations if one.provenance["split"] not in ("train", "validation")]
    directions = [
        one.results[name]
        for one in held_out
        if one.kind == "counterfactuals"
        for name in HEADINGS
        if name in one.results
    ]
    if not any(one.kind == "classification" for one in held_out):
        yield "classification of test images (AUROC with intervals, AUPRC, sensitivity, calibration)"
    if not any("oracle" in part for part in directions):
        yield "counterfactuals judged by an outside classifier (Diff, Other diff)"
    if not any("localisation" in part for part in directions):
        yield "localisation beside its nulls"
    if training_data is None or all(one.provenance["data"] == training_data for one in held_out):
        yield "external data set"
    generated = [one.results for one in held_out if one.kind == "generation"]
    if not generated:
        yield "generation (KID, FID beside the real-against-real floor)"
    if not any(one.get("memorisation") for one in generated):
        yield "memorisation of training images"
    if not any(has_patient_groups(one.results) for one in held_out if one.kind == "audit"):
        yield "subgroups (sex, age, view)"
