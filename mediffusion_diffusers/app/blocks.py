"""Answers as blocks of HTML: everything that the page shows beside gradio's own fields.

Pictures stand inside the HTML: none of them is written to a disk.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from ..evaluation.agreement import Agreement
from ..notices import PAGE_NOTICE, PICTURE_NOTICE
from ..regions import region_to_pixels
from ..reports.pages.explanations import READ_CONTROLS, SMOOTH_FROM, picture_marks
from ..reports.pages.rendering import Templates
from ..reports.pictures.drawing import (
    DIFFERENCE_COLOURS,
    colour_gradient,
    difference_limit,
    difference_pixels,
    grey,
    map_pixels,
    picture_pixels,
)
from ..reports.pictures.explained_image import ExplainedImage, ScoredImage
from ..reports.pictures.explanations import AGREEMENT_COLOURS, change_lines
from .answers import Answer, OpenedImage, share_of_agreement
from .files import DownloadFile


_TEMPLATES = Templates("mediffusion_diffusers.app", "mediffusion_diffusers.reports.pages")
_CHANGED = 0.01  # of the intensity range, from which a pixel counts as changed
_CLEAR_CHANGE = 0.1  # of a probability that was not asked for, from which the page mentions it
SCRIPT = str(_TEMPLATES.text("blocks.js"))


def head_block(title: str, about: str) -> str:
    """Style sheet, heading, and the notice that stays in sight.

    Args:
        title: of the page.
        about: a line below it.
    """
    style = _TEMPLATES.text("blocks.css")
    return _block("head", title=title, about=about, notice=PICTURE_NOTICE, style=style)


def foot_block() -> str:
    """The whole notice."""
    return _block("foot", notice=PAGE_NOTICE)


def example_buttons(examples: Sequence[OpenedImage]) -> str:
    """A button with a small picture for each example; see `blocks.js` for what they do."""
    return _block("examples", examples=[(example.name, _picture(example)) for example in examples])


def upload_hint() -> str:
    """What may be dropped, and what becomes of it."""
    return _block("upload_hint")


def opened_block(opened: OpenedImage) -> str:
    """The image as the model sees it, and the model's probabilities beside their thresholds."""
    height, width = opened.pixels.shape[:2]
    given_width, given_height = opened.given_size
    notes = []
    if (given_width, given_height) != (width, height):
        notes.append(f"The model sees it at {width} × {height} pixels, resized from {given_width} × {given_height}.")
    stretch = given_width * height / (given_height * width)
    if max(stretch, 1 / stretch) > 1.1:
        notes.append("Its sides were scaled differently, so shapes are distorted: crop it to the model's proportions.")
    if opened.source.names_patient:
        notes.append("The file says that its pixels name the patient.")
    return _block(
        "opened",
        name=opened.name,
        picture=_picture(opened),
        is_pixelated=height < SMOOTH_FROM,
        notes=notes,
        scores=_scores(opened),
        is_single=opened.is_single_label,
    )


def answer_block(answer: Answer) -> str:
    """The verdict, original and counterfactual under a divider, their difference, and all probabilities."""
    one = answer.explained[0]
    asked = dict(answer.request.targets)
    return _block(
        "answer",
        verdicts=[_verdict(answer, explained) for explained in answer.explained],
        remarks=_remarks(answer),
        original=Image.fromarray(picture_pixels(one.original.image)),
        counterfactual=Image.fromarray(picture_pixels(one.counterfactual.image)),
        map=_map(one, one.counterfactual),
        scale=_scale(one.limit()),
        marks=picture_marks(one),
        noises=_noises(answer),
        scores=_scores(answer.opened, answer.output.probabilities_after[0], asked),
        is_single=answer.opened.is_single_label,
        settings=_settings(answer),
    )


def controls_block(answer: Answer) -> str:
    """Null edit, plain gradient and noise beside the counterfactual, on one scale."""
    one = answer.explained[0]
    cards = [
        {
            "name": name,
            "picture": Image.fromarray(picture_pixels(image.image)),
            "map": _map(one, image),
            "lines": [
                *(
                    f"{each.label}: p {each.original.probability:.2f} → {dict(each.changed())[name].probability:.2f}"
                    for each in answer.explained
                ),
                *change_lines(one, image),
            ],
        }
        for name, image in one.changed()
    ]
    return _block("cards", text=READ_CONTROLS, cards=cards, scale=_scale(one.limit()), is_pixelated=_is_pixelated(one))


def sweep_block(explained: Sequence[ExplainedImage]) -> str:
    """One card per guidance scale, from no push to the answer's.

    Args:
        explained: each with its sweep.
    """
    one = explained[0]
    assert one.sweep is not None
    differences = one.sweep.differences(one.original.image)
    limit = difference_limit(differences)
    cards = [
        {
            "name": f"Guidance scale {scale:g}" if scale else "No push (null edit)",
            "picture": Image.fromarray(picture_pixels(stop.image)),
            "map": Image.fromarray(difference_pixels(difference, limit)),
            "lines": [
                f"{each.label}: p {each.sweep.stops[place].probability:.2f}" for each in explained if each.sweep
            ],
        }
        for place, (scale, stop, difference) in enumerate(
            zip(one.sweep.scales, one.sweep.stops, differences, strict=True)
        )
    ]
    text = "The same image, pushed more and more. A finding that the model knows changes gradually and in one place."
    return _block("cards", text=text, cards=cards, scale=_scale(limit), is_pixelated=_is_pixelated(one))


def agreement_block(answer: Answer, agreement: Agreement) -> str:
    """Mean change over several noises, where they agree, and what each comes to."""
    one, mean = answer.explained[0], grey(agreement.mean_difference)
    limit = difference_limit([mean])
    num = len(agreement.settings)
    share = share_of_agreement(agreement)
    columns = [answer.output.label_names.index(label) for label, _ in answer.request.targets]
    runs = [
        ", ".join(f"{answer.output.label_names[column]} {row[column]:.2f}" for column in columns)
        for row in agreement.probabilities_after
    ]
    return _block(
        "agreement",
        num=num,
        share=None if math.isnan(share) else share,
        runs=runs,
        original=Image.fromarray(picture_pixels(one.original.image)),
        mean=Image.fromarray(difference_pixels(mean, limit)),
        agreement=Image.fromarray(map_pixels(agreement.agreement, AGREEMENT_COLOURS)),
        agreement_colours=colour_gradient(AGREEMENT_COLOURS),
        scale=_scale(limit),
        is_pixelated=_is_pixelated(one),
    )


def downloads_block(files: Sequence[DownloadFile], notes: Sequence[str] = ()) -> str:
    """Links that hold the files themselves.

    Args:
        files: see `files`.
        notes: what else is to be said.
    """
    links = [(file.name, file.text, base64.b64encode(file.content).decode()) for file in files]
    return _block("downloads", links=links, notes=notes)


def _block(macro: str, /, **values: Any) -> str:
    return str(_TEMPLATES.block("blocks.html", macro, **values))


def _verdict(answer: Answer, explained: ExplainedImage) -> dict[str, Any]:
    """Heading, probabilities, and a sentence: does the model decide otherwise?"""
    scores, label = answer.opened.scores, explained.label
    before, after = explained.original.probability, explained.counterfactual.probability
    if answer.opened.is_single_label:
        decision = answer.output.label_names[int(np.argmax(answer.output.probabilities_after[0]))]
        is_reported, sentence = decision == label, f"The model now decides for {decision}."
    else:
        threshold = scores.thresholds[scores.label_names.index(label)]
        is_reported, was_reported = after >= threshold, before >= threshold
        says = {
            (True, True): "still reports",
            (True, False): "no longer reports",
            (False, True): "now reports",
            (False, False): "still does not report",
        }[was_reported, is_reported]
        sentence = f"The model {says} {label} (threshold {threshold:.2f})."
    is_wanted = is_reported == (explained.action == "added")
    return {"heading": explained.heading, "before": before, "after": after, "text": sentence, "is_reached": is_wanted}


def _remarks(answer: Answer) -> list[str]:
    """What else one must know of the answer."""
    output, scores = answer.output, answer.opened.scores
    remarks = []
    if output.reached is not None and not output.reached[0]:
        remarks.append(
            f"No push up to the largest that was tried reaches the probability {answer.request.target_probability:g}. "
            "Shown is the best that was found."
        )
    asked = {label for label, _ in answer.request.targets}
    for label, before, after in zip(
        scores.label_names, scores.probabilities[0], output.probabilities_after[0], strict=True
    ):
        if label not in asked and abs(after - before) >= _CLEAR_CHANGE and not answer.opened.is_single_label:
            remarks.append(f"{label} changes too, though it was not asked for: {before:.2f} → {after:.2f}.")
    return remarks


def _settings(answer: Answer) -> str:
    """How the answer came about, in one line."""
    used = answer.output.settings_of(0)
    where = {"auto": "where the model changes most", "everywhere": "everywhere", "given": "in the given box"}
    return (
        f"Guidance scale {used['guidance_scale']:.3g}, strength {used['strength']:.2g}, "
        f"{used['num_inference_steps']} steps, {where[used['mask']]}; {answer.seconds:.1f} seconds."
    )


def _noises(answer: Answer) -> dict[str, Any] | None:
    """How far the noises of a mean over several agree, on the pixels that changed; None where there are none."""
    agreement, size, one = answer.output.agreement, answer.output.image_size, answer.explained[0]
    if agreement is None:
        return None
    difference = one.difference(one.counterfactual)
    unchanged = np.abs(difference) < _CHANGED
    pixels = map_pixels(region_to_pixels(agreement, 1, size)[0, 0], AGREEMENT_COLOURS).copy()
    pixels[unchanged] = difference_pixels(np.zeros_like(difference), one.limit())[unchanged]
    return {
        "num": answer.output.settings_of(0)["num_noises"],
        "map": Image.fromarray(pixels),
        "colours": colour_gradient(AGREEMENT_COLOURS),
    }


def _scores(opened: OpenedImage, after: Any = None, asked: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
    """A row per finding."""
    scores = opened.scores
    return [
        {
            "label": label,
            "before": float(scores.probabilities[0][column]),
            "after": None if after is None else float(after[column]),
            "threshold": None if opened.is_single_label else scores.thresholds[column],
            "is_reported": label in scores.labels[0],
            "asked": (asked or {}).get(label, ""),
        }
        for column, label in enumerate(scores.label_names)
    ]


def _picture(opened: OpenedImage) -> Image.Image:
    return Image.fromarray(picture_pixels(opened.pixels.transpose(2, 0, 1)))


def _is_pixelated(explained: ExplainedImage) -> bool:
    return explained.original.image.shape[-2] < SMOOTH_FROM


def _map(explained: ExplainedImage, image: ScoredImage) -> Image.Image:
    """The difference to the original, on the scale of all of them."""
    return Image.fromarray(difference_pixels(explained.difference(image), explained.limit()))


def _scale(limit: float) -> dict[str, Any]:
    return {"limit": limit, "colours": colour_gradient(DIFFERENCE_COLOURS)}
