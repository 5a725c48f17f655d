"""From what the counterfactual pipeline returns to explained images, the input of the pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from ...pipelines.outputs import Images, MediffusionCounterfactualPipelineOutput
from ...regions import region_to_pixels
from .explained_image import ExplainedImage, GuidanceSweep, ScoredImage


Boxes = Sequence[Mapping[str, float]]


def explain_output(
    output: MediffusionCounterfactualPipelineOutput,
    labels: str | Sequence[str],
    actions: str | Sequence[str],
    names: Sequence[str] | None = None,
    boxes: Sequence[Boxes] | None = None,
) -> list[ExplainedImage]:
    """Explained images from counterfactuals.

    An external classifier that guided is the model whose probabilities are shown. It did not judge the plain gradient
    and the noise, which are then left out.

    Args:
        output: of [`MediffusionCounterfactualPipeline`], with pictures of any type.
        labels: the target finding, one for all counterfactuals or one for each.
        actions: `"removed"` or `"added"`, likewise.
        names: what to call each image; printed, so they must not identify a person.
        boxes: `{"x", "y", "width", "height"}` of each image's finding, in relative units.

    Returns:
        One for each counterfactual.

    Raises:
        ValueError: for an unknown label, latents instead of pictures, or lists of another length.

    Example:
        >>> from mediffusion_diffusers.reports.pages.explanations import write_explanation_html
        >>> output = pipe(images, away="Mass")  # doctest: +SKIP
        >>> write_explanation_html(explain_output(output, "Mass", "removed"), "mass.html")  # doctest: +SKIP
    """
    num = len(output.images)
    each: dict[str, Sequence[Any]] = {
        "labels": [labels] * num if isinstance(labels, str) else labels,
        "actions": [actions] * num if isinstance(actions, str) else actions,
        "names": [""] * num if names is None else names,
        "boxes": [()] * num if boxes is None else boxes,
    }
    for argument, values in each.items():
        if len(values) != num:
            raise ValueError(f"`{argument}` must be as many as the counterfactuals, {num}, but got {len(values)}.")
    is_external = output.settings.get("guidance_mode") == "external"
    label_names = output.external_label_names if is_external else output.label_names
    assert label_names is not None
    unknown = sorted(set(each["labels"]) - set(label_names))
    if unknown:
        raise ValueError(f"`labels` must be among {', '.join(label_names)}, but got {', '.join(unknown)}.")
    columns = [label_names.index(label) for label in each["labels"]]
    kind = "external_probabilities" if is_external else "probabilities"
    scored: dict[str, list[Any]] = {
        "original": _score(output.originals, output[f"{kind}_before"], columns, output.image_size),
        "counterfactual": _score(output.images, output[f"{kind}_after"], columns, output.image_size),
        "null_edit": _score(output.null_images, output[f"{kind}_null"], columns, output.image_size),
    }
    for name in ("plain_gradient", "random_noise") if output.controls and not is_external else ():
        scored[name] = _score(output[f"{name}_images"], output[f"{name}_probabilities"], columns, output.image_size)
    regions = None if output.region is None else region_to_pixels(output.region, num, output.image_size)[:, 0]
    return [
        ExplainedImage(
            label=each["labels"][row],
            action=each["actions"][row],
            name=each["names"][row],
            boxes=each["boxes"][row],
            region=None if regions is None else regions[row],
            **{name: images[row] for name, images in scored.items()},
        )
        for row in range(num)
    ]


def explain_sweep(
    output: MediffusionCounterfactualPipelineOutput, label: str, action: str, name: str = "", boxes: Boxes = ()
) -> ExplainedImage:
    """One image at several guidance scales: explained at the largest, with the others as its sweep.

    Args:
        output: of [`MediffusionCounterfactualPipeline`] for one image and a list of scales.
        label: the target finding.
        action: `"removed"` or `"added"`.
        name: what to call the image.
        boxes: of the finding, in relative units.

    Raises:
        ValueError: if the output holds several images or a single scale; see also `explain_output`.
    """
    num = len(output.images)
    explained = explain_output(output, label, action, [name] * num, [boxes] * num)
    if any(not np.array_equal(one.original.image, explained[0].original.image) for one in explained):
        raise ValueError("`output` must hold one image at several guidance scales, but its originals differ.")
    scales = np.asarray(output.guidance_scales, dtype=np.float64)
    order = np.argsort(scales, kind="stable")
    sweep = GuidanceSweep(scales[order].tolist(), [explained[row].counterfactual for row in order])
    return replace(explained[order[-1]], sweep=sweep)


def _score(images: Images, scores: Any, columns: Sequence[int], image_size: tuple[int, int]) -> list[ScoredImage]:
    """Pictures of any output type with the probability of their target."""
    pictures = [_channels_first(image) for image in images]
    if pictures[0].shape[-2:] != tuple(image_size):
        raise ValueError(
            f"`output` must hold pictures of {tuple(image_size)} pixels, but got {pictures[0].shape[-2:]}. Ask the "
            "pipeline for an `output_type` other than 'latent'."
        )
    return [
        ScoredImage(picture, float(scores[row][column]))
        for row, (picture, column) in enumerate(zip(pictures, columns, strict=True))
    ]


def _channels_first(image: Image.Image | np.ndarray | torch.Tensor) -> np.ndarray:
    """A picture as `(channels, height, width)` in [0, 1], or `(height, width)` if it is a grey PIL image."""
    if isinstance(image, torch.Tensor):
        return image.float().cpu().numpy()
    array = np.asarray(image) / 255 if isinstance(image, Image.Image) else image
    return array.transpose(2, 0, 1) if array.ndim == 3 else array
