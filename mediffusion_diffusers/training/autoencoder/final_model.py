"""The end of an autoencoder's training: the weights that were validated, with a card, on disk and on the Hub."""

from __future__ import annotations

from diffusers import AutoencoderKL

from ...data.schema import DatasetInfo
from ...metrics_log import read_metrics
from ..run.output import METRICS_FILE, new_model
from ..run.run import TrainingRun


def save_autoencoder(run: TrainingRun, vae: AutoencoderKL, info: DatasetInfo) -> None:
    """Save the autoencoder with its card into the run's folder, say how good it is, and publish it if asked.

    Args:
        run: the training run.
        vae: the autoencoder with the weights and the `scaling_factor` to save, in evaluation mode.
        info: what it was trained on.
    """
    from ...evaluation.provenance import training_record
    from ...publishing.autoencoder_card import render_autoencoder_card
    from ...publishing.options import PublishOptions
    from ...publishing.upload import publish_autoencoder_folder

    hub = run.hub
    metrics = read_metrics(run.output_dir / METRICS_FILE)
    with new_model(run.output_dir) as aside:
        vae.save_pretrained(aside)
        try:
            config = training_record(run.output_dir)
            render_autoencoder_card(vae, info, config, metrics, hub.hub_model_id).save(aside / "README.md")
        except ValueError as error:
            run.say(f"No model card was written: {error}")
    std = 1 / vae.config.scaling_factor
    run.say(f"Saved the autoencoder in {run.output_dir} (standard deviation of the latents {std:.4f}).")
    if hub.push_to_hub:
        options = PublishOptions(hub.hub_private_repo)
        published = publish_autoencoder_folder(run.output_dir, hub.repo_id, options, hub.hub_token)
        run.say(f"Published it: {published.url}")
