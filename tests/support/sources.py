"""Small files in the official formats of the data sources, drawn at random."""

from pathlib import Path

import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid


CHEST_HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)
ISIC_HEADER = "image,MEL,NV,BCC,AK,BKL,DF,VASC,SCC,UNK"


def random_picture(seed, size=(16, 16), mode="L"):
    """A noise picture of mode L, RGB, RGBA or I;16."""
    rng = np.random.default_rng(seed)
    height, width = size[1], size[0]
    if mode == "I;16":
        return Image.fromarray(rng.integers(0, 65536, (height, width), dtype=np.uint16))
    bands = {"L": (), "RGB": (3,), "RGBA": (4,)}[mode]
    array = rng.integers(0, 256, (height, width, *bands), dtype=np.uint8)
    if mode == "RGBA":
        array[..., 3] = 255
    return Image.fromarray(array)


def write_chestxray14(folder, rows, test_patients=(), boxes=(), header=CHEST_HEADER, images=True):
    """Write the official ChestX-ray14 files.

    `rows`: `(patient, follow_up, findings)` or a longer tuple with age and sex; `boxes`: lines of the box list.
    """
    folder = Path(folder)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    lines, train, test = [header], [], []
    for index, (patient, follow_up, findings, *rest) in enumerate(rows):
        age, sex = (*rest, *("058", "F")[len(rest) :])
        name = f"{patient:08d}_{follow_up:03d}.png"
        lines.append(f"{name},{findings},{follow_up},{patient},{age},{sex},PA,2500,2048,0.168,0.168")
        (test if patient in test_patients else train).append(name)
        if images:
            random_picture(index).save(folder / "images" / name)
    (folder / "Data_Entry_2017_v2020.csv").write_text("\n".join(lines) + "\n")
    (folder / "train_val_list.txt").write_text("\n".join(train))
    (folder / "test_list.txt").write_text("\n".join(test))
    (folder / "BBox_List_2017.csv").write_text("\n".join(["Image Index,Finding Label,Bbox [x,y,w,h],,,", *boxes]))
    return folder


def write_isic2019(folder, rows, unlabelled=()):
    """Write the official ISIC 2019 files. `rows`: `(image, diagnosis, lesion)`; `unlabelled`: `(image, lesion)`."""
    folder = Path(folder)
    pictures = folder / "ISIC_2019_Training_Input"
    pictures.mkdir(parents=True)
    names = ISIC_HEADER.split(",")[1:]
    labels, metadata = [ISIC_HEADER], ["image,age_approx,anatom_site_general,lesion_id,sex"]
    for image, diagnosis, lesion in rows:
        labels.append(",".join([image, *("1.0" if name == diagnosis else "0.0" for name in names)]))
        metadata.append(f"{image},45.0,back,{lesion},female")
    metadata += [f"{image},,,{lesion}," for image, lesion in unlabelled]
    for index, image in enumerate([row[0] for row in (*rows, *unlabelled)]):
        random_picture(index, (20, 16), "RGB").save(pictures / f"{image}.jpg")
    (folder / "ISIC_2019_Training_GroundTruth.csv").write_text("\n".join(labels))
    (folder / "ISIC_2019_Training_Metadata.csv").write_text("\n".join(metadata))
    return folder


def write_medmnist(path, num_labels=1, num_classes=2, colour=False, **replace):
    """Write a MedMNIST file of 6, 4 and 4 images; `replace` overrides arrays, None drops them."""
    rng = np.random.default_rng(0)
    arrays = {}
    for key, count in (("train", 6), ("val", 4), ("test", 4)):
        arrays[f"{key}_images"] = rng.integers(0, 256, (count, 28, 28, *((3,) if colour else ())), dtype=np.uint8)
        labels = rng.integers(0, num_classes, (count, num_labels))
        labels[0] = num_classes - 1
        arrays[f"{key}_labels"] = labels.astype(np.uint8)
    arrays.update(replace)
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    return Path(path)


def write_dicom(path, pixels, syntax=ExplicitVRLittleEndian, **tags):
    """Write an uncompressed DICOM file with the pixels of an array; `tags` are set as given."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = syntax
    dataset = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dataset.Modality, dataset.PatientName, dataset.PatientID = "CR", "Doe^Jane", "MRN-4711"
    dataset.PatientBirthDate, dataset.StudyDate = "19700101", "20200202"
    dataset.Rows, dataset.Columns = pixels.shape[-2:] if tags.get("SamplesPerPixel", 1) == 1 else pixels.shape[:2]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = pixels.dtype.itemsize * 8
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(np.issubdtype(pixels.dtype, np.signedinteger))
    dataset.PixelData = pixels.tobytes()
    for name, value in tags.items():
        setattr(dataset, name, value)
    pydicom.dcmwrite(path, dataset)
    return Path(path)
