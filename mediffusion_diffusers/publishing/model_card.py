"""The model card of a run, from its real configuration and metrics: what was not measured is called that."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from diffusers import DiffusionPipeline
from huggingface_hub import ModelCard, ModelCardData

from ..atomic_files import write_text
from ..data.schema import DatasetInfo
from ..data.splits import LabelledSplit
from ..evaluation.provenance import training_record
from ..item_boundary import reason
from ..metrics_log import read_metrics
from ..models.config_rules import read_config
from ..notices import CARD_NOTICE
from ..privacy import is_local_path
from .defaults_section import defaults_context
from .evaluations import Evaluation, kept_evaluations
from .markdown import one_line, render_markdown
from .results_section import eval_results, results_context


CARD_FILE = "README.md"
TAGS = ["mediffusion", "medical", "diffusion", "semi-supervised", "explainability", "counterfactual"]
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
    evaluations: Sequence[Evaluation] = (),
) -> ModelCard:
    """Render the card of a trained pipeline; `card.save(folder / "README.md")` puts it where the Hub looks.

    Local paths, tokens and the arguments that concern the machine stay out of the card. Names, licences and notes are
    shown as they are: none of them can add a heading, a link or code to the card.

    Args:
        pipeline: any of the Mediffusion pipelines, as it is saved.
        dataset_info: what it was trained on.
        training_config: content of `training_config.json`: `arguments`, `versions`, and facts about the run.
        metrics: records of `metrics.jsonl`; of `kind` `"validation"`, the last one counts.
        labelled_split: the images whose labels were used; `None` means all of them.
        repo_id: `"organisation/name"` on the Hub, or `None` for a card that speaks of a folder.
        dataset_id: repository of the prepared dataset on the Hub, if it is there.
        license: identifier of the weights' licence, as the Hub spells it; by default that of the training data where
            the Hub knows it, `"other"` where not.
        evaluations: what was measured of this checkpoint; see `record_results` for how it comes to be there.

    Returns:
        The card, whose metadata holds `model-index` entries for what was measured.

    Raises:
        ValueError: if a field that a card must state is empty, naming it.
    """
    arguments = dict(training_config.get("arguments") or {})
    _check_mandatory(dataset_info, arguments)
    validation = _last_validation(metrics)
    license = license or license_of(dataset_info.licence)
    model_name = one_line(repo_id.split("/")[-1] if repo_id else f"mediffusion-{dataset_info.name}")
    card_data = ModelCardData(
        license=license,
        library_name="diffusers",
        pipeline_tag="image-classification",
        tags=TAGS,
        datasets=[dataset_id] if dataset_id else None,
        model_name=model_name,
        eval_results=eval_results(validation, evaluations, dataset_info.name, dataset_id) or None,
    )
    unet_config, vae_config = pipeline.unet.config, pipeline.vae.config
    height, width = pipeline.image_size
    num_unet_parameters = _num_parameters(pipeline.unet)
    body = render_markdown(
        "model_card.md",
        title=model_name,
        notice=CARD_NOTICE,
        image_kind=f"{dataset_info.name} images ({'grey' if vae_config.in_channels == 1 else 'RGB'})",
        problem_type=unet_config.problem_type.replace("_", " "),
        label_names=dataset_info.label_names,
        image_size=f"{height} x {width}",
        num_parameters=num_unet_parameters + _num_parameters(pipeline.vae),
        num_unet_parameters=num_unet_parameters,
        license=license,
        location=repo_id or "path/to/this/folder",
        dataset=dataset_info,
        dataset_id=dataset_id,
        splits=list(_split_rows(dataset_info)),
        split=labelled_split,
        num_labelled_images=training_config.get("num_labelled_images"),
        training_facts=list(_training_facts(training_config, arguments, metrics)),
        arguments=[(name, listed(value)) for name, value in public_arguments(arguments)],
        versions=training_config.get("versions") or {},
        **results_context(
            validation,
            evaluations,
            dataset_info.label_names,
            dataset_info.name,
            arguments.get("use_ema"),
            bool(unet_config.label_thresholds),
        ),
        **defaults_context(unet_config.guidance_defaults, vae_config.scaling_factor),
    )
    return ModelCard(f"---\n{card_data.to_yaml()}\n---\n\n{body}", ignore_metadata_errors=False)


def refresh_model_card(pipeline_folder: str | Path) -> bool:
    """Bring a card up to date with what lies beside it: results, `model-index`, the counterfactuals' defaults.

    The rest of the card stays as it is, whoever wrote it.

    Args:
        pipeline_folder: folder of a pipeline; only its `README.md` changes.

    Returns:
        Whether there was a card with a section to fill.

    Raises:
        ValueError: if its metadata or what lies beside it cannot be read.
    """
    folder = Path(pipeline_folder)
    path = folder / CARD_FILE
    if not path.is_file():
        return False
    card = _read_card(path)
    metadata = card.data
    assert isinstance(metadata, ModelCardData)
    unet = _read_config(folder / "unet", "id2label", (dict, type(None)))
    vae, config = _read_config(folder / "vae", "scaling_factor", (int, float)), training_record(folder)
    evaluations, validation = kept_evaluations(folder), _last_validation(read_metrics(folder / "metrics.jsonl"))
    formerly = next((one for one in metadata.eval_results or [] if one.dataset_split == "validation"), None)
    if not validation and formerly is not None:  # a card that left its run behind
        validation = {"macro_auroc": formerly.metric_value}
    data = (config.get("dataset") or {}).get("name") or getattr(formerly, "dataset_name", None)
    label_names = list((unet.get("id2label") or {}).values())
    uses_ema = (config.get("arguments") or {}).get("use_ema")
    sections = {
        "results.md": results_context(
            validation, evaluations, label_names, data, uses_ema, bool(unet.get("label_thresholds"))
        ),
        "counterfactual_defaults.md": defaults_context(unet.get("guidance_defaults"), vae["scaling_factor"]),
    }
    rendered = [render_markdown(template, **context) for template, context in sections.items()]
    if not any(_heading(section) in card.text for section in rendered):
        return False
    dataset_id = next(iter(metadata.get("datasets") or []), None)
    metadata.eval_results = eval_results(validation, evaluations, data, dataset_id) or None
    metadata.model_name = metadata.model_name or f"mediffusion-{data}"
    for section in rendered:
        card.text = _with_section(card.text, section)
    write_text(path, str(card))
    return True


def public_arguments(arguments: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The arguments that a stranger may read: set, about the training, and naming no place on this machine."""
    for name, value in sorted(arguments.items()):
        items = value if isinstance(value, (list, tuple)) else [value]
        if value is None or _PRIVATE_ARGUMENT.search(name) or any(map(is_local_path, items)):
            continue
        yield name, value


def listed(value: Any) -> str:
    """An argument's value as text."""
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def license_of(licence: str) -> str:
    """The Hub's identifier of a licence written for people, `"other"` if it is none that the Hub knows."""
    spelled = re.sub(r"[^a-z0-9.]+", "-", licence.lower())
    return next((known for known in _HUB_LICENSES if re.match(rf"{re.escape(known)}(-|$)", spelled)), "other")


def _with_section(text: str, section: str) -> str:
    """A card's text with one section, from its heading to the next of its level, in place of the former."""
    before, found, rest = text.partition(_heading(section))
    if not found:
        return text
    _, following, after = rest.partition("\n## ")
    return f"{before}\n{section.rstrip()}\n{following}{after}"


def _heading(section: str) -> str:
    """The line that begins a section, as it stands in a card."""
    line = section.partition("\n")[0]
    return f"\n{line}\n"


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


def _read_card(path: Path) -> ModelCard:
    try:
        return ModelCard(path.read_text(encoding="utf-8"), ignore_metadata_errors=False)
    except (ValueError, TypeError, yaml.YAMLError) as error:
        raise ValueError(f"The front matter of {path} cannot be read: {reason(error)}. Repair it.") from error


def _read_config(folder: Path, name: str, kind: type | tuple[type, ...]) -> dict[str, Any]:
    """A component's config, of which the card shows a field of some type."""
    path = folder / "config.json"
    config = read_config(path)
    if not isinstance(config.get(name), kind):
        raise ValueError(f"{path} is damaged: `{name}` is {config.get(name)!r:.100}. Restore it.")
    return config


def _last_validation(metrics: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    return next((record for record in reversed(metrics) if record.get("kind") == "validation"), {})


def _num_parameters(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _split_rows(info: DatasetInfo) -> Iterator[list[Any]]:
    """Split, images, patients, sex, age, view. The data contract keeps a patient's images in one split."""
    for split, num_rows in info.num_rows.items():
        known = info.demographics.get(split, {})
        age = known.get("age")
        quartiles = (
            age and f"median {age['median']:g} (quartiles {age['lower_quartile']:g} to {age['upper_quartile']:g})"
        )
        sex, view = (", ".join(f"{key} {n:,}" for key, n in known.get(name, {}).items()) for name in ("sex", "view"))
        patients = f"{known['patients']:,}" if "patients" in known else None
        yield [split, f"{num_rows:,}", patients, sex, quartiles, view]


def _training_facts(
    training_config: Mapping[str, Any], arguments: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[str, Any]]:
    """How long and on what the run trained, from what it wrote down."""
    seconds = sum(record.get("seconds") or 0.0 for record in metrics if record.get("kind") == "train")
    facts = [
        ("optimizer steps", max((record["step"] for record in metrics if "step" in record), default=None)),
        ("of them with the class loss", training_config.get("num_classification_steps")),
        ("training images (labelled or not)", training_config.get("num_train_images")),
        ("validation images", training_config.get("num_validation_images")),
        ("processes", training_config.get("num_processes")),
        ("seed", arguments.get("seed")),
        ("time in training steps", f"{seconds / 60:.1f} minutes" if seconds else None),
    ]
    yield from ((name, value) for name, value in facts if value is not None)
