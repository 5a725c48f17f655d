"""Explanations as DICOM files: a picture of the panel, and a structured report with its numbers."""

from .explanation import ExplanationFiles, write_explanation_dicom
from .source import Source


__all__ = ["ExplanationFiles", "Source", "write_explanation_dicom"]
