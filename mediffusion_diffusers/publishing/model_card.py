"""The model card of a run, from its real configuration and metrics: what was not measured is called that."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..atomic_files import write_text
from ..data.schema import DatasetInfo
from ..data.splits import LabelledSplit
from ..notices import CARD_NOTICE
from ..privacy import is_local_path


TEMPLATE = Path(__file__).with_name("model_card_template.md")
TAGS = ["mediffusion", "medical", "diffusion", "semi-supervised", "explainability", "counterfactual"]
NOT_MEASURED = "not measured"
_DEFAULTS_HEADING = "\n## Defaults of the counterfactuals\n\n"
# Key of a record of metrics.jsonl (or None: no script measures it yet), and what the card calls it.
MEASURES = (
    ("num_images", "images"),
    ("macro_auroc", "macro AUROC"),
    (None, "95 % intervals (bootstrap over patients)"),
    (None, "AUPRC beside prevalence"),
    (None, "sensitivity at 90 % and 95 % specificity"),
    (None, "calibration (Brier score, slope, intercept)"),
    (None, "subgroups (sex, age, view)"),
    (None, "external data set"),
    (None, "counterfactuals judged by an outside classifier (Diff, Other diff)"),
    (None, "localisation beside its nulls"),
    (None, "generation (KID, FID beside the real-against-real floor)"),
    (None, "memorisation of training images"),
)
_HUB_LICENSES = ("apache-2.0", "cc-by-nc-sa-4.0", "cc-by-nc-4.0", "cc-by-sa-4.0", "cc-by-4.0", "cc0-1.0", "mit")
# Arguments about the machine and the account rather than the training.
_PRIVATE_ARGUMENT = re.compile(
    r"token|_dir$|_file$|^(push_to_hub|hub_.*|report_to|tracker_.*|resume_.*|overwrite_.*|dry_run)$"
)


def render_model_card(
    pipeline: DiffusionPipeline,
    dataset_info: DatasetInfo,
    training_config: Mapping[str, Any],
    metrics: Sequence[Mapping[str, Any]],
    labelled_split: LabelledSplit | None = None,
    repo_id: str | None = None,
    dataset_id: str | None = None,
    license: str | None = None,
) -> ModelCard:
    """Render the card of a trained pipeline; `card.save(folder / "README.md")` puts it where the Hub looks.

    Local paths, tokens and the arguments that concern the machine stay out of the card.

    Args:
        pipeline: any of the Mediffusion pipelines, as it is saved.
        dataset_info: what it was trained on.
        training_config: content of `training_config.json`: `arguments`, `versions`, and facts about the run.
        metrics: records of `metrics.jsonl`; of each `kind`, `"validation"` and `"test"`, the last one counts.
        labelled_split: the images whose labels were used; `None` means all of them.
        repo_id: `"organisation/name"` on the Hub, or `None` for a card that speaks of a folder.
        dataset_id: repository of the prepared dataset on the Hub, if it is there.
        license: identifier of the weights' licence, as the Hub spells it; by default that of the training data where
            the Hub knows it, `"other"` where not.

    Returns:
        The card, whose metadata holds `model-index` entries for what was measured.

    Raises:
        ValueError: if a field that a card must state is empty, naming it.
    """
    arguments = dict(training_config.get("arguments") or {})
    _check_mandatory(dataset_info, arguments)
    results = {kind: _last_record(metrics, kind) for kind in ("validation", "test")}
    license = license or license_of(dataset_info.licence)
    model_name = repo_id.split("/")[-1] if repo_id else f"mediffusion-{dataset_info.name}"
    eval_results = [
        EvalResult(
            task_type="image-classification",
            dataset_type=dataset_id or dataset_info.name,
            dataset_name=dataset_info.name,
            dataset_split=kind,
            metric_type="roc_auc",
            metric_name="macro AUROC",
            metric_value=round(record["macro_auroc"], 4),
        )
        for kind, record in results.items()
        if record.get("macro_auroc") is not None
    ]
    card_data = ModelCardData(
        license=license,
        library_name="diffusers",
        pipeline_tag="image-classification",
        tags=TAGS,
        datasets=[dataset_id] if dataset_id else None,
        model_name=model_name,
        eval_results=eval_results or None,
    )
    unet_config, vae_config = pipeline.unet.config, pipeline.vae.config
    label_names = dataset_info.label_names
    height, width = pipeline.image_size
    num_unet_parameters = _num_parameters(pipeline.unet)
    return ModelCard.from_template(
        card_data,
        template_path=str(TEMPLATE),
        title=model_name,
        disclaimer=CARD_NOTICE,
        image_kind=f"{dataset_info.name} images ({'grey' if vae_config.in_channels == 1 else 'RGB'})",
        num_labels=len(label_names),
        problem_type=unet_config.problem_type.replace("_", " "),
        label_names=", ".join(label_names),
        image_size=f"{height} x {width}",
        num_parameters=f"{num_unet_parameters + _num_parameters(pipeline.vae):,}",
        num_unet_parameters=f"{num_unet_parameters:,}",
        license_text=f"`{license}`; the terms of the training data below hold as well",
        location=repo_id or "path/to/this/folder",
        example_label=label_names[0],
        dataset_name=dataset_info.name
        + (f" ([{dataset_id}](https://hf.co/datasets/{dataset_id}))" if dataset_id else ""),
        dataset_source=dataset_info.source,
        dataset_licence=dataset_info.licence,
        dataset_attribution=dataset_info.attribution,
        dataset_notes="\n".join(f"- {note}" for note in dataset_info.notes),
        demographics=_demographics(dataset_info),
        labelled_share=_labelled_share(labelled_split, training_config),
        training_summary=_training_summary(training_config, arguments, metrics),
        arguments="\n".join(f"| `{name}` | {_cell(value)} |" for name, value in public_arguments(arguments)),
        versions=", ".join(f"{name} {version}" for name, version in (training_config.get("versions") or {}).items()),
        results_summary=_results_summary(results, arguments, unet_config.label_thresholds),
        results="\n".join(_result_row(key, name, results) for key, name in MEASURES),
        auroc_per_label=_auroc_per_label(label_names, results),
        counterfactual_defaults=_counterfactual_defaults(unet_config.guidance_defaults, vae_config.scaling_factor),
    )


def refresh_counterfactual_defaults(pipeline_folder: str | Path) -> bool:
    """Bring a card's section about the counterfactuals' defaults up to date with the checkpoint's config.

    Args:
        pipeline_folder: folder of a pipeline; only its `README.md` changes.

    Returns:
        Whether there was such a card.
    """
    folder = Path(pipeline_folder)
    path = folder / "README.md"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    before, heading, rest = text.partition(_DEFAULTS_HEADING)
    if not heading:
        return False
    unet, vae = (json.loads((folder / name / "config.json").read_text(encoding="utf-8")) for name in ("unet", "vae"))
    section = _counterfactual_defaults(unet.get("guidance_defaults"), vae["scaling_factor"])
    following = rest.partition("\n## ")
    write_text(path, f"{before}{heading}{section}\n{following[1]}{following[2]}")
    return True


def public_arguments(arguments: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The arguments that a stranger may read: set, about the training, and naming no place on this machine."""
    for name, value in sorted(arguments.items()):
        if value is None or _PRIVATE_ARGUMENT.search(name) or is_local_path(value):
            continue
        yield name, value


def _check_mandatory(info: DatasetInfo, arguments: Mapping[str, Any]) -> None:
    fields = {
        "dataset_info.source": info.source,
        "dataset_info.licence": info.licence,
        "dataset_info.attribution": info.attribution,
        "dataset_info.num_rows": info.num_rows,
        "training_config['arguments']": arguments,
    }
    empty = [name for name, value in fields.items() if not value]
    if empty:
        raise ValueError(
            f"A model card must state {', '.join(f'`{name}`' for name in empty)}, but got nothing there. Fill in "
            "dataset_info.json of the prepared dataset and pass the run's training_config.json."
        )


def _last_record(metrics: Sequence[Mapping[str, Any]], kind: str) -> Mapping[str, Any]:
    return next((record for record in reversed(metrics) if record.get("kind") == kind), {})


def license_of(licence: str) -> str:
    """The Hub's identifier of a licence written for people, `"other"` if it is none that the Hub knows."""
    spelled = re.sub(r"[^a-z0-9.]+", "-", licence.lower())
    return next((known for known in _HUB_LICENSES if re.match(rf"{re.escape(known)}(-|$)", spelled)), "other")


def _num_parameters(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _cell(value: Any) -> str:
    """A value as the content of a table cell."""
    text = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")


def _demographics(info: DatasetInfo) -> str:
    """A table with one row per split. The data contract keeps a patient's images in one split."""
    rows = ["| split | images | patients | sex | age in years | view |", "|---|---|---|---|---|---|"]
    for split, num_rows in info.num_rows.items():
        known = info.demographics.get(split, {})
        age = known.get("age")
        quartiles = (
            age and f"median {age['median']:g} (quartiles {age['lower_quartile']:g} to {age['upper_quartile']:g})"
        )
        counts = [", ".join(f"{key} {n:,}" for key, n in known.get(name, {}).items()) for name in ("sex", "view")]
        patients = f"{known['patients']:,}" if "patients" in known else None
        cells = [split, f"{num_rows:,}", patients, counts[0], quartiles, counts[1]]
        rows.append("| " + " | ".join(_cell(cell or "not stated") for cell in cells) + " |")
    return "\n".join(rows)


def _labelled_share(split: LabelledSplit | None, training_config: Mapping[str, Any]) -> str:
    if split is None:
        count = training_config.get("num_labelled_images")
        return "Every training image with a known label was used with it" + (f": {count:,} images." if count else ".")
    positives = ", ".join(f"{name} {count:,}" for name, count in split.positives.items())
    return (
        f"{split.share:g} % drawn by {split.by} with seed {split.seed}: {split.num_images:,} images of "
        f"{split.num_patients:,} patients. All other training images were used without their labels.\n\n"
        f"- Positive images: {positives}\n- SHA-256 of the split: `{split.hash}`"
    )


def _training_summary(
    training_config: Mapping[str, Any], arguments: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]]
) -> str:
    """Sentences on how long and on what the run trained, from what it wrote down."""
    seconds = sum(record.get("seconds") or 0.0 for record in metrics if record.get("kind") == "train")
    steps = max((record["step"] for record in metrics if "step" in record), default=None)
    facts = [
        ("optimizer steps", steps),
        ("of them with the class loss", training_config.get("num_classification_steps")),
        ("training images (labelled or not)", training_config.get("num_train_images")),
        ("validation images", training_config.get("num_validation_images")),
        ("processes", training_config.get("num_processes")),
        ("seed", arguments.get("seed")),
        ("time in training steps", f"{seconds / 60:.1f} minutes" if seconds else None),
    ]
    known = [(name, value) for name, value in facts if value is not None]
    lines = [f"- {name}: {value:,}" if isinstance(value, int) else f"- {name}: {value}" for name, value in known]
    return "Joint training of denoising and classification (L = L_diff + w L_class).\n\n" + "\n".join(lines)


def _results_summary(
    results: Mapping[str, Mapping[str, Any]], arguments: Mapping[str, Any], thresholds: Sequence[float] | None
) -> str:
    if not any(results.values()):
        return "Nothing was measured."
    weights = (
        "the moving average of the weights, as saved here" if arguments.get("use_ema") else "the weights saved here"
    )
    sentence = f"Measured with {weights}; one run and one seed, so differences of a few points are noise."
    if thresholds:
        sentence += " The labels' thresholds were chosen on the validation images."
    return sentence


def _result_row(key: str | None, name: str, results: Mapping[str, Mapping[str, Any]]) -> str:
    values = [results[kind].get(key) if key else None for kind in ("validation", "test")]
    return f"| {name} | " + " | ".join(map(_number, values)) + " |"


def _number(value: float | None) -> str:
    if value is None:
        return NOT_MEASURED
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}"


def _auroc_per_label(label_names: Sequence[str], results: Mapping[str, Mapping[str, Any]]) -> str:
    """A table of the labels' AUROC; labels without positives or without negatives have none."""
    per_label = {kind: record["auroc"] for kind, record in results.items() if record.get("auroc")}
    if not per_label:
        return ""
    rows = [f"| AUROC | {' | '.join(per_label)} |", "|---|" + "---|" * len(per_label)]
    for name in label_names:
        values = [_number(auroc.get(name)) for auroc in per_label.values()]
        rows.append(f"| {_cell(name)} | {' | '.join(values)} |")
    return "\n".join(rows)


def _counterfactual_defaults(guidance_defaults: Mapping[str, Any] | None, scaling_factor: float) -> str:
    latent = f"the autoencoder's `scaling_factor` {scaling_factor:.5g}"
    if not guidance_defaults:
        return (
            "None were calibrated for this checkpoint: the pipeline falls back to its own, which may be too weak or "
            f"too strong. A strength and a scale hold for one checkpoint and its latents ({latent}) only."
        )
    settings = "\n".join(f"- `{name}`: {value}" for name, value in sorted(guidance_defaults.items()))
    return (
        f"{settings}\n\nThese belong together with this checkpoint and {latent}; strengths and scales of other "
        "checkpoints, and the paper's, do not transfer."
    )
