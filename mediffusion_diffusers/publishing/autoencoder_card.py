"""The model card of an autoencoder, from its run's configuration and metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from diffusers import AutoencoderKL
from huggingface_hub import ModelCard, ModelCardData

from ..data.schema import DatasetInfo
from ..notices import CARD_NOTICE
from .model_card import NOT_MEASURED, license_of, public_arguments


_TEXT = """---
{card_data}
---

# {title}

> **{disclaimer}**

An `AutoencoderKL` of [diffusers](https://github.com/huggingface/diffusers) for {kind} images of {size} pixels, trained
for the diffusion model of [Mediffusion](https://arxiv.org/abs/2411.09434) (App. C), which works on its latents of
{channels} channels.

```python
from diffusers import AutoencoderKL

vae = AutoencoderKL.from_pretrained("{location}")
```

`scaling_factor` ({scaling_factor:.5f}) is one over the standard deviation of the latents of training images. A joint
model, its strength and its guidance scale belong to this autoencoder and to no other.

## Reconstruction of the validation images

| weights | L1 (of 1) | PSNR in dB | SSIM |
|---|---|---|---|
{quality}

Means over images of the posterior's mode, with the averaged weights. They say nothing about small findings: look at
pictures before trusting them.

## Training data

- **Dataset**: {dataset}
- **Source**: {source}
- **Licence**: {licence}
- **Attribution**: {attribution}

An autoencoder may remember training images; how much was not measured.

## Arguments

| argument | value |
|---|---|
{arguments}
"""


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
    title = repo_id.split("/")[-1] if repo_id else f"{dataset_info.name}-autoencoder"
    card_data = ModelCardData(
        license=license_of(dataset_info.licence),
        library_name="diffusers",
        tags=["mediffusion", "medical", "autoencoder"],
    )
    arguments = public_arguments(training_config.get("arguments") or {})
    return ModelCard(
        _TEXT.format(
            card_data=card_data.to_yaml(),
            title=title,
            disclaimer=CARD_NOTICE,
            kind="grey" if vae.config.in_channels == 1 else "colour",
            size=f"{vae.config.sample_size}x{vae.config.sample_size}",
            channels=vae.config.latent_channels,
            location=repo_id or "path/to/this/folder",
            scaling_factor=vae.config.scaling_factor,
            quality="\n".join(_quality_rows(metrics)),
            dataset=dataset_info.name,
            source=dataset_info.source,
            licence=dataset_info.licence,
            attribution=dataset_info.attribution,
            arguments="\n".join(f"| `{name}` | {str(value).replace('|', '/')} |" for name, value in arguments),
        ),
        ignore_metadata_errors=False,
    )


def quality_before_and_after(metrics: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """The last validation before the adversarial loss began, and the last one of all, by what a table calls them."""
    validations = [record for record in metrics if record["kind"] == "validation"]
    chosen: dict[str, Mapping[str, Any]] = {}
    if validations and validations[-1].get("adversarial"):
        before = [record for record in validations if not record["adversarial"]]
        if before:
            chosen["before the adversarial loss"] = before[-1]
    if validations:
        chosen["saved"] = validations[-1]
    return chosen


def _quality_rows(metrics: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = [
        f"| {name}, step {record['step']:,} | {record['l1']:.4f} | {record['psnr']:.2f} | {record['ssim']:.3f} |"
        for name, record in quality_before_and_after(metrics).items()
    ]
    return rows or [f"| saved | {NOT_MEASURED} | {NOT_MEASURED} | {NOT_MEASURED} |"]
