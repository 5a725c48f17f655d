"""How every picture of the reports looks: style, scales and the parts they are drawn from.

Greys are shown on the fixed scale 0 to 1, differences on a symmetric diverging scale: red is brighter than before,
blue darker, white unchanged. matplotlib is imported when something is drawn, and its pyplot state is left alone.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import Image

from ...atomic_files import new_file
from ...notices import PICTURE_NOTICE


DPI = 130
DIFFERENCE_COLOURS = "RdBu_r"
_GRADIENT_STOPS = 9
MIN_DIFFERENCE_SCALE = 0.05  # of the full intensity range: weaker changes stay pale
PICTURE_SIDE = 256  # pixels that a picture's longer side is shown at, about
MARGIN, GAP, LINE = 18, 14, 20  # pixels, of canvases
MIN_COLUMN = 176  # pixels, for the words below a picture
_NOTICE_LETTER, _NOTICE_LINE = 6.8, 14  # pixels: width of a letter of the notice, about, and height of its lines
BOX_COLOUR, REGION_COLOUR = "lime", "#ffb000"
INK, MUTED, GRID = "#1b2430", "#5b6775", "#e4e8ed"
PALETTE = ("#2563a8", "#d9730d", "#2f8f6b", "#8a4fbf", "#b3263a", "#6b7280")
_STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "text.parse_math": False,  # a finding called "$x$" is no formula
    "axes.labelcolor": MUTED,
    "axes.edgecolor": GRID,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": GRID,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
    "figure.facecolor": "white",
}
# Between 1x and 3x, and when shrinking, matplotlib smooths; whole factors and more than 3x show the pixels.
_INTERPOLATION = "antialiased"


@contextmanager
def new_figure(width: float, height: float) -> Iterator[Any]:
    """A matplotlib figure in our style, in inches."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), dpi=DPI)
        FigureCanvasAgg(figure)
        yield figure


def to_image(figure: Any) -> Image.Image:
    """Draw a figure of `new_figure`, as an RGB picture."""
    figure.canvas.draw()
    return Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB")


def save_picture(picture: Image.Image, path: str | os.PathLike[str]) -> None:
    """Write a picture as PNG: whole, or not at all."""
    with new_file(path) as aside:
        picture.save(aside, format="PNG", optimize=True)


class Canvas:
    """A figure laid out in pixels from its top left corner, so that pictures keep whole pixels.

    Args:
        figure: from `new_canvas`.
        width: in pixels.
        height: in pixels.
    """

    def __init__(self, figure: Any, width: int, height: int):
        self.figure, self.width, self.height = figure, width, height

    def axes(self, left: float, top: float, width: float, height: float) -> Any:
        """Axes at a place."""
        bottom = self.height - top - height
        return self.figure.add_axes(
            (left / self.width, bottom / self.height, width / self.width, height / self.height)
        )

    def text(self, x: float, y: float, text: str, max_width: float | None = None, **style: Any) -> None:
        """Write a line; `y` is its middle. Text wider than `max_width` is written smaller."""
        written = self.figure.text(x / self.width, 1 - y / self.height, text, **{"va": "center", **style})
        if max_width is not None:
            width = written.get_window_extent(self.figure.canvas.get_renderer()).width
            written.set_fontsize(written.get_fontsize() * min(1.0, max_width / max(width, 1.0)))

    def heading(self, heading: str, below: str = "") -> None:
        """Write a heading at the top and a muted line below it; see `heading_height`."""
        width = self.width - 2 * MARGIN
        self.text(MARGIN, MARGIN + 10, heading, width, fontsize=12, fontweight="bold")
        self.text(MARGIN, MARGIN + 34, below, width, fontsize=8.5, color=MUTED)

    def notice(self) -> None:
        """Write the notice that every picture of a counterfactual carries at its bottom; see `notice_height`."""
        for line, text in enumerate(reversed(_notice_lines(self.width))):
            self.text(MARGIN, self.height - MARGIN - _NOTICE_LINE * (line - 0.25), text, fontsize=7, color=MUTED)

    def probability(self, left: float, y: float, width: float, probability: float) -> None:
        """Write a probability as a number and a bar."""
        self.text(left, y, f"p {probability:.2f}")
        for share, colour in ((1.0, GRID), (probability, PALETTE[0])):
            if share > 0:
                axes = self.axes(left + 54, y - 4, (width - 54) * share, 8)
                axes.set_facecolor(colour)
                axes.set(xticks=[], yticks=[])
                axes.spines[:].set_visible(False)

    def to_image(self) -> Image.Image:
        """The picture, in RGB."""
        return to_image(self.figure)


@contextmanager
def new_canvas(width: int, height: int) -> Iterator[Canvas]:
    """An empty canvas in our style, in pixels."""
    with new_figure(width / DPI, height / DPI) as figure:
        yield Canvas(figure, width, height)


def heading_height(heading: str, below: str = "") -> int:
    """Pixels from the top of a canvas to the end of its heading."""
    return MARGIN + (24 if heading else 0) + (22 if below else 0)


def notice_height(width: int) -> int:
    """Pixels from the notice's top to the bottom of a canvas of some width."""
    return MARGIN + _NOTICE_LINE * len(_notice_lines(width))


def _notice_lines(width: int) -> list[str]:
    return textwrap.wrap(PICTURE_NOTICE, int((width - 2 * MARGIN) / _NOTICE_LETTER))


def shown_size(picture: np.ndarray, side: int = PICTURE_SIDE) -> tuple[int, int]:
    """Width and height, in pixels, at which a picture is shown.

    Args:
        picture: shape `(..., height, width)`.
        side: what the longer side should be, about: pictures grow by whole factors, larger ones shrink to it.
    """
    height, width = picture.shape[-2:]
    longer = max(height, width)
    factor = side / longer if longer > side else max(1, round(side / longer))
    return max(1, round(width * factor)), max(1, round(height * factor))


def grey(picture: np.ndarray) -> np.ndarray:
    """`(height, width)`: the mean over channels."""
    array = np.asarray(picture, dtype=np.float64)
    return array.mean(0) if array.ndim == 3 else array


def difference_limit(differences: Sequence[np.ndarray]) -> float:
    """One scale for several differences: the 99.5th percentile of their size, at least `MIN_DIFFERENCE_SCALE`."""
    size = np.concatenate([np.abs(difference).ravel() for difference in differences])
    return float(max(np.quantile(size, 0.995), MIN_DIFFERENCE_SCALE))


def picture_pixels(picture: np.ndarray) -> np.ndarray:
    """A picture in [0, 1], `(channels, height, width)` or `(height, width)`, as 8-bit RGB `(height, width, 3)`."""
    array = np.asarray(picture, dtype=np.float64)
    array = array[None] if array.ndim == 2 else array
    pixels = (array.clip(0, 1) * 255).round().astype(np.uint8).transpose(1, 2, 0)
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels


def difference_pixels(difference: np.ndarray, limit: float) -> np.ndarray:
    """A signed difference `(height, width)`, on the scale -limit to limit, as 8-bit RGB `(height, width, 3)`."""
    return map_pixels(np.asarray(difference) / (2 * limit) + 0.5, DIFFERENCE_COLOURS)


def map_pixels(values: np.ndarray, colours: str) -> np.ndarray:
    """Values in [0, 1], `(height, width)`, in the colours of a scale, as 8-bit RGB `(height, width, 3)`."""
    from matplotlib import colormaps

    return np.asarray(colormaps[colours](np.asarray(values), bytes=True))[..., :3]


def colour_gradient(colours: str) -> list[str]:
    """A scale of colours from its lower end to its upper one, as style sheets write them."""
    pixels = map_pixels(np.linspace(0, 1, _GRADIENT_STOPS)[None], colours)[0].tolist()
    return ["#" + bytes(colour).hex() for colour in pixels]


def show_picture(axes: Any, picture: np.ndarray) -> None:
    """Show a picture in [0, 1], grey or colour."""
    axes.imshow(picture_pixels(picture), interpolation=_INTERPOLATION)
    axes.axis("off")


def show_map(axes: Any, values: np.ndarray, colours: str, low: float, high: float) -> Any:
    """Show `(height, width)` values in colours, framed; returns what a colour bar needs."""
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(visible=True, color=GRID)
    return axes.imshow(values, cmap=colours, vmin=low, vmax=high, interpolation=_INTERPOLATION)


def show_difference(axes: Any, difference: np.ndarray, limit: float) -> Any:
    """Show a signed difference `(height, width)`; returns what a colour bar needs."""
    return show_map(axes, difference, DIFFERENCE_COLOURS, -limit, limit)


def difference_bar(figure: Any, shown: Any, axes: Any, orientation: str = "vertical") -> None:
    """The colour bar of a difference."""
    limit = shown.norm.vmax
    colour_bar(
        figure, shown, axes, {-limit: f"−{limit:.2f}\ndarker", 0: "0", limit: f"+{limit:.2f}\nbrighter"}, orientation
    )


def colour_bar(figure: Any, shown: Any, axes: Any, ticks: Mapping[float, str], orientation: str = "vertical") -> None:
    """A colour bar with the given ticks: `{value: text}`."""
    bar = figure.colorbar(shown, cax=axes, orientation=orientation)
    bar.set_ticks(list(ticks), labels=list(ticks.values()))
    bar.ax.tick_params(labelsize=7.5, length=0)
    bar.outline.set_visible(False)


def draw_boxes(axes: Any, boxes: Sequence[Mapping[str, float]], picture: np.ndarray) -> None:
    """Draw boxes `{"x", "y", "width", "height"}`, in relative units, over a picture `(..., height, width)`."""
    from matplotlib.patches import Rectangle

    height, width = np.asarray(picture).shape[-2:]
    for box in boxes:
        corner = (box["x"] * width - 0.5, box["y"] * height - 0.5)
        axes.add_patch(
            Rectangle(
                corner,
                box["width"] * width,
                box["height"] * height,
                fill=False,
                edgecolor=BOX_COLOUR,
                linewidth=1.2,
                path_effects=_halo(2.2),
            )
        )


def draw_region(axes: Any, region: np.ndarray | None) -> None:
    """Outline a region `(height, width)` along its pixels' edges; None draws nothing."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    if region is None:
        return
    edges = region_edges(region) - 0.5
    path = Path(edges.reshape(-1, 2), [Path.MOVETO, Path.LINETO] * len(edges))
    axes.add_patch(PathPatch(path, fill=False, edgecolor=REGION_COLOUR, linewidth=1.2, path_effects=_halo(2.2)))


def region_edges(region: np.ndarray) -> np.ndarray:
    """The edges between the inside of a region and its outside.

    Args:
        region: shape `(height, width)`; inside is all that may be edited, however little: true, or above 0.

    Returns:
        Lines of one pixel's length, shape `(num, 2, 2)`: both ends as (x, y), in pixels from the top left corner.
    """
    inside = np.pad(np.asarray(region) > 0, 1)
    top, left = np.nonzero(inside[1:-1, 1:] != inside[1:-1, :-1])
    vertical = np.stack([np.stack([left, top], 1), np.stack([left, top + 1], 1)], 1)
    top, left = np.nonzero(inside[1:, 1:-1] != inside[:-1, 1:-1])
    horizontal = np.stack([np.stack([left, top], 1), np.stack([left + 1, top], 1)], 1)
    return np.concatenate([vertical, horizontal])


def _halo(width: float) -> list[Any]:
    """A dark rim that keeps a line visible on bright and dark ground."""
    from matplotlib.patheffects import Normal, Stroke

    return [Stroke(linewidth=width, foreground="#00000080"), Normal()]
