"""The same images explained by the joint model's own guidance and by an outside classifier's (App. H)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..pipelines import MediffusionCounterfactualPipeline, MediffusionCounterfactualPipelineOutput


def compare_guidance(
    pipe: MediffusionCounterfactualPipeline,
    image: Any,
    guidance_scales: Mapping[str, float],
    targets: Mapping[str, Any],
    classifier: Any = None,
    external_targets: Mapping[str, Any] | None = None,
    **arguments: Any,
) -> dict[str, MediffusionCounterfactualPipelineOutput]:
    """Explain with each guidance mode, with both classifiers' verdicts on every picture.

    Args:
        pipe: the pipeline.
        image: one image or a list.
        guidance_scales: scale by mode (`"zt"`, `"x0_detached"`, `"x0"`, `"external"`): scales do not transfer.
        targets: `towards` and `away` in the model's labels.
        classifier: the outside classifier.
        external_targets: `towards` and `away` in its labels, by default the same.
        arguments: of the pipeline's call, the same for all modes.

    Returns:
        One output by mode.

    Raises:
        ValueError: as the pipeline's call.

    Example:
        >>> outputs = compare_guidance(
        ...     pipe, image, {"zt": 30, "external": 200}, {"away": "Mass"}, resnet, {"away": "mass"}
        ... )  # doctest: +SKIP
    """
    outputs = {}
    for mode, scale in guidance_scales.items():
        wanted = targets if mode != "external" or external_targets is None else external_targets
        outputs[mode] = pipe(
            image, **wanted, guidance_mode=mode, guidance_scale=scale, classifier=classifier, **arguments
        )
    return outputs
