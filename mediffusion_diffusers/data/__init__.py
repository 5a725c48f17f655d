"""Datasets: one contract for many sources, labelled shares drawn from them, and the transforms that read them."""

from .pictures import encode_picture, encode_png, open_picture
from .schema import DatasetInfo, features, label_matrix, load_info, load_prepared, make_row
from .summary import format_summary, summarize_prepared
from .transforms import ImageTransform
from .writer import ConversionReport, write_prepared


__all__ = [
    "ConversionReport",
    "DatasetInfo",
    "ImageTransform",
    "encode_picture",
    "encode_png",
    "features",
    "format_summary",
    "label_matrix",
    "load_info",
    "load_prepared",
    "make_row",
    "open_picture",
    "summarize_prepared",
    "write_prepared",
]
