"""The model card of an autoencoder, from its run's configuration and metrics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from diffusers import AutoencoderKL
from huggingface_hub import ModelCard, ModelCardData

from ..data.schema import DatasetInfo
from ..notices import CARD_NOTICE
from .markdown import one_line, render_markdown
from .model_card import license_of, listed, public_arguments


def render_autoencoder_card(
    vae: AutoencoderKL,
    dataset_info: DatasetInfo,
    training_config: Mapping[str, Any],
    metrics: Sequence[Mapping[str, Any]],
    repo_id: str | None = None,
) -> ModelCard:
    """Render the card of a trained autoencoder.

    Args:
        vae: as it is saved.
        dataset_info: what it was trained on.
        training_config: content of `training_config.json`.
        metrics: records of `metrics.jsonl`.
        repo_id: `"organisation/name"` on the Hub, or `None` for a card that speaks of a folder.

    Returns:
        The card.

    Raises:
        ValueError: if the dataset does not say where it comes from and under which terms.
    """
    empty = [name for name in ("source", "licence", "attribution") if not getattr(dataset_info, name)]
    if empty:
        raise ValueError(
            f"A model card must state the data's {', '.join(empty)}, but dataset_info.json of {dataset_info.name!r} "
            "does not."
        )
    title = one_line(repo_id.split("/")[-1] if repo_id else f"{dataset_info.name}-autoencoder")
    card_data = ModelCardData(
        license=license_of(dataset_info.licence),
        library_name="diffusers",
        tags=["mediffusion", "medical", "autoencoder"],
    )
    body = render_markdown(
        "autoencoder_card.md",
        title=title,
        notice=CARD_NOTICE,
        kind="grey" if vae.config.in_channels == 1 else "colour",
        size=f"{vae.config.sample_size}x{vae.config.sample_size}",
        channels=vae.config.latent_channels,
        location=repo_id or "path/to/this/folder",
        scaling_factor=f"{vae.config.scaling_factor:.5f}",
        quality=list(_quality_rows(metrics)),
        dataset=dataset_info,
        arguments=[(name, listed(value)) for name, value in public_arguments(training_config.get("arguments") or {})],
    )
    return ModelCard(f"---\n{card_data.to_yaml()}\n---\n\n{body}", ignore_metadata_errors=False)


def quality_before_and_after(metrics: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """The last validation before the adversarial loss began, and the last one of all, by what a table calls them."""
    validations = [record for record in metrics if record.get("kind") == "validation"]
    chosen: dict[str, Mapping[str, Any]] = {}
    if validations and validations[-1].get("adversarial"):
        before = [record for record in validations if not record["adversarial"]]
        if before:
            chosen["before the adversarial loss"] = before[-1]
    if validations:
        chosen["saved"] = validations[-1]
    return chosen


def _quality_rows(metrics: Sequence[Mapping[str, Any]]) -> Iterator[list[str]]:
    """Which weights, L1, PSNR, SSIM."""
    measured = quality_before_and_after(metrics)
    for name, record in measured.items():
        figures = f"{record['l1']:.4f}", f"{record['psnr']:.2f}", f"{record['ssim']:.3f}"
        yield [f"{name}, step {record['step']:,}", *figures]
    if not measured:
        yield ["saved", *3 * ["not measured"]]
