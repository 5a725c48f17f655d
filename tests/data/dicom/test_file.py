import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import MPEG2MPML, UID, DeflatedExplicitVRLittleEndian, JPEGLosslessSV1, RLELossless
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


def with_elements(path, drop=(), **elements):
    """Change elements of a file; `(VR, value)` each."""
    dataset = pydicom.dcmread(path)
    for keyword in drop:
        del dataset[keyword]
    for keyword, (vr, value) in elements.items():
        dataset.add_new(keyword, vr, value)
    dataset.save_as(path)
    return path


@pytest.mark.parametrize(
    "elements",
    [
        {"NumberOfFrames": ("LO", ["1", "1"])},
        {"NumberOfFrames": ("LO", "1")},
        {"NumberOfFrames": ("IS", None)},
        {"NumberOfFrames": ("IS", "0")},
        {"SamplesPerPixel": ("US", [1, 1])},
        {"SamplesPerPixel": ("LO", "1")},
        {"PhotometricInterpretation": ("CS", "MONOCHROME2 ")},
        {"WindowCenter": ("LO", "x"), "WindowWidth": ("SQ", [])},
        {"VOILUTSequence": ("LO", "none")},
        {"SharedFunctionalGroupsSequence": ("LO", "none")},
        {"PixelPaddingValue": ("SQ", [])},
        {"HighBit": ("LO", "high")},
        {"HighBit": ("US", 3)},
    ],
    ids=str,
)
def test_odd_tags_are_passed_over(tmp_path, elements):
    path = with_elements(write_dicom(tmp_path / "a.dcm", RAMP), **elements)
    np.testing.assert_allclose(read(path), RAMP / RAMP.max(), atol=1e-5)


@pytest.mark.parametrize(
    ("elements", "message"),
    [
        ({"NumberOfFrames": ("LO", "2")}, r"a\.dcm holds 2 frames"),
        ({"NumberOfFrames": ("LO", ["1", "2"])}, r"NumberOfFrames of .*a\.dcm must be one whole number"),
        ({"NumberOfFrames": ("LO", "two")}, "NumberOfFrames of .* must be one whole number"),
        ({"NumberOfFrames": ("LO", "nan")}, "NumberOfFrames of .* must be one whole number"),
        ({"SamplesPerPixel": ("US", 3)}, "is a colour image .*SamplesPerPixel 3"),
        ({"SamplesPerPixel": ("US", [1, 3])}, "SamplesPerPixel of .* must be one whole number"),
        ({"PhotometricInterpretation": ("CS", None)}, "does not say whether black is low or high"),
        ({"PhotometricInterpretation": ("CS", "YBR_FULL_422")}, "is a colour image .*YBR_FULL_422"),
        ({"Rows": ("US", 0)}, "it has 0 rows and 16 columns"),
        ({"Columns": ("US", None)}, "it has 16 rows and 0 columns"),
        ({"Rows": ("LO", "many")}, "Rows of .* must be one whole number"),
        ({"Rows": ("US", 65535), "Columns": ("US", 65535)}, "is too large: 4,294,836,225 pixels, of at most"),
        ({"Rows": ("US", 17)}, r"Cannot decode the pixels of .*a\.dcm"),
        ({"BitsAllocated": ("US", 13)}, r"Cannot decode the pixels of .*a\.dcm"),
        ({"PixelData": ("OW", b"")}, r"Cannot decode the pixels of .*a\.dcm"),
    ],
    ids=str,
)
def test_what_cannot_be_one_grey_picture_says_why(tmp_path, elements, message):
    path = with_elements(write_dicom(tmp_path / "a.dcm", RAMP), **elements)
    with pytest.raises(ValueError, match=message):
        read_dicom(path)


@pytest.mark.parametrize("missing", ["PixelData", "BitsAllocated", "PixelRepresentation", "PhotometricInterpretation"])
def test_missing_tags(tmp_path, missing):
    path = with_elements(write_dicom(tmp_path / "a.dcm", RAMP), drop=[missing])
    with pytest.raises(ValueError, match=r"a\.dcm"):
        read_dicom(path)


def test_every_cut_is_a_reason_or_the_picture(tmp_path):
    whole = write_dicom(tmp_path / "whole.dcm", RAMP).read_bytes()
    for length in range(0, len(whole), 61):
        (tmp_path / "cut.dcm").write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"cut\.dcm"):
            read_dicom(tmp_path / "cut.dcm")


def test_noise_in_the_header_is_a_reason_or_a_picture(tmp_path):
    whole = bytearray(write_dicom(tmp_path / "whole.dcm", RAMP, WindowCenter=9, WindowWidth=9).read_bytes())
    rng = np.random.default_rng(0)
    for _ in range(200):
        noisy = bytearray(whole)
        for place in rng.integers(132, len(whole) - RAMP.nbytes, 3):
            noisy[place] = rng.integers(256)
        (tmp_path / "noisy.dcm").write_bytes(noisy)
        try:
            assert read_dicom(tmp_path / "noisy.dcm").mode == "I;16"
        except ValueError as error:
            assert "noisy.dcm" in str(error)


def test_deflated_and_run_length_encoded(tmp_path):
    expected = read(write_dicom(tmp_path / "plain.dcm", RAMP))
    np.testing.assert_array_equal(
        read(write_dicom(tmp_path / "a.dcm", RAMP, DeflatedExplicitVRLittleEndian)), expected
    )
    dataset = pydicom.dcmread(tmp_path / "plain.dcm")
    dataset.compress(RLELossless)
    dataset.save_as(tmp_path / "rle.dcm")
    np.testing.assert_array_equal(read(tmp_path / "rle.dcm"), expected)


@pytest.mark.parametrize(
    ("syntax", "message"),
    [
        (JPEGLosslessSV1, r"a\.dcm are compressed as JPEG Lossless.*no decoder is installed: .*pylibjpeg-libjpeg"),
        (MPEG2MPML, r"a\.dcm are stored as MPEG2.*cannot be decoded"),
        ("1.2.3.4", r"a\.dcm are stored as 1\.2\.3\.4, which cannot be decoded"),
    ],
    ids=["lossless", "film", "private"],
)
def test_a_missing_decoder_is_named(tmp_path, monkeypatch, syntax, message):
    path = write_dicom(tmp_path / "a.dcm", RAMP)
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = UID(syntax)
    dataset.PixelData = encapsulate([RAMP.tobytes()])
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    dataset.save_as(path, implicit_vr=False, little_endian=True)
    monkeypatch.setattr(pydicom.pixels.decoders.base.Decoder, "is_available", property(lambda self: False))
    with pytest.raises(ValueError, match=message):
        read_dicom(path)


def test_nested_sequences_without_end(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", RAMP)
    plain = path.read_bytes()
    place = plain.index(b"\x28\x00\x02\x00US")  # before the first tag of the image itself
    item = b"\x08\x00\x15\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    path.write_bytes(plain[:place] + item * 5000 + plain[place:])
    with pytest.raises(ValueError, match=r"a\.dcm is no readable DICOM file"):
        read_dicom(path)


def test_a_photometric_interpretation_in_lower_case(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", RAMP, PhotometricInterpretation="monochrome1")
    np.testing.assert_allclose(read(path), 1 - RAMP / RAMP.max(), atol=1e-5)


def test_a_damaged_header_is_not_quoted(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise ValueError("cannot read b'Doe^J\\'ne' as 'Doe^Jane' or \"Doe\" here")

    path = write_dicom(tmp_path / "a.dcm", RAMP)
    monkeypatch.setattr(pydicom, "dcmread", fail)
    with pytest.raises(ValueError, match=r"is no readable DICOM file: cannot read \.\.\. as \.\.\. or \.\.\. here"):
        read_dicom(path)
