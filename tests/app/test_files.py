"""What is taken away is whole, can be made again from what stands in it, and names nobody."""

import io
import re
from dataclasses import replace

import numpy as np
import pydicom
import pytest
from PIL import Image
from support.components import random_pil
from support.sources import write_dicom

from mediffusion_diffusers.app import answers, files
from mediffusion_diffusers.app.edit_request import EditRequest
from mediffusion_diffusers.dicom_export import Source


@pytest.fixture(scope="module")
def answer(pipe):
    opened = answers.open_given(random_pil(1)[0], pipe, "SENTINEL")
    return answers.explain(opened, EditRequest(remove=("Mass",), add=("Effusion",)), pipe)


def test_the_page_says_what_was_asked_and_loads_nothing(answer):
    page = files.page_file(answer, answer.explained).content.decode()
    for text in ("Mass removed", "Effusion added", "Provenance", "num inference steps"):
        assert text in page
    assert not re.search(r"https?://", page)


def test_there_is_a_panel_for_each_finding(answer):
    panels = files.panel_files(answer.explained)
    assert [panel.text for panel in panels] == ["Panel: Mass removed (PNG)", "Panel: Effusion added (PNG)"]
    assert all(Image.open(io.BytesIO(panel.content)).width > 500 for panel in panels)


def test_dicom_is_of_nobody_and_says_how_its_pixels_were_stored(answer, tmp_path):
    pytest.importorskip("highdicom")
    tags = {"PatientName": "SENTINEL", "BurnedInAnnotation": "NO", "LossyImageCompression": "01"}
    path = write_dicom(tmp_path / "SENTINEL.dcm", np.arange(256, dtype=np.uint16).reshape(16, 16), **tags)
    uploaded = replace(answer, opened=replace(answer.opened, source=Source.of_pixels(path, path.name)))
    written = files.dicom_files(uploaded, answer.explained[:1], "0" * 64)
    panel, report = (pydicom.dcmread(io.BytesIO(file.content)) for file in written)
    assert (panel.Modality, report.Modality, str(panel.PatientName)) == ("OT", "SR", "Anonymous^Patient")
    assert (panel.LossyImageCompression, panel.PatientIdentityRemoved) == ("01", "YES")
    assert not any(b"SENTINEL" in file.content for file in written)


def test_provenance_makes_the_answer_again(answer, pipe):
    settings = {name: value for name, value in files.provenance(answer).items() if name not in ("removed", "added")}
    again = pipe(answer.opened.pixels, away="Mass", towards="Effusion", output_type="np", **settings)
    assert (again.images == answer.output.images).all()
