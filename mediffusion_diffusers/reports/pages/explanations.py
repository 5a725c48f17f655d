"""Explanations as one HTML page with sliders, to send to a colleague: works offline, and from the keyboard."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..pictures.drawing import (
    BOX_COLOUR,
    DIFFERENCE_COLOURS,
    REGION_COLOUR,
    colour_gradient,
    difference_limit,
    difference_pixels,
    picture_pixels,
    region_edges,
)
from ..pictures.explained_image import ExplainedImage, ScoredImage
from ..pictures.explanations import explanation_panel
from .report import HtmlReport


_READ_SLIDERS = (
    "Each section shows one image and its counterfactual: the same image, changed until the model judges one finding "
    "differently. Move the slider with the mouse, a finger or the arrow keys. Differences are counterfactual minus "
    "original: blue became darker, red brighter. p is the model's probability of the finding."
)
READ_CONTROLS = (
    "A change of p proves little by itself, so controls stand beside it. The null edit went the same way without "
    "guidance: it shows what the method changes by itself. The plain gradient changes p without any diffusion, and "
    "random noise explains nothing; both are as large as the counterfactual (L1: mean absolute change of a pixel, as "
    "a share of the intensity range). High frequency is the share of a change's energy above half of the highest "
    "frequency: anatomical changes are smooth, white noise has 0.80."
)
HOW_TO_READ = f"{_READ_SLIDERS}\n\n{READ_CONTROLS}"
NOT_COMPUTED = "Not computed for this image: {}. Without them, what any change of this size does is unknown."
SMOOTH_FROM = 192  # pixels of height from which a browser may smooth a picture that it enlarges
_FADE_STEP = 0.05  # of the way, per press of an arrow key
_FADE_MAPS = 5  # differences from none to whole: colours between two of them are nearly those of the scale


class ExplanationReport(HtmlReport):
    """A report with sliders; see `HtmlReport`."""

    styles = (*HtmlReport.styles, "slider.css")
    scripts = ("slider.js",)

    def add_explained_image(self, explained: ExplainedImage) -> ExplanationReport:
        """Add a section: sliders, the panel with the controls, and its numbers as a table."""
        self.add_section(explained.heading, " ".join(explained.name.split()))
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
        self._add_slider(
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
        if explained.sweep is not None:
            differences = explained.sweep.differences(original.image)
            named = [
                (f"Guidance scale {scale:g}", stop)
                for scale, stop in zip(explained.sweep.scales, explained.sweep.stops, strict=True)
            ]
            self._add_slider(explained, named, differences, difference_limit(differences), "Over guidance scale")
        return self

    def _add_slider(
        self,
        explained: ExplainedImage,
        stops: Sequence[tuple[str, ScoredImage]],
        differences: Sequence[np.ndarray],
        limit: float,
        title: str,
        between: str = "",
    ) -> None:
        """Add a slider over stops, with the differences spread over it; without `between` it rests at stops only."""
        self._add(
            "slider",
            template="slider.html",
            title=title,
            label=f"{explained.heading}: {title[0].lower()}{title[1:]}",
            stops=[
                {"text": f"{name}: p {stop.probability:.2f}", "probability": round(stop.probability, 4)}
                for name, stop in stops
            ],
            between=between,
            pictures=[_layer(name, picture_pixels(stop.image)) for name, stop in stops],
            maps=[_layer("Difference to the original", difference_pixels(one, limit)) for one in differences],
            scale={"limit": limit, "colours": colour_gradient(DIFFERENCE_COLOURS)},
            marks=picture_marks(explained),
            step=_FADE_STEP if between else 1,
        )


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
    return explanation_report(explained_images, title, subtitle, provenance).save(path)


def explanation_report(
    explained_images: Sequence[ExplainedImage],
    title: str = "Counterfactual explanations",
    subtitle: str = "",
    provenance: Mapping[str, Any] | None = None,
) -> ExplanationReport:
    """The page that `write_explanation_html` writes."""
    if not explained_images:
        raise ValueError("`explained_images` must hold at least one explained image.")
    report = ExplanationReport(title, subtitle)
    report.add_text(HOW_TO_READ)
    for explained in explained_images:
        report.add_explained_image(explained)
    if provenance:
        report.add_section("Provenance").add_provenance(provenance)
    return report


def _layer(name: str, pixels: np.ndarray) -> dict[str, Any]:
    """A picture `(height, width, 3)` of a stack."""
    return {"name": name, "image": Image.fromarray(pixels)}


def picture_marks(explained: ExplainedImage) -> dict[str, Any]:
    """Boxes and region, which are drawn over the pictures, and the size of these."""
    height, width = explained.original.image.shape[-2:]
    return {
        "height": height,
        "width": width,
        "is_pixelated": height < SMOOTH_FROM,
        "names": ["box"] * bool(explained.boxes) + ["region"] * (explained.region is not None),
        "boxes": explained.boxes,
        "box_colour": BOX_COLOUR,
        "region_edges": [] if explained.region is None else region_edges(explained.region).tolist(),
        "region_colour": REGION_COLOUR,
    }


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
