"""Pictures of one explanation: beside its controls, over several seeds, over guidance scale; all return PIL images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from .drawing import (
    GAP,
    LINE,
    MARGIN,
    MIN_COLUMN,
    MUTED,
    Canvas,
    colour_bar,
    difference_bar,
    difference_limit,
    draw_boxes,
    draw_region,
    grey,
    heading_height,
    new_canvas,
    notice_height,
    show_difference,
    show_map,
    show_picture,
    shown_size,
)
from .explained_image import ExplainedImage, GuidanceSweep, ScoredImage


_SWEEP_SIDE, _SWEEP_COLUMN = 160, 110  # pixels: a sweep has many pictures
_BAR_WIDTH = 200  # pixels, with what its ticks need
_KEY_HEIGHT = 150  # pixels: the words and the colour bar below the original
AGREEMENT_COLOURS = "YlOrBr"
_SPREAD_COLOURS = "Purples"


def explanation_panel(explained: ExplainedImage) -> Image.Image:
    """One counterfactual with its controls: pictures above, their signed differences to the original below.

    Columns: original | counterfactual | null edit | plain gradient | random noise, without the controls that are
    missing. All differences share one symmetric scale. Under each picture stand the probabilities of the finding,
    before and after; under each difference its L1 and its share of high-frequency energy. Boxes (lime) and the region
    (amber) are drawn on the original and on the differences.

    Args:
        explained: the image, its counterfactual and controls.
    """
    changed = explained.changed()
    width, height = shown_size(explained.original.image)
    column = max(width, MIN_COLUMN) + GAP
    canvas_width = 2 * MARGIN + column * (1 + len(changed)) - GAP
    num_scores = max(len(_score_lines(image)) for image in (explained.original, *dict(changed).values()))
    top = heading_height(explained.heading, explained.name) + 30
    below = top + height + 8 + LINE * num_scores + GAP
    canvas_height = below + max(height + 8 + 2 * LINE, _KEY_HEIGHT) + GAP + notice_height(canvas_width)
    limit, shown = explained.limit(), None
    with new_canvas(canvas_width, canvas_height) as canvas:
        canvas.heading(explained.heading, explained.name)
        axes = _titled_axes(canvas, MARGIN, top, width, height, "Original")
        show_picture(axes, explained.original.image)
        _draw_marks(axes, explained)
        _write_lines(canvas, MARGIN, top + height + 8, _score_lines(explained.original))
        for index, (name, image) in enumerate(changed, start=1):
            left = MARGIN + column * index
            show_picture(_titled_axes(canvas, left, top, width, height, name), image.image)
            _write_lines(canvas, left, top + height + 8, _score_lines(image, explained.original))
            axes = canvas.axes(left, below, width, height)
            shown = show_difference(axes, explained.difference(image), limit)
            _draw_marks(axes, explained)
            _write_lines(canvas, left, below + height + 8, change_lines(explained, image), color=MUTED)
        _write_key(canvas, explained, shown, below)
        canvas.notice()
        return canvas.to_image()


def agreement_figure(
    mean_difference: np.ndarray,
    spread: np.ndarray,
    agreement: np.ndarray,
    original: np.ndarray,
    title: str = "",
    boxes: Sequence[Mapping[str, float]] = (),
) -> Image.Image:
    """What several edits of one image (seeds or noise levels) have in common: original | mean | spread | agreement.

    Mean and spread are shown on one scale, so that a mean can be held against its spread.

    Args:
        mean_difference: mean signed difference to the original, `(channels, height, width)` or `(height, width)`, in
            units of the full intensity range; channels are averaged, here and below.
        spread: standard deviation over the edits, same unit and shape.
        agreement: in [0, 1], 1 where all edits agree; same shape.
        original: x, in [0, 1], same height and width.
        title: heading, e.g. `"Mass removed: 8 seeds"`.
        boxes: boxes to draw, in relative units.

    Raises:
        ValueError: if heights and widths differ, a spread is negative or an agreement leaves [0, 1].
    """
    mean, deviation, shares = grey(mean_difference), grey(spread), grey(agreement)
    sizes = {array.shape for array in (mean, deviation, shares)} | {np.shape(original)[-2:]}
    if len(sizes) > 1:
        raise ValueError(
            "`mean_difference`, `spread`, `agreement` and `original` must have one height and width, but got "
            f"{sorted(sizes)}."
        )
    if not deviation.min() >= 0:
        raise ValueError(f"`spread` must be at least 0, but its least value is {deviation.min():.3g}.")
    if not (shares.min() >= 0 and shares.max() <= 1):
        raise ValueError(f"`agreement` must lie in [0, 1], but spans [{shares.min():.3g}, {shares.max():.3g}].")
    limit = difference_limit([mean, deviation])
    width, height = shown_size(mean)
    column = max(width, MIN_COLUMN) + GAP
    canvas_width = 2 * MARGIN + 4 * column - GAP
    top = heading_height(title) + 30
    with new_canvas(canvas_width, top + height + 64 + notice_height(canvas_width)) as canvas:
        canvas.heading(title)
        for index, name in enumerate(("Original", "Mean difference", "Spread", "Agreement")):
            left = MARGIN + column * index
            axes = _titled_axes(canvas, left, top, width, height, name)
            if name == "Original":
                show_picture(axes, original)
            else:
                bar = canvas.axes(left + 20, top + height + 12, min(width, _BAR_WIDTH) - 40, 12)
            if name == "Mean difference":
                difference_bar(canvas.figure, show_difference(axes, mean, limit), bar, "horizontal")
            elif name == "Spread":
                shown = show_map(axes, deviation, _SPREAD_COLOURS, 0, limit)
                colour_bar(canvas.figure, shown, bar, {0: "0", limit: f"{limit:.2f}"}, "horizontal")
            elif name == "Agreement":
                shown = show_map(axes, shares, AGREEMENT_COLOURS, 0, 1)
                colour_bar(canvas.figure, shown, bar, {0: "0", 1: "1\nall agree"}, "horizontal")
            draw_boxes(axes, boxes, mean)
        canvas.notice()
        return canvas.to_image()


def severity_sweep(sweep: GuidanceSweep, label: str, original: np.ndarray | None = None) -> Image.Image:
    """One row of pictures, one per guidance scale, with the probability under each (Fig. 7).

    Args:
        sweep: images and probabilities by guidance scale.
        label: heading, e.g. `"Cardiomegaly removed"`.
        original: x, in [0, 1]; with it, a second row shows the differences to it, on one scale.

    Raises:
        ValueError: if the original has another height and width.
    """
    differences = None if original is None else sweep.differences(original)
    width, height = shown_size(sweep.stops[0].image, _SWEEP_SIDE)
    column = max(width, _SWEEP_COLUMN) + GAP
    canvas_width = 2 * MARGIN + column * len(sweep.stops) - GAP + (0 if differences is None else 84)
    top = heading_height(label, "over guidance scale") + 30
    below = top + height + 38
    canvas_height = below + (0 if differences is None else height + GAP) + notice_height(canvas_width)
    with new_canvas(canvas_width, canvas_height) as canvas:
        canvas.heading(label, "over guidance scale")
        for index, (scale, stop) in enumerate(zip(sweep.scales, sweep.stops, strict=True)):
            left = MARGIN + column * index
            axes = _titled_axes(canvas, left, top, width, height, f"scale {scale:g}")
            show_picture(axes, stop.image)
            canvas.probability(left, top + height + 20, max(width, _SWEEP_COLUMN), stop.probability)
        if differences is not None:
            limit = difference_limit(differences)
            for index, difference in enumerate(differences):
                axes = canvas.axes(MARGIN + column * index, below, width, height)
                shown = show_difference(axes, difference, limit)
            bar = canvas.axes(canvas_width - MARGIN - 72, below + 12, 12, height - 24)
            difference_bar(canvas.figure, shown, bar)
        canvas.notice()
        return canvas.to_image()


def _titled_axes(canvas: Canvas, left: float, top: float, width: int, height: int, title: str) -> Any:
    canvas.text(left, top - 14, title, fontweight="bold")
    return canvas.axes(left, top, width, height)


def _write_lines(canvas: Canvas, left: float, top: float, lines: Sequence[str], **style: Any) -> None:
    for line, text in enumerate(lines):
        canvas.text(left, top + LINE * (line + 0.5), text, **style)


def _write_key(canvas: Canvas, explained: ExplainedImage, shown: Any, top: float) -> None:
    """What the row of differences shows, in the place below the original."""
    _write_lines(canvas, MARGIN, top, ["Difference to", "the original"], fontweight="bold")
    difference_bar(canvas.figure, shown, canvas.axes(MARGIN + 20, top + 50, _BAR_WIDTH - 70, 12), "horizontal")
    marks = ["lime box: the finding"] * bool(explained.boxes)
    marks += ["amber: may be edited"] * (explained.region is not None)
    _write_lines(canvas, MARGIN, top + 108, marks, fontsize=7.5, color=MUTED)


def _draw_marks(axes: Any, explained: ExplainedImage) -> None:
    draw_boxes(axes, explained.boxes, explained.original.image)
    draw_region(axes, explained.region)


def _score_lines(image: ScoredImage, before: ScoredImage | None = None) -> list[str]:
    """`"model 0.93 → 0.04"`, and the outside classifier's likewise; only the last number without `before`."""
    lines = []
    for name, attribute in (("model", "probability"), ("oracle", "oracle_probability")):
        after, first = getattr(image, attribute), getattr(before, attribute, None)
        if after is not None:
            lines.append(f"{name} {after:.2f}" if first is None else f"{name} {first:.2f} → {after:.2f}")
    return lines


def change_lines(explained: ExplainedImage, image: ScoredImage) -> list[str]:
    """Size and smoothness of a change: `"L1 0.0123"`, `"high frequency 7 %"`."""
    share = explained.high_frequency(image)
    frequency = "no change" if math.isnan(share) else f"high frequency {100 * share:.0f} %"
    return [f"L1 {explained.change_size(image):.4f}", frequency]
