"""A phantom as a DICOM file, for whatever reads radiographs. Needs pydicom."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image
from pydicom import Dataset, FileDataset, dcmwrite
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian, generate_uid


_BITS = 12
_STEP = 2 ** (_BITS - 8)  # stored values per grey level of 8 bits


def dicom_bytes(name: str, image: Image.Image) -> bytes:
    """Write a grey picture as a computed radiograph (CR Image IOD, PS3.3 A.2); the same file every time.

    Its window spans the grey levels of 8 bits, so that a reader which applies it gets the picture back.

    Args:
        name: of the patient, who is invented.
        image: a picture of mode "L".
    """
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = ComputedRadiographyImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[name, "instance"])
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID = meta.MediaStorageSOPClassUID
    dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    _describe(dataset, name)
    _set_pixels(dataset, np.asarray(image, dtype=np.uint16) * _STEP)
    buffer = io.BytesIO()
    dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


def _describe(dataset: Dataset, name: str) -> None:
    """Patient, study, series and equipment; what is not known of a phantom stays empty where the standard allows."""
    dataset.PatientName, dataset.PatientID = f"Phantom^{name}", name
    dataset.PatientBirthDate = dataset.PatientSex = ""
    dataset.StudyInstanceUID = generate_uid(entropy_srcs=[name, "study"])
    dataset.SeriesInstanceUID = generate_uid(entropy_srcs=[name, "series"])
    dataset.StudyDate = dataset.StudyTime = dataset.StudyID = dataset.AccessionNumber = ""
    dataset.ReferringPhysicianName = dataset.Manufacturer = ""
    dataset.StudyDescription = "Chest phantom: drawn, no person was imaged"
    dataset.Modality, dataset.BodyPartExamined, dataset.ViewPosition = "CR", "CHEST", "PA"
    dataset.SeriesNumber = dataset.InstanceNumber = 1
    dataset.PatientOrientation = ["L", "F"]
    dataset.ImageType = ["ORIGINAL", "PRIMARY"]


def _set_pixels(dataset: Dataset, stored: np.ndarray) -> None:
    """Pixels with their window. `stored`: `(height, width)`, uint16."""
    dataset.Rows, dataset.Columns = stored.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, _BITS, _BITS - 1, 0
    largest = 255 * _STEP
    # PS3.3 C.11.2.1.2: y = (x - (centre - 0.5)) / (width - 1) + 0.5, from 0 at x = 0 to 1 at x = largest.
    dataset.WindowCenter, dataset.WindowWidth = largest / 2 + 0.5, largest + 1
    dataset.PixelData = stored.astype("<u2").tobytes()
