"""Explanations as DICOM: what the files say, whom they name, and what becomes of both if one cannot be written."""

import shutil
import subprocess
import sys
import warnings

import highdicom
import numpy as np
import pydicom
import pytest
from pydicom.datadict import DicomDictionary
from support.components import tiny_scheduler, tiny_unet, tiny_vae
from support.explanations import explained_phantom
from support.sources import random_picture, write_dicom

from mediffusion_diffusers import MediffusionCounterfactualPipeline
from mediffusion_diffusers.data import open_image
from mediffusion_diffusers.dicom_export import ExplanationFiles, write_explanation_dicom
from mediffusion_diffusers.dicom_export.panel import burnt_in_panel
from mediffusion_diffusers.notices import PAGE_NOTICE
from mediffusion_diffusers.reports.pictures.explained_output import explain_output
from mediffusion_diffusers.reports.pictures.explanations import explanation_panel


CHECKPOINT = "0123456789abcdef"
SETTINGS = {
    "strength": 0.3,
    "guidance_scale": 10.0,
    "max_strength": None,
    "weights": "/home/me/weights",
    "mask": "auto",
}
PIXELS = np.arange(256, dtype=np.uint16).reshape(16, 16) * 16
# What a text, a date or a UID of the source is set to, by its value representation.
SENTINELS = {
    **dict.fromkeys(("AE", "CS", "LO", "LT", "SH", "ST", "UC", "UT"), "SENTINEL"),
    **{"PN": "SENTINEL^NAME", "DA": "19330317", "DT": "19330317", "TM": "031733", "UI": "1.2.999.4711", "AS": "091Y"},
}
PERSONAL_GROUPS = (0x0008, 0x0010, 0x0012, 0x0018, 0x0020, 0x0032, 0x0038, 0x0040, 0x4000)
STRUCTURAL = {"SpecificCharacterSet", "SOPClassUID"}


def write_sentinels(path, **tags):
    """A DICOM image in which every text, date and UID that can name somebody is a sentinel, private ones included."""
    write_dicom(path, PIXELS)
    dataset = pydicom.dcmread(path)
    for number, (vr, _, _, _, keyword) in DicomDictionary.items():
        if number >> 16 in PERSONAL_GROUPS and vr in SENTINELS and keyword and keyword not in STRUCTURAL:
            dataset.add_new(number, vr, SENTINELS[vr])
    for index, keyword in enumerate(("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"), start=1):
        setattr(dataset, keyword, f"1.2.999.4711.{index}")
    private = dataset.private_block(0x0011, "PRIVATE SENTINEL", create=True)
    private.add_new(0x01, "LO", "PRIVATE SENTINEL")
    item = pydicom.Dataset()
    item.PatientID = "SENTINEL"
    item.private_block(0x0011, "PRIVATE SENTINEL", create=True).add_new(0x01, "LO", "PRIVATE SENTINEL")
    dataset.OtherPatientIDsSequence = [item]
    for keyword, value in tags.items():
        setattr(dataset, keyword, value)
    dataset.save_as(path)
    return path


def read(path):
    """A file as pydicom reads it when it lets nothing pass."""
    with pydicom.config.strict_reading():
        dataset = pydicom.dcmread(path)
        assert len([element.value for element in dataset.iterall()]) > len(dataset)
    return dataset


def draw_quickly(monkeypatch):
    """Noise in place of the panel, which takes a while to draw."""
    panel = random_picture(0, (640, 48), "RGB")
    monkeypatch.setattr("mediffusion_diffusers.dicom_export.panel.explanation_panel", lambda explained: panel)


@pytest.fixture(scope="module")
def explained():
    return explained_phantom(16, name="DOE JANE")


@pytest.fixture(scope="module")
def picture(explained):
    return np.asarray(burnt_in_panel(explained))


@pytest.fixture(scope="module")
def world(tmp_path_factory, explained):
    """A source, and pairs of files: without a source, with one, with its identity, and with a usual one's."""
    folder = tmp_path_factory.mktemp("world")
    source = write_sentinels(folder / "source", BurnedInAnnotation="NO", LossyImageCompression="01")
    made = {"plain": write_explanation_dicom(explained, folder / "new" / "folder", CHECKPOINT, SETTINGS)}
    pipe = MediffusionCounterfactualPipeline(tiny_vae(), tiny_unet(), tiny_scheduler())
    with pytest.MonkeyPatch.context() as monkeypatch, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        draw_quickly(monkeypatch)
        output = pipe(open_image(source), away="Effusion", num_inference_steps=2)
        of_source = explain_output(output, "Effusion", "removed")[0]
        for name, carry_over in (("anonymous", False), ("own", True)):
            made[name] = write_explanation_dicom(
                of_source,
                folder,
                CHECKPOINT,
                output.settings_of(0),
                stem=name,
                source=source,
                carry_over_identity=carry_over,
            )
        usual = write_dicom(
            folder / "usual", PIXELS, StudyInstanceUID="1.2.3", SeriesInstanceUID="1.2.3.4", PatientSex="F"
        )
        made["usual"] = write_explanation_dicom(
            explained, folder, CHECKPOINT, stem="usual", source=usual, carry_over_identity=True
        )
    said = " ".join(str(warning.message) for warning in caught)
    assert "SENTINEL" not in said and "4711" not in said
    return {"source": source, **made}


def test_the_panel_says_in_its_pixels_what_it_is_for(picture):
    panel = np.asarray(explanation_panel(explained_phantom(16)))  # without the image's name
    banner = picture[: len(picture) - len(panel)]
    np.testing.assert_array_equal(picture[len(banner) :], panel)
    is_white, is_red = (banner > 200).all(-1), (banner[..., 0] > 100) & (banner[..., 1:] < 60).all(-1)
    letters = np.nonzero(is_white)
    assert is_red.mean() > 0.7 and is_white.mean() > 0.02
    assert np.ptp(letters[0]) > 30 and np.ptp(letters[1]) > 300


def test_the_panel_is_a_secondary_capture_in_colour(world, picture):
    dataset = read(world["plain"].panel)
    assert dataset.SOPClassUID == pydicom.uid.SecondaryCaptureImageStorage
    assert (dataset.PhotometricInterpretation, dataset.SamplesPerPixel, dataset.BitsStored) == ("RGB", 3, 8)
    np.testing.assert_array_equal(dataset.pixel_array, picture)
    assert dataset.ImageType[:2] == ["DERIVED", "SECONDARY"]
    assert dataset.SeriesDescription == "RESEARCH USE ONLY: Cardiomegaly removed"
    assert "Research use only" in dataset.DerivationDescription
    assert CHECKPOINT in dataset.ContributingEquipmentSequence[0].ContributionDescription


def test_the_report_holds_the_numbers_and_how_they_were_made(world, explained):
    dataset = highdicom.sr.srread(world["plain"].report)
    assert (dataset.PreliminaryFlag, dataset.VerificationFlag) == ("PRELIMINARY", "UNVERIFIED")
    (group,) = dataset.content.get_image_measurement_groups()
    assert group.finding_type.meaning == "Cardiomegaly"
    assert [evaluation.value.meaning for evaluation in group.get_qualitative_evaluations()] == ["removed"]
    measured = {measurement.name.meaning: measurement.value for measurement in group.get_measurements()}
    assert measured["Probability in the original"] == explained.original.probability
    assert measured["Probability in the counterfactual"] == explained.counterfactual.probability
    assert measured["Probability in the null edit"] == explained.null_edit.probability
    size = measured["Mean absolute change of the counterfactual"]
    assert size == pytest.approx(explained.change_size(explained.counterfactual))
    algorithm = {item.value for item in group[0].ContentSequence if item.name.meaning == "Algorithm Parameters"}
    assert algorithm == {f"checkpoint = {CHECKPOINT}", "strength = 0.3", "guidance_scale = 10.0", "mask = auto"}
    assert [item.value for item in dataset.content[0].ContentSequence if item.name.meaning == "Comment"] == [
        PAGE_NOTICE
    ]


def test_both_files_are_of_one_study_and_the_report_refers_to_the_panel(world):
    for name in ("plain", "anonymous", "own"):
        panel, report = read(world[name].panel), read(world[name].report)
        for keyword in ("StudyInstanceUID", "PatientID", "PatientName", "StudyDate", "PatientBirthDate"):
            assert panel[keyword] == report[keyword]
        assert panel.SeriesInstanceUID != report.SeriesInstanceUID
        (evidence,) = report.CurrentRequestedProcedureEvidenceSequence
        referenced = [
            (series.SeriesInstanceUID, item.ReferencedSOPInstanceUID)
            for series in evidence.ReferencedSeriesSequence
            for item in series.ReferencedSOPSequence
        ]
        assert (panel.SeriesInstanceUID, panel.SOPInstanceUID) in referenced
        assert len(referenced) == (2 if name == "own" else 1)


def test_nothing_of_the_patient_is_in_the_files(world):
    for path in (world["anonymous"].panel, world["anonymous"].report):
        content = path.read_bytes()
        for sentinel in (*set(SENTINELS.values()), "SENTINEL", "PRIVATE"):
            for letters in (sentinel.encode(), sentinel.encode("utf-16-le")):
                assert letters not in content, (path.name, sentinel)
    assert b"DOE" not in world["plain"].panel.read_bytes()
    first, second = read(world["plain"].panel), read(world["anonymous"].panel)
    assert first.StudyInstanceUID != second.StudyInstanceUID and first.PatientID != second.PatientID


def test_the_identity_is_carried_over_on_request_without_private_tags(world):
    source = pydicom.dcmread(world["source"])
    for path in (world["own"].panel, world["own"].report):
        dataset = pydicom.dcmread(path)
        for keyword in ("StudyInstanceUID", "PatientName", "PatientID", "PatientSex", "AccessionNumber", "StudyDate"):
            assert dataset[keyword].value == source[keyword].value
        assert dataset.OtherPatientIDsSequence[0].PatientID == "SENTINEL"
        assert dataset.SeriesInstanceUID != source.SeriesInstanceUID
        assert dataset.SOPInstanceUID != source.SOPInstanceUID
        assert b"PRIVATE SENTINEL" not in path.read_bytes()
    (reference,) = pydicom.dcmread(world["own"].panel).SourceImageSequence
    assert reference.ReferencedSOPInstanceUID == source.SOPInstanceUID


def test_what_the_source_says_of_its_pixels_holds_for_the_panel(world):
    anonymous, own, plain = (read(world[name].panel) for name in ("anonymous", "own", "plain"))
    assert anonymous.BurnedInAnnotation == own.BurnedInAnnotation == "NO"
    assert anonymous.LossyImageCompression == own.LossyImageCompression == "01"
    assert anonymous.PatientIdentityRemoved == "YES"
    # Nobody looked into the pixels of a picture, so nothing is claimed of them.
    assert not {"BurnedInAnnotation", "PatientIdentityRemoved", "LossyImageCompression"} & set(plain.dir())


@pytest.mark.parametrize(
    ("character_set", "name"),
    [("ISO_IR 100", "Müller^Jörg"), ("ISO_IR 192", "山田^太郎"), ("ISO_IR 144", "Иванов^Пётр")],
)
def test_names_in_any_alphabet_are_carried_over(tmp_path, explained, monkeypatch, character_set, name):
    draw_quickly(monkeypatch)
    source = write_sentinels(tmp_path / "source", SpecificCharacterSet=character_set, PatientName=name)
    files = write_explanation_dicom(explained, tmp_path, CHECKPOINT, source=source, carry_over_identity=True)
    for path in (files.panel, files.report):
        assert pydicom.dcmread(path).PatientName == name


@pytest.mark.parametrize(
    ("tags", "changes", "message"),
    [
        (
            None,
            {"carry_over_identity": True},
            "needs the DICOM file that the image was read from, but `source` is None",
        ),
        ("picture", {"carry_over_identity": True}, r"needs a DICOM file, but `source` .*picture\.png is none"),
        ("nothing", {}, "does not exist"),
        ({"BurnedInAnnotation": "YES"}, {}, "names the patient in its pixels"),
        ({"NumberOfFrames": 3}, {}, "holds 3 frames"),
        ({"StudyInstanceUID": ""}, {"carry_over_identity": True}, "StudyInstanceUID must be valid UIDs"),
        (None, {"stem": "../chest"}, "`stem` must be the beginning of a file name"),
        (None, {"stem": ""}, "`stem` must be the beginning of a file name"),
        (None, {"stem": "a\0b"}, "`stem` must be the beginning of a file name"),
        (None, {"stem": 300 * "a"}, "`stem` must be the beginning of a file name"),
        (None, {"output_dir": __file__}, "`output_dir` must be a folder that can be written to"),
        (None, {"source": b"scan.dcm"}, "`source` must be the path of a file, but got bytes"),
        (None, {"checkpoint": ""}, "`checkpoint` must be a hash"),
    ],
)
def test_what_cannot_be_written_is_said_before_anything_is(tmp_path, explained, tags, changes, message):
    source = None
    if tags == "picture":
        source = tmp_path / "picture.png"
        random_picture(0).save(source)
    elif tags == "nothing":
        source = tmp_path / "nothing.dcm"
    elif tags is not None:
        source = write_sentinels(tmp_path / "source", **tags)
    with pytest.raises(ValueError, match=message) as caught:
        arguments = {"output_dir": tmp_path / "out", "checkpoint": CHECKPOINT, "source": source, **changes}
        write_explanation_dicom(explained, **arguments)
    assert "SENTINEL" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("whole", "damaged", "message"),
    [
        (b"1.2.999.4711.1", b"sentinel.4711.", "StudyInstanceUID must be valid UIDs"),
        (b"US\x02\0\x04\0", b"US\x03\0\x04\0\0", "their tags are damaged"),  # no number has three bytes
    ],
)
def test_damaged_tags_of_the_patient_are_not_quoted(tmp_path, explained, monkeypatch, caplog, whole, damaged, message):
    draw_quickly(monkeypatch)
    source = write_sentinels(tmp_path / "source", PregnancyStatus=4)
    source.write_bytes(source.read_bytes().replace(whole, damaged))
    with warnings.catch_warnings(record=True) as caught, pytest.raises(ValueError, match=message) as failure:
        warnings.simplefilter("always")
        write_explanation_dicom(explained, tmp_path, CHECKPOINT, source=source, carry_over_identity=True)
    said = [*(str(warning.message) for warning in caught), *caplog.messages, str(failure.value)]
    assert "sentinel" not in " ".join(said).lower()
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_source_that_is_a_picture_has_no_identity_to_leave_out(tmp_path, explained, monkeypatch):
    draw_quickly(monkeypatch)
    random_picture(0).save(tmp_path / "a.png")
    files = write_explanation_dicom(explained, tmp_path, CHECKPOINT, source=tmp_path / "a.png")
    assert read(files.panel).PatientName == "Anonymous^Patient"


def test_a_failure_leaves_what_was_there(tmp_path, explained, monkeypatch):
    draw_quickly(monkeypatch)
    files = ExplanationFiles(tmp_path / "explanation-panel.dcm", tmp_path / "explanation-report.dcm")
    files.panel.write_text("before")

    def fail(*args, **kwargs):
        raise OSError("no space left")

    monkeypatch.setattr(highdicom.sr.ComprehensiveSR, "save_as", fail)
    with pytest.raises(OSError, match="no space left"):
        write_explanation_dicom(explained, tmp_path, CHECKPOINT)
    assert [path.name for path in tmp_path.iterdir()] == [files.panel.name]
    assert files.panel.read_text() == "before"


def test_without_highdicom_it_says_what_to_install(tmp_path, explained, monkeypatch):
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(ImportError, match=r'pip install "mediffusion-diffusers\[dicom\]"'):
        write_explanation_dicom(explained, tmp_path, CHECKPOINT)


@pytest.mark.parametrize("name", ["plain", "anonymous", "usual"])
@pytest.mark.parametrize("kind", ["panel", "report"])
def test_an_independent_validator_finds_no_error(world, name, kind):
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy (Debian: dicom3tools) is not installed")
    found = subprocess.run(["dciodvfy", "-new", str(getattr(world[name], kind))], capture_output=True, text=True)
    lines = (found.stdout + found.stderr).splitlines()
    assert {"panel": "SCImage", "report": "ComprehensiveSR"}[kind] in lines
    assert [line for line in lines if line.startswith("Error")] == []


def test_an_independent_viewer_shows_the_panel(world, picture, tmp_path):
    if shutil.which("dcmj2pnm") is None:
        pytest.skip("dcmj2pnm (Debian: dcmtk) is not installed")
    subprocess.run(["dcmj2pnm", str(world["plain"].panel), str(tmp_path / "panel.ppm")], check=True)
    np.testing.assert_array_equal(open_image(tmp_path / "panel.ppm"), picture)
