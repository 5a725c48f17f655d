"""The end of a run: the weights that were validated, as a pipeline folder with a card, on disk and on the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...metrics_log import read_metrics
from ...models import JointUNet2DModel
from ...privacy import without_tokens
from ..classification import label_thresholds
from ..data.training_data import TrainingData
from ..run.output import METRICS_FILE, new_model
from ..run.run import TrainingRun
from .components import sampling_scheduler
from .validation import ValidationResult


def save_joint_pipeline(
    run: TrainingRun,
    unet: JointUNet2DModel,
    vae: Any,
    noise_scheduler: Any,
    data: TrainingData,
    validation: ValidationResult | None,
) -> None:
    """Save a `MediffusionCounterfactualPipeline` with its card into the run's folder, and publish it if asked.

    Args:
        run: the training run.
        unet: the model with the weights to save, in evaluation mode.
        vae: the autoencoder.
        noise_scheduler: the noise schedule of training.
        data: what it was trained on.
        validation: the last validation; multi-label models get their thresholds from it.
    """
    from ...publishing.model_card import refresh_model_card
    from ...publishing.options import PublishOptions
    from ...publishing.upload import publish_pipeline_folder

    hub = run.hub
    with new_model(run.output_dir) as aside:
        write_joint_pipeline(run, unet, vae, noise_scheduler, data, validation, aside)
    try:
        refresh_model_card(run.output_dir)  # a run resumed after its end keeps what was measured of the same weights
    except ValueError as error:
        run.say(f"The model card does not show the results in {run.output_dir}: {error}")
    run.say(f"Saved the pipeline in {run.output_dir}.")
    if not hub.push_to_hub:
        return
    if run.uploads is not None:
        run.uploads.wait()
    token = hub.hub_token
    try:
        published = publish_pipeline_folder(run.output_dir, hub.repo_id, PublishOptions(hub.hub_private_repo), token)
    except Exception as error:  # the Hub's client raises many kinds
        raise OSError(
            f"The pipeline is saved in {run.output_dir}, but was not published: {without_tokens(str(error), token)} "
            "To publish it, start the same command again with `--resume_from_checkpoint latest`."
        ) from None
    run.say(f"Published it: {published.url}")


def write_joint_pipeline(
    run: TrainingRun,
    unet: JointUNet2DModel,
    vae: Any,
    noise_scheduler: Any,
    data: TrainingData,
    validation: ValidationResult | None,
    folder: Path,
) -> None:
    """Write a `MediffusionCounterfactualPipeline` with its card into a folder; see `save_joint_pipeline`."""
    from ...evaluation.provenance import training_record
    from ...pipelines import MediffusionCounterfactualPipeline
    from ...publishing.model_card import render_model_card

    if validation is not None and data.info.is_multi_label:
        unet.register_to_config(label_thresholds=label_thresholds(validation.labels, validation.probabilities))
    scheduler = sampling_scheduler(noise_scheduler, vae)
    pipeline = MediffusionCounterfactualPipeline(vae=vae, unet=unet, scheduler=scheduler)
    pipeline.save_pretrained(folder)
    try:
        card = render_model_card(
            pipeline,
            data.info,
            training_record(run.output_dir),
            read_metrics(run.output_dir / METRICS_FILE),
            labelled_split=data.split,
            repo_id=run.hub.hub_model_id,
            dataset_id=run.config.data.dataset_name,
        )
        card.save(folder / "README.md")
    except ValueError as error:
        run.say(f"No model card was written: {error}")
