"""One way in for every image file that a pipeline shall see."""

import numpy as np
import pytest
from support.sources import random_picture, write_dicom

from mediffusion_diffusers.data import open_image, open_picture, read_dicom


RAMP = np.arange(256, dtype=np.uint16).reshape(16, 16) * 16


def test_a_picture_is_opened_as_pictures_are(tmp_path):
    random_picture(0, mode="RGB").save(tmp_path / "a.png")
    np.testing.assert_array_equal(open_image(tmp_path / "a.png"), open_picture(tmp_path / "a.png"))


@pytest.mark.parametrize("name", ["a.dcm", "IM0001", "a.DICOM", "misnamed.png"])
def test_dicom_is_known_by_suffix_or_content(tmp_path, name):
    path = write_dicom(tmp_path / name, RAMP, WindowCenter=1000.5, WindowWidth=2001.0)
    image = open_image(str(path))
    assert image.mode == "I;16"
    np.testing.assert_array_equal(image, read_dicom(path))


def test_what_neither_reader_takes_is_named_by_the_right_one(tmp_path):
    film = write_dicom(tmp_path / "film", np.zeros((3, 16, 16), np.uint16), NumberOfFrames=3)
    (tmp_path / "text.dcm").write_text("no DICOM")
    (tmp_path / "text").write_text("no picture")
    for path, message in (
        (film, "film holds 3 frames"),
        (tmp_path / "text.dcm", r"text\.dcm is no readable DICOM file"),
        (tmp_path / "text", "Cannot decode .*text"),
        (tmp_path / "none.png", r"The image file .*none\.png does not exist"),
        (tmp_path, "Cannot decode"),
    ):
        with pytest.raises(ValueError, match=message):
            open_image(path)
    with pytest.raises(ValueError, match=r"^the image holds 3 frames"):
        open_image(film, "the image")
