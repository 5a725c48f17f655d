"""Pairs made on the spot by a checkpoint: this project's edits, the paper's procedure, and two controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from ..pipelines import MediffusionCounterfactualPipeline
from .pairs import DIRECTIONS, Case, ImagePair, plain_picture


# App. F and H: random noise, guidance everywhere, strength .3 to remove and .2 to add. Its scales of 500 and 200
# belong to the paper's checkpoint: here the smallest that convinces this one is sought.
PAPER: dict[str, Any] = {
    "start": "noise",
    "guidance_mode": "x0",
    "num_inference_steps": 30,
    "mask": "everywhere",
    "detail": "decoded",
    "target_probability": 0.1,
    "guidance_scale": 4.0,  # where the search begins
}
PAPER_STRENGTHS = {"remove": 0.3, "add": 0.2}
_BATCH_SIZE = 8


def candidate_cases(names: Sequence[str], labels: np.ndarray, label_names: Sequence[str]) -> list[Case]:
    """Every finding that an image has could be removed from it, and every other one added.

    Args:
        names: of the images.
        labels: 1, 0 or NaN (unknown: no case), shape `(num_images, num_labels)`.
        label_names: names of the columns.
    """
    return [
        Case(name, label_names[column], "remove" if value == 1 else "add")
        for name, row in zip(names, labels, strict=True)
        for column, value in enumerate(row)
        if not np.isnan(value)
    ]


def make_pairs(
    pipe: MediffusionCounterfactualPipeline,
    cases: Sequence[Case],
    images: Mapping[str, Any],
    methods: Sequence[str],
    settings: Mapping[str, Any],
    seed: int = 0,
) -> list[ImagePair]:
    """Let methods answer cases.

    Args:
        pipe: the pipeline.
        cases: what to ask.
        images: by the cases' names, what the pipeline takes.
        methods: `"ours"`; `"paper"`; `"plain_gradient"`, the model's own gradient in the same region and size as
            `"ours"`; `"null_edit"`, the edit without guidance, which shows nothing.
        settings: of the pipeline's call, for `"ours"`.
        seed: of the noises.
    """
    pairs: list[ImagePair] = []
    for direction in DIRECTIONS:
        of_direction = [case for case in cases if case.direction == direction]
        starts = range(0, len(of_direction), _BATCH_SIZE)
        for start in tqdm(starts, desc=f"Making pairs ({direction})", unit="batch", disable=not starts):
            batch = of_direction[start : start + _BATCH_SIZE]
            made = _make_batch(pipe, batch, images, methods, settings, seed)
            pairs += [pair for of_case in zip(*made, strict=True) for pair in of_case]
    return pairs


def _make_batch(
    pipe: MediffusionCounterfactualPipeline,
    cases: Sequence[Case],
    images: Mapping[str, Any],
    methods: Sequence[str],
    settings: Mapping[str, Any],
    seed: int,
) -> list[list[ImagePair]]:
    """Of each method the pairs of some cases of one direction."""
    direction = cases[0].direction
    target: Any = {"away" if direction == "remove" else "towards": [[case.label] for case in cases]}
    inputs = [images[case.name] for case in cases]

    def ask(options: Mapping[str, Any], controls: bool) -> Any:
        generators = [torch.Generator().manual_seed(seed + number) for number in range(len(cases))]
        return pipe(inputs, **target, **options, generator=generators, controls=controls)

    own = ask(settings, "plain_gradient" in methods)
    made = {"ours": own.images, "null_edit": own.null_images, "plain_gradient": own.plain_gradient_images}
    if "paper" in methods:
        made["paper"] = ask({**PAPER, "strength": PAPER_STRENGTHS[direction]}, False).images
    originals = [plain_picture(image) for image in own.originals]
    return [
        [
            ImagePair(case, method, original, plain_picture(image))
            for case, original, image in zip(cases, originals, made[method], strict=True)
        ]
        for method in methods
    ]
