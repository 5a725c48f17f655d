import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from support.sources import write_dicom

from mediffusion_diffusers.data import read_dicom
from mediffusion_diffusers.data.dicom import apply_window


RAMP = np.arange(0, 4096, 16, dtype=np.uint16).reshape(16, 16)


def read(path):
    image = read_dicom(path)
    assert image.mode == "I;16"
    return np.asarray(image).astype(float) / 65535


def test_without_window_the_smallest_and_largest_value_count(tmp_path):
    pixels = RAMP + 1000
    np.testing.assert_allclose(read(write_dicom(tmp_path / "a.dcm", pixels)), RAMP / RAMP.max(), atol=1e-5)
    flat = write_dicom(tmp_path / "b.dcm", np.full((4, 4), 7, np.uint16))
    assert (read(flat) == 0).all()


def test_a_window_scales_by_its_own_range(tmp_path):
    # The window -300 ... 700 in Hounsfield units is wider than what the image holds: nothing reaches 0 or 1.
    hounsfield = np.linspace(-200, 600, 256).round().reshape(16, 16)
    stored = (hounsfield + 1024).astype(np.int16)
    path = write_dicom(
        tmp_path / "a.dcm",
        stored,
        RescaleSlope=1,
        RescaleIntercept=-1024,
        WindowCenter=200,
        WindowWidth=1000,
        VOILUTFunction="LINEAR_EXACT",
    )
    np.testing.assert_allclose(read(path), (hounsfield + 300) / 1000, atol=1e-5)
    # The first of several windows is taken; values outside it are clipped.
    path = write_dicom(tmp_path / "b.dcm", RAMP, WindowCenter=[1000.5, 5.0], WindowWidth=[2001.0, 7.0])
    np.testing.assert_allclose(read(path), (RAMP / 2000).clip(0, 1), atol=1e-5)


def test_window_functions():
    values = np.array([-1e6, 0.0, 50.0, 100.0, 1e6])
    np.testing.assert_allclose(apply_window(values, 50, 100, "LINEAR_EXACT"), [0, 0, 0.5, 1, 1])
    np.testing.assert_allclose(apply_window(values, 50.5, 101), [0, 0, 0.5, 1, 1])
    np.testing.assert_allclose(apply_window(values, 50, 1), [0, 0, 1, 1, 1])  # a threshold at 49.5
    sigmoid = apply_window(values, 50, 100, "SIGMOID")
    np.testing.assert_allclose(sigmoid, [0, 1 / (1 + np.exp(2)), 0.5, 1 / (1 + np.exp(-2)), 1], atol=1e-12)
    for arguments, message in (((0, 0.5), "WindowWidth"), ((0, 1, "LOG"), "VOILUTFunction")):
        with pytest.raises(ValueError, match=message):
            apply_window(values, *arguments)


@pytest.mark.parametrize("tags", [{}, {"WindowCenter": 1000.5, "WindowWidth": 2001.0}])
def test_monochrome1_is_inverted_on_the_same_range(tmp_path, tags):
    plain = read(write_dicom(tmp_path / "a.dcm", RAMP, **tags))
    inverted = read(write_dicom(tmp_path / "b.dcm", RAMP, PhotometricInterpretation="MONOCHROME1", **tags))
    np.testing.assert_allclose(inverted, 1 - plain, atol=2e-5)


def test_padding_is_black_and_does_not_set_the_range(tmp_path):
    pixels = RAMP.astype(np.int16)
    pixels[0] = -2000
    for photometric in ("MONOCHROME2", "MONOCHROME1"):
        path = write_dicom(tmp_path / "a.dcm", pixels, PixelPaddingValue=-2000, PhotometricInterpretation=photometric)
        unit = read(path)
        assert (unit[0] == 0).all()
        assert unit[1:].min() == 0
        assert unit[1:].max() == 1


@pytest.mark.parametrize("entry_type", ["US", "OW"])
def test_voi_lookup_table(tmp_path, entry_type):
    # 8-bit entries for 4,096 values: a falling ramp from value 100 on.
    entries = (255 - np.arange(4096) // 16).astype(np.uint16)
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [4096, 100, 8])
    item.add_new("LUTData", entry_type, entries.tolist() if entry_type == "US" else entries.tobytes())
    path = write_dicom(tmp_path / "a.dcm", RAMP, VOILUTSequence=[item], WindowCenter=1.0, WindowWidth=2.0)
    expected = entries[(RAMP.astype(int) - 100).clip(0, 4095)] / 255
    np.testing.assert_allclose(read(path), expected, atol=1e-5)


def test_what_is_not_one_grey_frame_is_refused_by_name(tmp_path):
    colour = np.zeros((16, 16, 3), np.uint8)
    rgb = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}
    film = np.zeros((3, 16, 16), np.uint16)
    (tmp_path / "text.dcm").write_text("no DICOM")
    torn = write_dicom(tmp_path / "torn.dcm", RAMP)
    torn.write_bytes(torn.read_bytes()[:-200])
    bare = write_dicom(tmp_path / "bare.dcm", RAMP)
    header = pydicom.dcmread(bare)
    del header.Rows, header.Columns, header.PixelData
    header.save_as(bare)
    for path, message in (
        (write_dicom(tmp_path / "colour.dcm", colour, **rgb), r"colour\.dcm is a colour image .*RGB"),
        (write_dicom(tmp_path / "palette.dcm", RAMP, PhotometricInterpretation="PALETTE COLOR"), "PALETTE COLOR"),
        (write_dicom(tmp_path / "film.dcm", film, NumberOfFrames=3), r"film\.dcm holds 3 frames"),
        (tmp_path / "text.dcm", r"text\.dcm is no readable DICOM file"),
        (torn, r"Cannot decode the pixels of .*torn\.dcm"),
        (bare, r"bare\.dcm holds no image"),
        (tmp_path / "none.dcm", r"none\.dcm does not exist"),
    ):
        with pytest.raises(ValueError, match=message):
            read_dicom(path)
