"""What can be taken away from the page: files as bytes, without the name of a file or person."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..data.pictures import encode_png
from ..dicom_export import write_explanation_dicom
from ..reports.pages.explanations import explanation_report
from ..reports.pictures.explained_image import ExplainedImage
from ..reports.pictures.explanations import explanation_panel
from .answers import Answer


@dataclass(frozen=True)
class DownloadFile:
    """A file to take away.

    Args:
        name: of the file.
        text: what it is.
        content: its bytes.
    """

    name: str
    text: str
    content: bytes


def page_file(answer: Answer, explained: Sequence[ExplainedImage]) -> DownloadFile:
    """The page with sliders.

    Args:
        answer: the answer.
        explained: its explained images, with a sweep if there is one.
    """
    report = explanation_report(explained, subtitle=answer.heading, provenance=provenance(answer))
    text = "Page with sliders (HTML, works offline)"
    return DownloadFile("explanation.html", text, report.render().encode())


def panel_files(explained: Sequence[ExplainedImage]) -> list[DownloadFile]:
    """A panel with the controls for each finding."""
    panels = [(f"Panel: {one.heading} (PNG)", encode_png(explanation_panel(one))) for one in explained]
    return [DownloadFile(f"panel-{number}.png", *panel) for number, panel in enumerate(panels, start=1)]


def dicom_files(answer: Answer, explained: Sequence[ExplainedImage], checkpoint: str) -> list[DownloadFile]:
    """Secondary Capture and Structured Report of each finding, of a new and nameless patient.

    Args:
        answer: the answer.
        explained: its explained images.
        checkpoint: hash of the weights.

    Raises:
        ImportError: if highdicom is not installed.
    """
    files, settings, source = [], answer.output.settings_of(0), answer.opened.source
    for number, one in enumerate(explained, start=1):
        with tempfile.TemporaryDirectory() as folder:
            stem = f"explanation-{number}"
            written = write_explanation_dicom(one, folder, checkpoint, settings, stem=stem, source=source)
            for path, what in ((written.panel, "Panel"), (written.report, "Structured Report")):
                text = f"{what}: {one.heading} (DICOM)"
                files.append(DownloadFile(path.name, text, path.read_bytes()))
    return files


def provenance(answer: Answer) -> dict[str, Any]:
    """What another needs to make the answer again."""
    asked = {"removed": ", ".join(answer.request.remove), "added": ", ".join(answer.request.add)}
    return {**{name: labels for name, labels in asked.items() if labels}, **answer.output.settings_of(0)}
