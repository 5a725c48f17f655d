"""What each click on the page does: from the values of its fields to the HTML that it shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..evaluation.provenance import loaded_checkpoint_hash
from ..pipelines import MediffusionCounterfactualPipeline
from ..reports.pictures.explained_image import ExplainedImage
from . import answers, blocks, files
from .answers import Answer, OnProgress, OpenedImage, no_progress
from .edit_request import EditRequest


NO_IMAGE = "Pick an example or drop an image first."
NO_ANSWER = "Explain an image first."
NO_DICOM = "DICOM files are not offered"


@dataclass(frozen=True)
class Example:
    """An image that the page offers.

    Args:
        name: what to call it; everybody who opens the page reads it.
        image: what the pipelines take: a PIL image, or an array or tensor in [0, 1].
    """

    name: str
    image: Any


class Desk:
    """A pipeline and its examples behind the page; several threads may use it at the same time.

    Args:
        pipe: the pipeline.
        examples: images to begin with.

    Raises:
        ValueError: for an example that is no image.
    """

    def __init__(self, pipe: MediffusionCounterfactualPipeline, examples: Sequence[Example] = ()):
        self.pipe = pipe
        self.examples = [answers.open_given(example.image, pipe, example.name) for example in examples]

    def open_example(self, index: int) -> tuple[OpenedImage, str, list[str], list[str]]:
        """The image, its scores as HTML, and the findings to ask for first, to remove and to add."""
        return self._opened(self.examples[index])

    def open_file(self, path: str | Path) -> tuple[OpenedImage, str, list[str], list[str]]:
        """As `open_example`, of a file that is deleted at once.

        Raises:
            ValueError: for a file that is no single picture.
            ImportError: for DICOM without pydicom.
        """
        try:
            return self._opened(answers.open_upload(path, self.pipe))
        finally:
            Path(path).unlink(missing_ok=True)

    def explain(
        self, opened: OpenedImage | None, fields: Mapping[str, Any], on_progress: OnProgress = no_progress
    ) -> tuple[Answer, str, str]:
        """The answer, and it and its controls as HTML.

        Args:
            opened: the image.
            fields: of an `EditRequest`.
            on_progress: see `OnProgress`.

        Raises:
            ValueError: without an image, or for what cannot be asked.
        """
        if opened is None:
            raise ValueError(NO_IMAGE)
        answer = answers.explain(opened, EditRequest(**fields), self.pipe, on_progress)
        return answer, blocks.answer_block(answer), blocks.controls_block(answer)

    def sweep(self, answer: Answer | None, on_progress: OnProgress = no_progress) -> tuple[list[ExplainedImage], str]:
        """The explained images with their sweeps, and these as HTML.

        Raises:
            ValueError: without an answer.
        """
        explained = answers.sweep(_given(answer), self.pipe, on_progress)
        return explained, blocks.sweep_block(explained)

    def agree(self, answer: Answer | None, on_progress: OnProgress = no_progress) -> str:
        """Agreement over several noises as HTML.

        Raises:
            ValueError: without an answer.
        """
        answer = _given(answer)
        return blocks.agreement_block(answer, answers.agree(answer, self.pipe, on_progress=on_progress))

    def downloads(self, answer: Answer | None, explained: Sequence[ExplainedImage] | None) -> str:
        """Links to the files, with the sweep where there is one.

        DICOM files are left out, and it is said why, where they cannot be written.

        Raises:
            ValueError: without an answer.
        """
        answer = _given(answer)
        explained = explained or answer.explained
        dicom, notes = self.dicom_files(answer, explained)
        made = [files.page_file(answer, explained), *files.panel_files(explained), *dicom]
        return blocks.downloads_block(made, notes)

    def dicom_files(
        self, answer: Answer, explained: Sequence[ExplainedImage]
    ) -> tuple[list[files.DownloadFile], list[str]]:
        """DICOM files, or none and the reason."""
        if answer.opened.source.names_patient:
            return [], [f"{NO_DICOM}: the given file says that its pixels name the patient."]
        try:
            return files.dicom_files(answer, explained, self.checkpoint_hash), []
        except (ValueError, ImportError) as error:
            return [], [f"{NO_DICOM}: {error}"]

    @cached_property
    def checkpoint_hash(self) -> str:
        """Of the weights.

        Raises:
            ValueError: if the pipeline was made of components.
        """
        return loaded_checkpoint_hash(self.pipe)

    def _opened(self, opened: OpenedImage) -> tuple[OpenedImage, str, list[str], list[str]]:
        return opened, blocks.opened_block(opened), *opened.suggested


def _given(answer: Answer | None) -> Answer:
    if answer is None:
        raise ValueError(NO_ANSWER)
    return answer
