"""Curves over the labelled share: own runs with their intervals, printed figures of others paler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from PIL import Image

from .drawing import INK, MUTED, PALETTE, new_figure, to_image


_MARKERS = ("s", "^", "v", "D", "x", "+", "P", "<", ">", "*")


@dataclass(frozen=True)
class Curve:
    """One method.

    Args:
        name: for the legend.
        points: (labelled share in percent, value), from the smallest share.
        ends: for each point the ends of its interval, or None; empty for none.
        is_printed: somebody else's figures: thin and grey, told apart by their marks.
        is_the_papers_own: of the printed ones the method that is made again: darker.
    """

    name: str
    points: Sequence[tuple[float, float]]
    ends: Sequence[tuple[float, float] | None] = field(default_factory=tuple)
    is_printed: bool = False
    is_the_papers_own: bool = False


def curves_by_share(curves: Sequence[Curve], title: str, below: str = "") -> Image.Image:
    """Draw them over the logarithm of the share.

    Args:
        curves: at least one.
        title: heading.
        below: a muted line below it.

    Raises:
        ValueError: without a curve.
    """
    if not curves:
        raise ValueError("`curves` must hold at least one.")
    shares = sorted({share for curve in curves for share, _ in curve.points})
    with new_figure(8.6, 4.4) as figure:
        axes = figure.add_axes((0.07, 0.12, 0.6, 0.7))
        printed = own = 0
        for curve in curves:
            x, y = ([point[axis] for point in curve.points] for axis in (0, 1))
            if curve.is_printed:
                marker = _MARKERS[printed % len(_MARKERS)]
                colour, width = (INK, 1.6) if curve.is_the_papers_own else (MUTED, 0.8)
                axes.plot(x, y, color=colour, marker=marker, markersize=4, linewidth=width, label=curve.name)
                printed += 1
                continue
            colour = PALETTE[own % len(PALETTE)]
            axes.plot(x, y, color=colour, marker="o", label=curve.name)
            for place, ends in zip(x, curve.ends, strict=False):
                if ends is not None:
                    axes.plot([place, place], ends, color=colour, linewidth=2, alpha=0.5)
            own += 1
        axes.set_xscale("log")
        axes.set_xticks(shares, [f"{share:g} %" for share in shares])
        axes.minorticks_off()
        axes.set_xlabel("labelled share")
        figure.text(0.02, 0.95, title, fontsize=11, fontweight="bold", va="center")
        figure.text(0.02, 0.89, below, fontsize=8, color=MUTED, va="center")
        figure.legend(*axes.get_legend_handles_labels(), loc="upper left", bbox_to_anchor=(0.68, 0.84), fontsize=8)
        return to_image(figure)
