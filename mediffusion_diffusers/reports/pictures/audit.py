"""Where counterfactuals of many images change them: a map beside the mean image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from ...audit.audit import AuditedLabel
from ...audit.places import places_of_change
from .drawing import MUTED, draw_boxes, grey, new_figure, show_picture, to_image
from .figures import PanelRow, panel


_NUM_EXAMPLES = 5


def change_map(audited: AuditedLabel, places: Sequence[Mapping[str, float]]) -> Image.Image:
    """The mean image, and how the changes' energy is spread over it.

    Args:
        audited: counterfactuals of one finding.
        places: boxes to draw, in relative units.
    """
    mean = audited.counterfactuals.originals.mean(0)
    energy = audited.energies.mean(0)
    with new_figure(6.2, 2.9) as figure:
        for place, title in enumerate(("Mean image", "Where counterfactuals change it")):
            axes = figure.add_axes((0.02 + 0.46 * place, 0.03, 0.42, 0.86))
            show_picture(axes, mean)
            if place:
                # The root spreads weak changes over more of the scale; what does not change stays transparent.
                size = np.sqrt(energy / max(energy.max(), 1e-12))
                axes.imshow(size, cmap="inferno", vmin=0, vmax=1, alpha=np.clip(1.5 * size, 0, 1))
                draw_boxes(axes, places, grey(mean))
            figure.text(0.02 + 0.46 * place, 0.94, title, fontsize=9, color=MUTED, va="center")
        return to_image(figure)


def example_panel(audited: AuditedLabel) -> Image.Image:
    """The first counterfactuals, with the places that the audit names in each."""
    made = audited.counterfactuals
    rows = [
        PanelRow(
            *(audited.label, "removed", made.originals[row], made.images[row], made.null_images[row]),
            (float(made.own.before[row, made.targets[row]]), float(made.own.after[row, made.targets[row]])),
            boxes=[place.box for place in places_of_change(audited.energies[row])],
        )
        for row in range(min(_NUM_EXAMPLES, len(made)))
    ]
    return panel(rows)
