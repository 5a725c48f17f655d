"""Explanations as one HTML page with sliders, to send to a colleague: works offline, and from the keyboard."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..pictures.drawing import (
    BOX_COLOUR,
    REGION_COLOUR,
    difference_limit,
    difference_pixels,
    picture_pixels,
    region_edges,
)
from ..pictures.explained_image import ExplainedImage, ScoredImage
from ..pictures.explanations import explanation_panel
from .report import HtmlReport, data_url


HOW_TO_READ = (
    "Each section shows one image and its counterfactual: the same image, changed until the model judges one finding "
    "differently. Move the slider with the mouse, a finger or the arrow keys. Differences are counterfactual minus "
    "original: blue became darker, red brighter. p is the model's probability of the finding.\n\n"
    "A change of p proves little by itself, so controls stand beside it. The null edit went the same way without "
    "guidance: it shows what the method changes by itself. The plain gradient changes p without any diffusion, and "
    "random noise explains nothing; both are as large as the counterfactual (L1: mean absolute change of a pixel, as "
    "a share of the intensity range). High frequency is the share of a change's energy above half of the highest "
    "frequency: anatomical changes are smooth, white noise has 0.80."
)
NOT_COMPUTED = "Not computed for this image: {}. Without them, what any change of this size does is unknown."
_SMOOTH_FROM = 192  # pixels of height from which a browser may smooth a picture that it enlarges
_GRADIENT_STOPS = 9
_FADE_STEP = 0.05  # of the way, per press of an arrow key
_FADE_MAPS = 5  # differences from none to whole: colours between two of them are nearly those of the scale

_STYLE = """
.slider { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: 1rem;
  margin: 1.2rem 0; max-width: 48rem; }
.slider .views { display: grid; grid-template-columns: 1fr 1fr; gap: 1rem; }
.slider .name { color: var(--muted); font-size: .88rem; margin-bottom: .3rem; }
.slider .stack { position: relative; background: #fff; border: 1px solid var(--line); overflow: hidden; }
.slider .stack img, .slider .stack svg { position: absolute; inset: 0; width: 100%; height: 100%; }
.slider .stack.pixels img { image-rendering: pixelated; }
.slider .stack svg { fill: none; stroke-width: 1.6px; }
.slider:has(.marks input:not(:checked)) svg { display: none; }
.slider .scale { height: .5rem; margin-top: .5rem; }
.slider .ends { display: flex; justify-content: space-between; color: var(--muted); font-size: .82rem; }
.slider .score { display: flex; flex-wrap: wrap; align-items: center; gap: .3rem 1rem; margin-top: .8rem; }
.slider output { font-weight: 650; font-variant-numeric: tabular-nums; }
.slider .bar { flex: 0 0 8rem; height: .5rem; background: var(--line); }
.slider .bar div { height: 100%; background: var(--muted); }
.slider input[type=range] { width: 100%; margin: .2rem 0; height: 1.6rem; accent-color: var(--accent); }
.slider input:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; }
.slider .marks { color: var(--muted); font-size: .88rem; display: inline-block; margin-top: .4rem; }
@media (max-width: 34rem) { .slider .views { grid-template-columns: 1fr; } }
"""

# The layers of a stack are spread evenly over the slider; layer k appears while the slider goes from k - 1 to k.
_SCRIPT = """
for (const slider of document.querySelectorAll(".slider")) {
  const input = slider.querySelector("input[type=range]"), output = slider.querySelector("output");
  const bar = slider.querySelector(".bar div"), stops = JSON.parse(slider.dataset.stops);
  const show = () => {
    const value = Number(input.value), stop = stops[Math.round(value)], isStop = Number.isInteger(value);
    for (const stack of slider.querySelectorAll(".stack")) {
      const layers = stack.querySelectorAll("img"), place = value / Number(input.max) * (layers.length - 1);
      layers.forEach((layer, k) => { layer.style.opacity = Math.min(1, Math.max(0, place - k + 1)); });
    }
    output.textContent = isStop ? stop.text : slider.dataset.between;
    bar.style.width = 100 * stop.probability + "%";
    bar.parentElement.style.visibility = isStop ? "visible" : "hidden";
    input.setAttribute("aria-valuetext", output.textContent);
  };
  input.addEventListener("input", show);
  show();
}
"""


class ExplanationReport(HtmlReport):
    """A report with sliders; see `HtmlReport`."""

    style = HtmlReport.style + _STYLE
    script = _SCRIPT

    def add_explained_image(self, explained: ExplainedImage) -> ExplanationReport:
        """Add a section: sliders, the panel with the controls, and its numbers as a table."""
        self.add_section(explained.heading, explained.name)
        self.add_sliders(explained)
        controls = {
            "null edit": explained.null_edit,
            "plain gradient": explained.plain_gradient,
            "random noise": explained.random_noise,
        }
        missing = [name for name, control in controls.items() if control is None]
        if missing:
            self.add_text(NOT_COMPUTED.format(", ".join(missing)))
        caption = "Above, the pictures with the model's probability of the finding, before → after; below, their "
        self.add_figure(
            explanation_panel(explained), caption + "differences to the original on one scale.", explained.heading
        )
        self.add_table(*_table(explained), strong_rows=[0])
        return self

    def add_sliders(self, explained: ExplainedImage) -> ExplanationReport:
        """Add a slider from the original to the counterfactual and, if there is a sweep, one over guidance scale."""
        original, counterfactual = explained.original, explained.counterfactual
        difference = explained.difference(counterfactual)
        self._parts.append(
            _slider(
                explained,
                [("Original", original), ("Counterfactual", counterfactual)],
                [share * difference for share in np.linspace(0, 1, _FADE_MAPS)],
                explained.limit(),
                "From the original to the counterfactual",
                between=(
                    f"Cross-fade: p {original.probability:.2f} → {counterfactual.probability:.2f}, "
                    "measured at both ends only"
                ),
            )
        )
        if explained.sweep is not None:
            differences = explained.sweep.differences(original.image)
            named = [
                (f"Guidance scale {scale:g}", stop)
                for scale, stop in zip(explained.sweep.scales, explained.sweep.stops, strict=True)
            ]
            limit = difference_limit(differences)
            self._parts.append(_slider(explained, named, differences, limit, "Over guidance scale"))
        return self


def slider_html(explained: ExplainedImage) -> str:
    """A page with the sliders of one explained image alone.

    Args:
        explained: the image, its counterfactual and, for a second slider, its sweep over guidance scale.

    Returns:
        The page; it loads nothing from elsewhere.
    """
    return ExplanationReport(explained.heading, explained.name).add_sliders(explained).render()


def write_explanation_html(
    explained_images: Sequence[ExplainedImage],
    path: str | os.PathLike[str],
    title: str = "Counterfactual explanations",
    subtitle: str = "",
    provenance: Mapping[str, Any] | None = None,
) -> Path:
    """Write one page with several explained images; written aside, then renamed into place.

    The page holds the pictures: whoever gets it sees the images and the names that were given to them.

    Args:
        explained_images: at least one.
        path: the file; folders above it are made.
        title: heading of the page.
        subtitle: one line below it.
        provenance: what another needs to repeat the pictures: checkpoint, settings, seed, ...

    Returns:
        The path.

    Raises:
        ValueError: for no image.
    """
    if not explained_images:
        raise ValueError("`explained_images` must hold at least one explained image.")
    report = ExplanationReport(title, subtitle)
    report.add_text(HOW_TO_READ)
    for explained in explained_images:
        report.add_explained_image(explained)
    if provenance:
        report.add_section("Provenance").add_provenance(provenance)
    return report.save(path)


def _slider(
    explained: ExplainedImage,
    stops: Sequence[tuple[str, ScoredImage]],
    differences: Sequence[np.ndarray],
    limit: float,
    title: str,
    between: str | None = None,
) -> str:
    """A slider over stops, with the differences spread over it; without `between` it rests at stops only."""
    texts = [f"{name}: p {stop.probability:.2f}" for name, stop in stops]
    data = [
        {"text": text, "probability": round(stop.probability, 4)} for text, (_, stop) in zip(texts, stops, strict=True)
    ]
    pictures = [(name, picture_pixels(stop.image)) for name, stop in stops]
    maps = [("Difference to the original", difference_pixels(difference, limit)) for difference in differences]
    marks = _marks(explained)
    shown = " and ".join(["box"] * bool(explained.boxes) + ["region"] * (explained.region is not None))
    toggle = f'<label class="marks"><input type="checkbox" checked> show {shown}</label>' if marks else ""
    label = escape(f"{explained.heading}: {title[0].lower()}{title[1:]}")
    return (
        f'<div class="slider" data-stops="{escape(json.dumps(data))}" data-between="{escape(between or "")}">'
        f'<div class="views"><div><div class="name">{escape(title)}</div>{_stack(pictures, marks)}</div>'
        f'<div><div class="name">Difference to the original</div>{_stack(maps, marks)}{_scale(limit)}</div></div>'
        f'<div class="score"><output>{escape(texts[0])}</output>'
        f'<div class="bar"><div style="width:{data[0]["probability"]:.2%}"></div></div></div>'
        f'<input type="range" min="0" max="{len(stops) - 1}" step="{_FADE_STEP if between else 1}" value="0" '
        f'aria-label="{label}" aria-valuetext="{escape(texts[0])}">'
        f'<div class="ends"><span>{escape(stops[0][0])}</span><span>{escape(stops[-1][0])}</span></div>{toggle}'
        "<noscript>The slider needs JavaScript; the pictures below do not.</noscript></div>"
    )


def _stack(layers: Sequence[tuple[str, np.ndarray]], marks: str) -> str:
    """Pictures `(height, width, 3)` over each other, of which the first is visible, below boxes and region."""
    height, width = layers[0][1].shape[:2]
    images = "".join(
        f'<img alt="{escape(name)}" style="opacity:{int(index == 0)}" src="{data_url(Image.fromarray(pixels))}">'
        for index, (name, pixels) in enumerate(layers)
    )
    kind = "stack" if height >= _SMOOTH_FROM else "stack pixels"
    return f'<div class="{kind}" style="aspect-ratio:{width}/{height}">{images}{marks}</div>'


def _scale(limit: float) -> str:
    """The colour bar of a difference."""
    colours = difference_pixels(np.linspace(-limit, limit, _GRADIENT_STOPS)[None], limit)[0].tolist()
    gradient = ", ".join("#" + bytes(colour).hex() for colour in colours)
    return (
        f'<div class="scale" style="background:linear-gradient(to right, {gradient})"></div>'
        f'<div class="ends"><span>−{limit:.2f} darker</span><span>0</span><span>+{limit:.2f} brighter</span></div>'
    )


def _marks(explained: ExplainedImage) -> str:
    """Boxes and region as a drawing over the pictures; empty without them."""
    height, width = explained.original.image.shape[-2:]
    shapes = [
        f'<rect x="{box["x"] * width:.2f}" y="{box["y"] * height:.2f}" width="{box["width"] * width:.2f}" '
        f'height="{box["height"] * height:.2f}" stroke="{BOX_COLOUR}" vector-effect="non-scaling-stroke"/>'
        for box in explained.boxes
    ]
    if explained.region is not None:
        path = " ".join(f"M{start[0]} {start[1]}L{end[0]} {end[1]}" for start, end in region_edges(explained.region))
        shapes.append(f'<path d="{path}" stroke="{REGION_COLOUR}" vector-effect="non-scaling-stroke"/>')
    if not shapes:
        return ""
    return f'<svg viewBox="0 0 {width} {height}" preserveAspectRatio="none" aria-hidden="true">{"".join(shapes)}</svg>'


def _table(explained: ExplainedImage) -> tuple[list[str], list[list[Any]]]:
    """The numbers of the panel."""
    original, changed = explained.original, explained.changed()
    has_oracle = any(image.oracle_probability is not None for _, image in changed)
    columns = ["", "p before", "p after"] + ["oracle before", "oracle after"] * has_oracle + ["L1", "high frequency"]
    rows: list[list[Any]] = []
    for name, image in changed:
        scores: list[Any] = [original.probability, image.probability]
        scores += [original.oracle_probability, image.oracle_probability] * has_oracle
        rows.append([name, *scores, f"{explained.change_size(image):.4f}", explained.high_frequency(image)])
    return columns, rows
