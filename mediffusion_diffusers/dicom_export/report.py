"""The numbers of an explanation as a Structured Report: a Measurement Report (PS3.16 TID 1500) of one finding."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ..notices import PAGE_NOTICE
from ..privacy import is_local_path, without_tokens
from ..reports.pictures.explained_image import ExplainedImage
from ..version import __version__
from .panel import SERIES_NUMBER
from .source import Source, new_uid
from .texts import MANUFACTURER, MODEL_NAME, long_string


if TYPE_CHECKING:
    from highdicom.sc import SCImage
    from highdicom.sr import AlgorithmIdentification, CodedConcept, ComprehensiveSR, MeasurementReport


# Findings are a model's own labels and no terms of a terminology, so they stand in a scheme of our own (PS3.16 8.2).
CODING_SCHEME = "99MEDIFFUSION"
# Value and meaning of what is measured of every changed picture, by its name in pictures.
_PROBABILITIES = {
    "Original": ("P_ORIGINAL", "Probability in the original"),
    "Counterfactual": ("P_COUNTERFACT", "Probability in the counterfactual"),
    "Null edit": ("P_NULL_EDIT", "Probability in the null edit"),
    "Plain gradient": ("P_GRADIENT", "Probability after the plain gradient"),
    "Random noise": ("P_NOISE", "Probability after random noise"),
}
_CHANGES = {
    "Counterfactual": ("L1_COUNTERFACT", "Mean absolute change of the counterfactual"),
    "Null edit": ("L1_NULL_EDIT", "Mean absolute change of the null edit"),
}


def report_dataset(
    explained: ExplainedImage, panel: SCImage, checkpoint: str, settings: Mapping[str, Any], source: Source
) -> ComprehensiveSR:
    """A Structured Report beside a panel, in a series of its own in the same study; with the panel's patient.

    It holds the finding, what was done to it, its probabilities before and after, the sizes (L1) of the changes, and,
    as the algorithm's parameters, checkpoint and settings. It is preliminary and unverified, and says its use.

    Args:
        explained: the image, its counterfactual and controls.
        panel: of `panel_dataset`; the report refers to it.
        checkpoint: hash of the weights.
        settings: of the call; local paths, access tokens and what is not set are left out.
        source: of the image; the report refers to it if its identity is carried over.
    """
    from highdicom.coding_schemes import CodingSchemeIdentificationItem
    from highdicom.sr import ComprehensiveSR

    return ComprehensiveSR(
        evidence=[panel, *source.references()],
        content=_measurement_report(explained, panel, checkpoint, settings, source),
        series_instance_uid=new_uid(),
        series_number=SERIES_NUMBER + 1,
        sop_instance_uid=new_uid(),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=MODEL_NAME,
        software_versions=__version__,
        device_serial_number=long_string(checkpoint),
        series_description=panel.SeriesDescription,
        is_complete=True,
        is_final=False,
        is_verified=False,
        coding_schemes=[
            CodingSchemeIdentificationItem(
                CODING_SCHEME, name="Labels and measurements of mediffusion-diffusers", version=__version__
            )
        ],
    )


def _measurement_report(
    explained: ExplainedImage, panel: SCImage, checkpoint: str, settings: Mapping[str, Any], source: Source
) -> MeasurementReport:
    """The content tree: TID 1500 with one measurement group (TID 1501), and the notice as a comment."""
    from highdicom import sr
    from pydicom.sr.codedict import codes

    observer = sr.DeviceObserverIdentifyingAttributes(
        uid=_checkpoint_uid(checkpoint),
        name=MODEL_NAME,
        manufacturer_name=MANUFACTURER,
        model_name=MODEL_NAME,
        serial_number=checkpoint,
    )
    group = sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(uid=new_uid(), identifier=long_string(explained.heading)),
        finding_type=_own_code(explained.label, explained.label),
        algorithm_id=_algorithm(checkpoint, settings),
        measurements=[
            sr.Measurement(name=_own_code(*name), value=value, unit=codes.UCUM.NoUnits)
            for name, value in _measured(explained)
        ],
        qualitative_evaluations=[
            sr.QualitativeEvaluation(
                _own_code("EDIT", "Edit of the finding"), _own_code(explained.action.upper(), explained.action)
            )
        ],
        source_images=[
            sr.SourceImageForMeasurementGroup(image.SOPClassUID, image.SOPInstanceUID)
            for image in (panel, *source.references())
        ],
    )
    report = sr.MeasurementReport(
        observation_context=sr.ObservationContext(
            observer_device_context=sr.ObserverContext(
                observer_type=codes.DCM.Device, observer_identifying_attributes=observer
            )
        ),
        procedure_reported=codes.SCT.ImagingProcedure,
        imaging_measurements=[group],
    )
    report[0].ContentSequence.append(
        sr.TextContentItem(name=codes.DCM.Comment, value=PAGE_NOTICE, relationship_type="CONTAINS")
    )
    return report


def _measured(explained: ExplainedImage) -> Iterator[tuple[tuple[str, str], float]]:
    """Value and meaning of a code, and the number that it names."""
    changed = explained.changed()
    for name, image in [("Original", explained.original), *changed]:
        yield _PROBABILITIES[name], float(image.probability)
    for name, image in changed:
        if name in _CHANGES:
            yield _CHANGES[name], explained.change_size(image)


def _algorithm(checkpoint: str, settings: Mapping[str, Any]) -> AlgorithmIdentification:
    """Name, version and parameters (PS3.16 TID 4019)."""
    from highdicom.sr import AlgorithmIdentification

    public = {
        name: value for name, value in settings.items() if value not in (None, "") and not is_local_path(str(value))
    }
    parameters = {"checkpoint": checkpoint, **public}
    return AlgorithmIdentification(
        name=MODEL_NAME,
        version=__version__,
        parameters=[without_tokens(f"{name} = {value}") for name, value in parameters.items()],
        manufacturer=MANUFACTURER,
    )


def _own_code(value: str, meaning: str) -> CodedConcept:
    from highdicom.sr import CodedConcept

    return CodedConcept(long_string(value), CODING_SCHEME, long_string(meaning))


def _checkpoint_uid(checkpoint: str) -> str:
    """A UID of the observing device: the same for the same weights (PS3.5 B.2, name-based)."""
    return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, f'{MANUFACTURER}/{checkpoint}').int}"
