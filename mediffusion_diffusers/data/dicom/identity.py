"""What the tags of a DICOM file say of the person, whether a text repeats any of it, and how warnings do not."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .tags import tag_text, tag_value


if TYPE_CHECKING:
    from pydicom import Dataset


_IDENTIFYING_TAGS = (
    *("PatientID", "OtherPatientIDs", "PatientBirthDate", "AccessionNumber", "StudyID", "StudyDate", "SeriesDate"),
    *("AcquisitionDate", "ContentDate", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"),
)
_NAME_TAGS = ("PatientName", "OtherPatientNames", "ReferringPhysicianName", "PerformingPhysicianName")
# Tags that describe the picture and not the person.
_DESCRIBING_TAGS = {"modality": "Modality", "view": "ViewPosition", "body_part": "BodyPartExamined"}
_CODE = re.compile(r"[\w .+/-]{1,16}")  # a code string (VR CS), with lower-case letters as some devices write them
# Where Python says that a warning of pydicom comes from: its own modules, or those that called it.
_WARNING_MODULES = r"pydicom|highdicom|mediffusion_diffusers\.(data\.dicom|dicom_export)"


@contextmanager
def without_warnings() -> Iterator[None]:
    """Keep pydicom's warnings from console and logs, as they quote the values that they warn of."""
    logger, silence = logging.getLogger("pydicom"), logging.Filter("nothing of pydicom")  # one each: calls are nested
    logger.addFilter(silence)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=_WARNING_MODULES)
            yield
    finally:
        logger.removeFilter(silence)


def tells_who(header: Dataset, text: str) -> bool:
    """Whether a text, such as the path of a file, repeats an identifier, a date or part of a name from its tags.

    Values of up to three characters count only where they stand alone: the patient "1" is in "1/IM2", not in "IM1".
    """
    values = {tag_text(header, tag) for tag in _IDENTIFYING_TAGS}
    for tag in _NAME_TAGS:
        values |= set(re.split(r"[\W_]+", str(tag_value(header, tag) or "")))
    for value in filter(None, values):
        pattern = re.escape(value)
        if len(value) <= 3:
            pattern = rf"(?<![^\W_]){pattern}(?![^\W_])"
        if re.search(pattern, text, flags=re.IGNORECASE):
            return True
    return False


def describing_metadata(header: Dataset) -> dict[str, str]:
    """Modality, view and body part: the only tags that are kept, as far as they hold a code and not free text."""
    values = {key: tag_text(header, tag) for key, tag in _DESCRIBING_TAGS.items()}
    return {key: value for key, value in values.items() if _CODE.fullmatch(value) and not tells_who(header, value)}
