"""The file that an explained image was read from, and what of it may go into new files: by default nothing."""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.dicom import check_single_grey_frame, may_be_dicom, read_header, tag_text


if TYPE_CHECKING:
    from highdicom.base import SOPClass
    from pydicom import Dataset


_REFERENCE_TAGS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID", "SOPInstanceUID")
_PIXEL_TAGS = ("BurnedInAnnotation", "LossyImageCompression")
_IDENTITY_REMOVED = "Patient, study and series of the image not carried over"  # at most 64 characters


@dataclass(frozen=True, eq=False)
class Source:
    """What is known of the file that the image was read from.

    Args:
        header: its tags; None if it is no DICOM file, or none was given.
        carries_identity: whether new files belong to its patient and study.
    """

    header: Dataset | None = None
    carries_identity: bool = False

    @classmethod
    def of(cls, path: str | os.PathLike[str] | Source | None, carry_over_identity: bool) -> Source:
        """Read the tags of a file.

        Args:
            path: the file, if there is one, or what was kept of it.
            carry_over_identity: whether new files shall belong to its patient and study.

        Raises:
            ValueError: if the identity is asked for and there is none, or if it is not, but stands in the pixels.
            ImportError: for a DICOM file, if pydicom is not installed.
        """
        if path is None:
            if carry_over_identity:
                raise ValueError(
                    "`carry_over_identity=True` needs the DICOM file that the image was read from, but `source` is "
                    "None. Pass it, or leave the identity out."
                )
            return cls()
        if isinstance(path, Source):
            if carry_over_identity and not path.carries_identity:
                raise ValueError(
                    "`carry_over_identity=True` needs the DICOM file that the image was read from, but of `source` "
                    "only what it says of its pixels was kept. Pass the file, or leave the identity out."
                )
            path._check_pixels("The file")
            return path
        if not isinstance(path, (str, os.PathLike)):
            raise ValueError(f"`source` must be the path of a file, but got {type(path).__name__}.")
        if not Path(path).is_file():
            raise ValueError(
                f"The file {os.fspath(path)} does not exist. `source` must be what the image was read from."
            )
        if not may_be_dicom(path):
            if carry_over_identity:
                raise ValueError(
                    f"`carry_over_identity=True` needs a DICOM file, but `source` {os.fspath(path)} is none and has "
                    "no patient or study. Leave the identity out."
                )
            return cls()
        source = cls(read_header(path), carry_over_identity)
        source._check(os.fspath(path))
        return source

    @classmethod
    def of_pixels(cls, path: str | os.PathLike[str], name: str) -> Source:
        """What a file says of its pixels alone: of the rest, which may name the patient, nothing is kept.

        Args:
            path: the file; a picture says nothing.
            name: what to call it in errors.

        Raises:
            ValueError: for a DICOM file that cannot be read.
            ImportError: likewise, if pydicom is not installed.
        """
        if not may_be_dicom(path):
            return cls()
        from pydicom import Dataset

        header, kept = read_header(path, name), Dataset()
        for keyword in _PIXEL_TAGS:
            setattr(kept, keyword, tag_text(header, keyword).upper())
        return cls(kept)

    @property
    def names_patient(self) -> bool:
        """Whether the file says that its pixels name the patient."""
        return self.header is not None and self._burned_in() == "YES"

    def study(self) -> dict[str, Any]:
        """The study for new files, by argument of highdicom's classes: the source's, or a new one of nobody.

        The patient of a new study has an ID of its own, lest an archive take all of them for one person.
        """
        if self.header is not None and self.carries_identity:  # the rest follows in `save`
            return {"study_instance_uid": tag_text(self.header, "StudyInstanceUID")}
        now = datetime.now()
        return {
            "study_instance_uid": new_uid(),
            "study_id": "1",
            "study_date": now.date(),
            "study_time": now.time(),
            "patient_id": f"ANON-{secrets.token_hex(6)}",
            "patient_name": "Anonymous^Patient",
        }

    def references(self) -> list[Dataset]:
        """The source, as far as new files may refer to it: one data set of the UIDs that name it, or none."""
        from pydicom import Dataset

        if self.header is None or not self.carries_identity:
            return []
        reference = Dataset()
        for keyword in _REFERENCE_TAGS:
            setattr(reference, keyword, tag_text(self.header, keyword))
        return [reference]

    def describe_pixels(self, image: Dataset) -> None:
        """Say of an image that shows the source's pixels whether they name the patient, and if they were lossy."""
        if self.header is None:
            return
        if burned_in := self._burned_in():
            image.BurnedInAnnotation = burned_in
        if burned_in == "NO" and not self.carries_identity:  # that it is removed must hold for the pixels as well
            image.PatientIdentityRemoved = "YES"
            image.DeidentificationMethod = _IDENTITY_REMOVED
        if tag_text(self.header, "LossyImageCompression") == "01":
            image.LossyImageCompression = "01"

    def save(self, dataset: SOPClass, path: Path) -> None:
        """Write a new file, with the patient and study of the source if that was asked for.

        Raises:
            ValueError: if their tags are damaged; it quotes none of them.
        """
        if self.header is None or not self.carries_identity:
            dataset.save_as(path, enforce_file_format=True)
            return
        try:
            dataset.copy_patient_and_study_information(self.header)
            dataset.remove_private_tags()
            dataset.save_as(path, enforce_file_format=True)
        except OSError:
            raise
        except Exception:  # pydicom converts values when they are asked for, and raises what the bytes lead it to
            raise ValueError(
                "Patient and study of `source` cannot be carried over: their tags are damaged. Repair the file, or "
                "leave the identity out."
            ) from None

    def _burned_in(self) -> str:
        """`"YES"`, `"NO"`, or an empty text where the source does not tell."""
        assert self.header is not None
        value = tag_text(self.header, "BurnedInAnnotation").upper()
        return value if value in ("YES", "NO") else ""

    def _check(self, name: str) -> None:
        from pydicom.uid import UID

        assert self.header is not None
        check_single_grey_frame(self.header, name)
        if not self.carries_identity:
            self._check_pixels(name)
            return
        broken = [keyword for keyword in _REFERENCE_TAGS if not UID(tag_text(self.header, keyword)).is_valid]
        if broken:
            raise ValueError(
                f"{name} cannot hand its identity on: {', '.join(broken)} must be valid UIDs. Repair the file, or "
                "leave the identity out."
            )

    def _check_pixels(self, name: str) -> None:
        """Refuse pixels that name the patient where the new files shall not."""
        if self.names_patient and not self.carries_identity:
            raise ValueError(
                f"{name} names the patient in its pixels (BurnedInAnnotation is YES), and so would the picture of its "
                "explanation. Remove that from the pixels first, or ask for `carry_over_identity=True`."
            )


def new_uid() -> str:
    """A new UID that names nobody: under 2.25, from random bits (PS3.5 B.2)."""
    from pydicom.uid import generate_uid

    return generate_uid(prefix=None)
