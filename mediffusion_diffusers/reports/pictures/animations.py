"""Explanations that move: from the original to its counterfactual, and over guidance scale, as frames and as GIF."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ...atomic_files import write_bytes
from .drawing import (
    GAP,
    INK,
    MARGIN,
    MIN_COLUMN,
    MUTED,
    PALETTE,
    Canvas,
    difference_bar,
    difference_limit,
    draw_boxes,
    draw_region,
    heading_height,
    new_canvas,
    notice_height,
    show_difference,
    show_picture,
    shown_size,
)
from .explained_image import ExplainedImage


_SAMPLED_FRAMES = 8  # that the palette is fitted to, spread over the animation
_PALETTE_ROUNDS = 2  # of k-means, after a start that covers even rare colours
_CHUNK = 4096  # colours compared with the palette at once


def transition_frames(explained: ExplainedImage, num_frames: int = 13) -> list[Image.Image]:
    """Cross-fade from the original to the counterfactual, with the difference growing beside it.

    Both probabilities stand on every frame, the one of the image that is shown in bold. Between the ends there is
    none: the model never saw those blends.

    Args:
        explained: the image and its counterfactual.
        num_frames: frames from the original to the counterfactual, both included, at least 2.

    Raises:
        ValueError: if `num_frames` is below 2.
    """
    if num_frames < 2:
        raise ValueError(
            f"`num_frames` must be at least 2, the original and the counterfactual, but got {num_frames}."
        )
    original, counterfactual = explained.original, explained.counterfactual
    difference = explained.difference(counterfactual)
    limit = explained.limit()
    frames = []
    for share in np.linspace(0, 1, num_frames).tolist():
        blend = (1 - share) * original.image + share * counterfactual.image
        title = {0.0: "Original", 1.0: "Counterfactual"}.get(share, "Cross-fade")

        def draw_score(canvas: Canvas, left: float, y: float, width: float, share: float = share) -> None:
            _draw_track(canvas, left, y, width, share, (original.probability, counterfactual.probability))

        frames.append(_frame(explained, title, blend, share * difference, limit, draw_score))
    return frames


def sweep_frames(explained: ExplainedImage) -> list[Image.Image]:
    """One frame per guidance scale: the image, its probability, and its difference to the original (Fig. 7).

    Args:
        explained: with a `sweep`.

    Raises:
        ValueError: without a sweep.
    """
    if explained.sweep is None:
        raise ValueError("`explained.sweep` must hold images over guidance scale, but is None.")
    differences = explained.sweep.differences(explained.original.image)
    limit = difference_limit(differences)
    frames = []
    for scale, stop, difference in zip(explained.sweep.scales, explained.sweep.stops, differences, strict=True):

        def draw_score(
            canvas: Canvas, left: float, y: float, width: float, probability: float = stop.probability
        ) -> None:
            canvas.probability(left, y, width, probability)

        frames.append(_frame(explained, f"Guidance scale {scale:g}", stop.image, difference, limit, draw_score))
    return frames


def save_gif(
    frames: Sequence[Image.Image],
    path: str | os.PathLike[str],
    frame_milliseconds: int = 80,
    end_milliseconds: int = 1200,
) -> Path:
    """Write frames as a GIF that plays forward and back for ever; written aside, then renamed into place.

    All frames share one palette, fitted to them, without dithering: what is equal in two frames stays equal, so that
    greys do not flicker.

    Args:
        frames: from the first state to the last, equally large.
        path: the file; folders above it are made.
        frame_milliseconds: how long a frame stays; GIF counts in hundredths of a second.
        end_milliseconds: how long the first and the last frame stay.

    Returns:
        The path.

    Raises:
        ValueError: for no frame, or frames of several sizes.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, gif_bytes(frames, frame_milliseconds, end_milliseconds))
    return path


def gif_bytes(frames: Sequence[Image.Image], frame_milliseconds: int = 80, end_milliseconds: int = 1200) -> bytes:
    """The content of the file that `save_gif` writes."""
    if len({frame.size for frame in frames}) != 1:
        raise ValueError(
            f"`frames` must be at least one, all of one size, but got {[frame.size for frame in frames]}."
        )
    forward = share_palette(frames)
    durations = [end_milliseconds, *[frame_milliseconds] * (len(frames) - 2), end_milliseconds][: len(frames)]
    there_and_back = [*range(len(frames)), *range(len(frames) - 2, 0, -1)]
    buffer = io.BytesIO()
    forward[0].save(
        buffer,
        format="GIF",
        save_all=True,
        append_images=[forward[index] for index in there_and_back[1:]],
        duration=[durations[index] for index in there_and_back],
        loop=0,
        optimize=False,  # would give frames palettes of their own
    )
    return buffer.getvalue()


def share_palette(frames: Sequence[Image.Image]) -> list[Image.Image]:
    """Frames in mode "P" with one palette of at most 256 colours: every colour becomes its nearest, frame by frame."""
    pixels = np.stack([np.asarray(frame.convert("RGB")) for frame in frames])
    sampled = pixels[np.unique(np.linspace(0, len(frames) - 1, _SAMPLED_FRAMES).round().astype(int))]
    fitted = Image.fromarray(sampled.reshape(-1, *sampled.shape[2:]))
    fitted = fitted.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=_PALETTE_ROUNDS)
    entries = fitted.getpalette() or []
    palette = np.array(entries, dtype=np.float32).reshape(-1, 3)

    packed = (pixels.astype(np.uint32) << np.array([16, 8, 0], dtype=np.uint32)).sum(-1, dtype=np.uint32)
    colours = np.unique(packed)
    nearest = np.zeros(1 << 24, dtype=np.uint8)
    for first in range(0, len(colours), _CHUNK):
        chunk = colours[first : first + _CHUNK]
        rgb = np.stack([chunk >> 16, chunk >> 8 & 255, chunk & 255], 1).astype(np.float32)
        nearest[chunk] = ((rgb[:, None] - palette) ** 2).sum(-1).argmin(1)
    shared = [Image.fromarray(indices) for indices in nearest[packed]]
    for frame in shared:
        frame.putpalette(entries)
    return shared


def _frame(
    explained: ExplainedImage,
    title: str,
    image: np.ndarray,
    difference: np.ndarray,
    limit: float,
    draw_score: Callable[[Canvas, float, float, float], None],
) -> Image.Image:
    """Image and difference side by side; `draw_score(canvas, left, y, width)` draws below the image."""
    width, height = shown_size(image)
    column = max(width, MIN_COLUMN) + GAP
    canvas_width = 2 * MARGIN + 2 * column - GAP
    top = heading_height(explained.heading, explained.name) + 30
    with new_canvas(canvas_width, top + height + 60 + notice_height(canvas_width)) as canvas:
        canvas.heading(explained.heading, explained.name)
        canvas.text(MARGIN, top - 14, title, fontweight="bold")
        axes = canvas.axes(MARGIN, top, width, height)
        show_picture(axes, image)
        draw_boxes(axes, explained.boxes, image)
        draw_region(axes, explained.region)
        draw_score(canvas, MARGIN, top + height + 22, column - GAP)
        left = MARGIN + column
        canvas.text(left, top - 14, "Difference", fontweight="bold")
        axes = canvas.axes(left, top, width, height)
        shown = show_difference(axes, difference, limit)
        draw_boxes(axes, explained.boxes, image)
        draw_region(axes, explained.region)
        difference_bar(
            canvas.figure, shown, canvas.axes(left + 20, top + height + 12, column - GAP - 44, 10), "horizontal"
        )
        canvas.notice()
        return canvas.to_image()


def _draw_track(
    canvas: Canvas, left: float, y: float, width: float, share: float, probabilities: tuple[float, float]
) -> None:
    """Probabilities before and after at both ends of a track, and a knob where the cross-fade stands."""
    for x, end, probability in ((left, 0, probabilities[0]), (left + width, 1, probabilities[1])):
        weight, colour = ("bold", INK) if share == end else ("normal", MUTED)
        side = "right" if end else "left"
        canvas.text(x, y, f"p {probability:.2f}", ha=side, fontweight=weight, color=colour)
    axes = canvas.axes(left + 60, y - 7, width - 120, 14)
    axes.set(xlim=(-0.06, 1.06), ylim=(-1, 1))
    axes.axis("off")
    axes.plot([0, 1], [0, 0], color=MUTED, linewidth=1)
    axes.plot([share], [0], marker="o", color=PALETTE[0], markersize=6)
