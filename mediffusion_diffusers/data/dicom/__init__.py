"""DICOM files as pictures: tags read with patience, grey scales as the standard says, one boundary per file."""

from .file import check_single_grey_frame, may_be_dicom, read_dicom, read_header
from .grey_scale import GreyScale
from .identity import describing_metadata, tells_who, without_warnings
from .tags import tag_text, tag_value
from .window import Window, apply_window


__all__ = [
    "GreyScale",
    "Window",
    "apply_window",
    "check_single_grey_frame",
    "describing_metadata",
    "may_be_dicom",
    "read_dicom",
    "read_header",
    "tag_text",
    "tag_value",
    "tells_who",
    "without_warnings",
]
