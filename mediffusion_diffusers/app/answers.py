"""What the page computes: scores of an image, its counterfactual, and what to hold that against.

Nothing here knows of a browser. Every function may be called from several threads with one pipeline.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..data import open_image
from ..dicom_export import Source
from ..evaluation.agreement import Agreement, repeat_counterfactual
from ..image_processor import denormalize
from ..pipelines import MediffusionClassifyPipeline, MediffusionCounterfactualPipeline
from ..pipelines.outputs import MediffusionClassifyPipelineOutput, MediffusionCounterfactualPipelineOutput
from ..reports.image_explanations import SWEEP, same_edit
from ..reports.pictures.explained_image import ExplainedImage
from ..reports.pictures.explained_output import explain_output, explain_sweep
from .edit_request import EditRequest


NUM_SEEDS = 4
_SEED = 0  # of the noises, so that the same question gets the same answer
# Called with how much is done, in [0, 1], or None where that is not known, and with what is being done.
OnProgress = Callable[[float | None, str], None]


def no_progress(share: float | None, doing: str) -> None:
    """Show nothing."""


@dataclass(frozen=True, eq=False)
class OpenedImage:
    """An image at the model's size, and what the model says of it.

    Args:
        pixels: shape `(height, width, channels)`, in [0, 1].
        name: what to call it on the page, or empty.
        given_size: width and height of what was given, in pixels.
        scores: the model's probabilities, for this one image.
        is_single_label: whether the model decides for one class, so that thresholds are unused.
        source: what its file says of the pixels.
    """

    pixels: np.ndarray
    name: str
    given_size: tuple[int, int]
    scores: MediffusionClassifyPipelineOutput
    is_single_label: bool = False
    source: Source = field(default_factory=Source)

    @property
    def probabilities(self) -> dict[str, float]:
        """By finding."""
        return dict(zip(self.scores.label_names, map(float, self.scores.probabilities[0]), strict=True))

    @property
    def suggested(self) -> tuple[list[str], list[str]]:
        """What to ask first: the most probable finding to remove or, if none is found, to add."""
        found = self.scores.labels[0]
        likeliest = max(found or self.scores.label_names, key=lambda label: self.probabilities[label])
        return ([likeliest], []) if found else ([], [likeliest])


@dataclass(frozen=True, eq=False)
class Answer:
    """A counterfactual of an image.

    Args:
        opened: the image.
        request: what was asked.
        arguments: of the pipeline's call.
        output: what it returned.
        explained: for each finding that was asked for, what its pictures are drawn from.
        seconds: that it took.
    """

    opened: OpenedImage
    request: EditRequest
    arguments: Mapping[str, Any]
    output: MediffusionCounterfactualPipelineOutput
    explained: list[ExplainedImage]
    seconds: float

    @property
    def heading(self) -> str:
        """What was done, e.g. `"Mass removed"`."""
        return ", ".join(one.heading for one in self.explained)


def open_upload(path: str | Path, pipe: MediffusionCounterfactualPipeline) -> OpenedImage:
    """Open a picture or DICOM file that somebody has uploaded.

    Neither the file's name nor any tag of it is kept, but those that describe the pixels.

    Args:
        path: of the file.
        pipe: the pipeline.

    Raises:
        ValueError: for a file that is no single picture.
        ImportError: for DICOM without pydicom.
    """
    name = Path(path).name
    return replace(open_given(open_image(path, name), pipe), source=Source.of_pixels(path, name))


def open_given(image: Any, pipe: MediffusionCounterfactualPipeline, name: str = "") -> OpenedImage:
    """Bring an image to the model's size and classify it.

    Args:
        image: what the pipelines take, one image.
        pipe: the pipeline.
        name: what to call it on the page.

    Raises:
        ValueError: for what is no image.
    """
    pixels = denormalize(pipe.image_processor.preprocess(image, *pipe.image_size))
    if len(pixels) != 1:
        raise ValueError(f"One image is expected, but got {len(pixels)}.")
    at_model_size = pixels[0].permute(1, 2, 0).numpy()
    scores = classifier_of(pipe)(at_model_size)
    size = image.size if isinstance(image, Image.Image) else pipe.image_size[::-1]
    is_single_label = pipe.unet.config.problem_type == "single_label_classification"
    return OpenedImage(at_model_size, name, size, scores, is_single_label)


def classifier_of(pipe: MediffusionCounterfactualPipeline) -> MediffusionClassifyPipeline:
    """A pipeline of the same models that classifies, without a progress bar."""
    classify = MediffusionClassifyPipeline(**pipe.components)
    classify.set_progress_bar_config(disable=True)
    return classify


def explain(
    opened: OpenedImage,
    request: EditRequest,
    pipe: MediffusionCounterfactualPipeline,
    on_progress: OnProgress = no_progress,
) -> Answer:
    """Make the counterfactual that is asked for, beside its null edit and controls.

    Args:
        opened: the image.
        request: what is asked.
        pipe: the pipeline.
        on_progress: see `OnProgress`.

    Raises:
        ValueError: for a request that this model cannot answer.
    """
    began = time.monotonic()
    arguments = request.arguments(pipe)
    options = {name: value for name, value in arguments.items() if name not in ("towards", "away")}
    settings = pipe.resolve_settings(**options)
    searches = settings.target_probability is not None
    edits_twice = settings.finds_region and settings.start != "noised_paths"
    total = settings.num_inference_steps * (2 if edits_twice else 1)
    on_progress(None if searches else 0.0, "Searching for the smallest push" if searches else "Noising the image")
    done = 0

    def on_step(*_: Any) -> None:
        nonlocal done
        done += 1
        on_progress(min(done / total, 1.0), f"Guided step {done} of {total}")

    callback = None if searches else on_step  # a search calls back for none of its trials
    noises = {"generator": _generator(), "callback_on_step_end": callback}
    output = pipe(opened.pixels, **arguments, **noises, output_type="np")
    explained = [explain_output(output, *target, [opened.name])[0] for target in request.targets]
    return Answer(opened, request, arguments, output, explained, time.monotonic() - began)


def sweep(
    answer: Answer, pipe: MediffusionCounterfactualPipeline, on_progress: OnProgress = no_progress
) -> list[ExplainedImage]:
    """The answer's explained images with a sweep over guidance scale, from no push to the answer's (Fig. 7).

    Args:
        answer: whose scale the sweep ends at.
        pipe: the pipeline.
        on_progress: see `OnProgress`.
    """
    on_progress(None, "The same image, pushed less")
    arguments = same_edit(answer.arguments, answer.output)
    arguments["guidance_scale"] = [share * arguments["guidance_scale"] for share in SWEEP]
    output = pipe(answer.opened.pixels, **arguments, generator=_generator(), output_type="np", controls=False)
    return [
        replace(one, sweep=explain_sweep(output, *target).sweep)
        for one, target in zip(answer.explained, answer.request.targets, strict=True)
    ]


def agree(
    answer: Answer,
    pipe: MediffusionCounterfactualPipeline,
    num_seeds: int = NUM_SEEDS,
    on_progress: OnProgress = no_progress,
) -> Agreement:
    """Make the counterfactual again from several noises, at the answer's scale and strength.

    Args:
        answer: the answer.
        pipe: the pipeline.
        num_seeds: noises, at least 2.
        on_progress: see `OnProgress`.
    """
    total = num_seeds * len(answer.output.timesteps)
    done = 0

    def on_step(*_: Any) -> None:
        nonlocal done
        done += 1
        on_progress(min(done / total, 1.0), f"The same question from {num_seeds} noises")

    arguments = same_edit(answer.arguments, answer.output)
    start = answer.output.settings.get("start")
    if start != "inversion":  # which has no noise to vary
        arguments["start"] = start
    seeds = range(1, num_seeds + 1)
    return repeat_counterfactual(pipe, answer.opened.pixels, seeds=seeds, callback_on_step_end=on_step, **arguments)


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(_SEED)


def share_of_agreement(agreement: Agreement) -> float:
    """Of the pixels that any run changed, the share that all runs changed in the same direction; NaN for none."""
    changed = agreement.agreement > 0
    return float(np.mean(agreement.agreement[changed] == 1)) if changed.any() else float("nan")
