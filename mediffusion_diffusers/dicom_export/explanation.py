"""One explained image written as DICOM: the panel and the report beside it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..atomic_files import new_file
from ..data.dicom import without_warnings
from ..output_folder import try_writing
from ..reports.pictures.explained_image import ExplainedImage
from .panel import panel_dataset
from .report import report_dataset
from .source import Source


_LONGEST_STEM = 200  # bytes; with the endings of both files well within what file systems take


@dataclass(frozen=True)
class ExplanationFiles:
    """The files of one explanation.

    Args:
        panel: a Secondary Capture Image.
        report: a Comprehensive SR, which refers to the panel.
    """

    panel: Path
    report: Path


@without_warnings()
def write_explanation_dicom(
    explained: ExplainedImage,
    output_dir: str | os.PathLike[str],
    checkpoint: str,
    settings: Mapping[str, Any] | None = None,
    *,
    stem: str = "explanation",
    source: str | os.PathLike[str] | Source | None = None,
    carry_over_identity: bool = False,
) -> ExplanationFiles:
    """Write an explanation as two DICOM files: the panel as a Secondary Capture, its numbers as a Structured Report.

    By default nothing of the patient is in them: patient and study are new and nameless, the image's name is left out
    of the panel, and no tag of the source is copied but how its pixels were compressed and whether they name anybody.
    With `carry_over_identity` both files become new series of the source's study, with its patient's and study's tags
    (private ones excepted), and refer to the source. Both say that they are for research use only, the panel in its
    pixels.

    Args:
        explained: the image, its counterfactual and controls, of
            [`~mediffusion_diffusers.reports.pictures.explained_output.explain_output`].
        output_dir: gets `STEM-panel.dcm` and `STEM-report.dcm`, both whole or neither; made if it is not there.
        checkpoint: hash of the weights, of
            [`~mediffusion_diffusers.evaluation.provenance.loaded_checkpoint_hash`].
        settings: that made the explanation, such as `output.settings_of(0)`.
        stem: how the files' names begin; it must not identify a person.
        source: the file that the image was read from, or what was kept of it (`Source.of_pixels`). A picture has no
            identity, a DICOM file keeps its own.
        carry_over_identity: whether the files belong to the patient and study of `source`.

    Returns:
        Paths of both.

    Raises:
        ValueError: for a stem that is no file name, no checkpoint, or a source that cannot give what is asked for or
            names the patient in its pixels.
        ImportError: if highdicom is not installed.

    Example:
        >>> output = pipe(open_image("chest.dcm"), away="Cardiomegaly")  # doctest: +SKIP
        >>> explained = explain_output(output, "Cardiomegaly", "removed")[0]  # doctest: +SKIP
        >>> write_explanation_dicom(explained, "out", checkpoint, output.settings_of(0))  # doctest: +SKIP
    """
    _check_highdicom()
    if not stem or Path(stem).name != stem or not stem.isprintable() or len(stem.encode()) > _LONGEST_STEM:
        raise ValueError(
            "`stem` must be the beginning of a file name, without folders and of at most "
            f"{_LONGEST_STEM} bytes, but got {stem[:_LONGEST_STEM]!r}."
        )
    if not checkpoint:
        raise ValueError("`checkpoint` must be a hash of the weights, but is empty. See `loaded_checkpoint_hash`.")
    origin = Source.of(source, carry_over_identity)
    panel = panel_dataset(explained, checkpoint, origin)
    report = report_dataset(explained, panel, checkpoint, settings or {}, origin)
    folder = try_writing(output_dir)
    files = ExplanationFiles(folder / f"{stem}-panel.dcm", folder / f"{stem}-report.dcm")
    with new_file(files.report) as report_aside, new_file(files.panel) as panel_aside:
        for dataset, aside in ((panel, panel_aside), (report, report_aside)):
            origin.save(dataset, aside)
    return files


def _check_highdicom() -> None:
    try:
        import highdicom  # noqa: F401
    except ImportError as error:
        raise ImportError('Writing DICOM needs highdicom: pip install "mediffusion-diffusers[dicom]".') from error
