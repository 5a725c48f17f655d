"""Explanations as DICOM files: a picture of the panel, and a structured report with its numbers."""

from .explanation import ExplanationFiles, write_explanation_dicom


__all__ = ["ExplanationFiles", "write_explanation_dicom"]
