"""The picture of an explanation as a Secondary Capture Image (PS3.3 A.8.1), with its notice in the pixels."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ..notices import BURNT_IN_NOTICE, PICTURE_NOTICE
from ..reports.pictures.drawing import new_canvas
from ..reports.pictures.explained_image import ExplainedImage
from ..reports.pictures.explanations import explanation_panel
from ..version import __version__
from .source import Source, new_uid
from .texts import MANUFACTURER, MODEL_NAME, long_string, short_text


if TYPE_CHECKING:
    from highdicom.sc import SCImage


SERIES_NUMBER = 9001  # beyond those that devices count from 1; type 2 in DICOM, so any will do
_BANNER_HEIGHT, _BANNER_COLOUR = 64, "#7f1d1d"


def burnt_in_panel(explained: ExplainedImage) -> Image.Image:
    """The panel of an explanation below a banner that says what it is for; without the image's name.

    Args:
        explained: the image, its counterfactual and controls.

    Returns:
        An RGB picture.
    """
    panel = explanation_panel(replace(explained, name=""))
    with new_canvas(panel.width, _BANNER_HEIGHT) as canvas:
        canvas.figure.set_facecolor(_BANNER_COLOUR)
        style = {"ha": "center", "color": "white"}
        for text, y, size in zip(BURNT_IN_NOTICE, (24, 48), (16, 9), strict=True):
            canvas.text(panel.width / 2, y, text, 0.95 * panel.width, fontsize=size, fontweight="bold", **style)
        banner = canvas.to_image()
    return Image.fromarray(np.concatenate([np.asarray(banner), np.asarray(panel)]))


def panel_dataset(explained: ExplainedImage, checkpoint: str, source: Source) -> SCImage:
    """A Secondary Capture of the panel, in a series of its own; without the source's patient yet.

    Args:
        explained: the image, its counterfactual and controls.
        checkpoint: hash of the weights.
        source: of the image.
    """
    from highdicom import ContributingEquipment
    from highdicom.sc import SCImage
    from highdicom.sr import CodedConcept
    from pydicom import Dataset
    from pydicom.sr.codedict import codes

    dataset = SCImage(
        pixel_array=np.asarray(burnt_in_panel(explained)),
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=("L", "F"),  # asked for here; emptied below: a panel has none (type 2C)
        series_instance_uid=new_uid(),
        series_number=SERIES_NUMBER,
        sop_instance_uid=new_uid(),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=MODEL_NAME,
        software_versions=__version__,
        series_description=long_string(f"{BURNT_IN_NOTICE[0]}: {explained.heading}"),
        specific_character_set="ISO_IR 192",
        contributing_equipment=[
            ContributingEquipment(
                MANUFACTURER,
                codes.DCM.ProcessingEquipment,
                manufacturer_model_name=MODEL_NAME,
                software_versions=[__version__],
                contribution_description=short_text(f"Counterfactual explanation by checkpoint {checkpoint}"),
            )
        ],
        **source.study(),
    )
    dataset.PatientOrientation, dataset.Laterality = [], ""
    dataset.ConversionType = "WSD"  # made on a workstation, not captured from a device
    dataset.DerivationDescription = short_text(
        f"{explained.heading}: original, counterfactual and controls of a joint diffusion model, with signed "
        f"differences. {PICTURE_NOTICE}"
    )
    source.describe_pixels(dataset)
    for reference in source.references():
        item = Dataset()
        item.ReferencedSOPClassUID = reference.SOPClassUID
        item.ReferencedSOPInstanceUID = reference.SOPInstanceUID
        item.PurposeOfReferenceCodeSequence = [
            CodedConcept.from_code(codes.DCM.SourceImageForImageProcessingOperation)
        ]
        dataset.SourceImageSequence = [item]
    return dataset
