"""Datasets: one contract for many sources, labelled shares drawn from them, and the transforms that read them."""

from .dicom import read_dicom
from .pictures import encode_picture, encode_png, open_image, open_picture
from .schema import DatasetInfo, features, label_matrix, load_info, load_prepared, make_row
from .sources.chestxray14 import convert_chestxray14
from .sources.dicom_folder import convert_dicom
from .sources.hub_dataset import convert_dataset, convert_hub_dataset
from .sources.image_folder import convert_image_folder
from .sources.isic2019 import convert_isic2019
from .sources.medmnist import convert_medmnist
from .sources.table_rows import ColumnNames
from .splits import LabelledSplit, draw_labelled_split, limit_by_patient, patient_validation_split
from .summary import format_summary, summarize_prepared
from .transforms import ImageTransform
from .writer import ConversionReport, write_prepared


__all__ = [
    "ColumnNames",
    "ConversionReport",
    "DatasetInfo",
    "ImageTransform",
    "LabelledSplit",
    "convert_chestxray14",
    "convert_dataset",
    "convert_dicom",
    "convert_hub_dataset",
    "convert_image_folder",
    "convert_isic2019",
    "convert_medmnist",
    "draw_labelled_split",
    "encode_picture",
    "encode_png",
    "features",
    "format_summary",
    "label_matrix",
    "limit_by_patient",
    "load_info",
    "load_prepared",
    "make_row",
    "open_image",
    "open_picture",
    "patient_validation_split",
    "read_dicom",
    "summarize_prepared",
    "write_prepared",
]
