"""The grey scale of one image: right values by hand, or by pydicom's own transforms where these are right."""

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.pixels import apply_modality_lut, apply_voi_lut
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian
from support.sources import write_dicom

from mediffusion_diffusers.data import read_dicom


RAMP = np.arange(0, 4096, 16, dtype=np.uint16).reshape(16, 16)  # 0 to 4,080
OWN_RANGE = RAMP / RAMP.max()
HOUNSFIELD = {"RescaleSlope": 1, "RescaleIntercept": -1024}


def read(path):
    return np.asarray(read_dicom(path)).astype(float) / 65535


def item(**tags):
    """An item of a sequence; `(VR, value)` sets the representation too."""
    dataset = Dataset()
    for keyword, value in tags.items():
        if isinstance(value, tuple):
            dataset.add_new(keyword, *value)
        else:
            setattr(dataset, keyword, value)
    return dataset


def table(descriptor, data, vr="US"):
    return [item(LUTDescriptor=("US", descriptor), LUTData=(vr, data))]


def write_with(path, pixels, elements, **tags):
    """Write a file, then set elements `{keyword: (VR, value)}` that pydicom would not write by itself."""
    write_dicom(path, pixels, **tags)
    dataset = pydicom.dcmread(path)
    for keyword, (vr, value) in elements.items():
        dataset.add_new(keyword, vr, value)
    dataset.save_as(path)
    return path


class TestLookupTables:
    ENTRIES = np.arange(4096)[::-1]  # a falling ramp: nothing that the plain pixels could be taken for

    @pytest.mark.parametrize("declared", [8, 10, 12, 16])
    def test_the_depth_is_that_of_the_entries(self, tmp_path, declared):
        path = write_dicom(tmp_path / "a.dcm", RAMP, VOILUTSequence=table([4096, 0, declared], self.ENTRIES.tolist()))
        np.testing.assert_allclose(read(path), self.ENTRIES[RAMP] / 4095, atol=1e-5)

    def test_eight_bits_at_least(self, tmp_path):
        entries = [0, 60] * 2048
        path = write_dicom(tmp_path / "a.dcm", RAMP + 1, VOILUTSequence=table([4096, 0, 8], entries))
        np.testing.assert_allclose(read(path), 60 / 255, atol=1e-5)

    @pytest.mark.parametrize("num_entries", [256, 255])
    @pytest.mark.parametrize("vr", ["OW", "US", "OB"])
    def test_packed_entries_of_8_bits(self, tmp_path, num_entries, vr):
        pixels = np.arange(240, dtype=np.uint16).reshape(16, 15)
        entries = (255 - np.arange(num_entries)).astype(np.uint8)
        data = entries.tobytes() + b"\0" * (num_entries % 2)
        data = data if vr != "US" else np.frombuffer(data, "<u2").tolist()
        path = write_dicom(tmp_path / "a.dcm", pixels, VOILUTSequence=table([num_entries, 0, 8], data, vr))
        np.testing.assert_allclose(read(path), (255 - pixels) / 255, atol=1e-5)

    @pytest.mark.parametrize("first", [("US", 65536 - 1024), ("SS", -1024)])
    def test_first_value_of_signed_pixels(self, tmp_path, first):
        pixels = RAMP.astype(np.int16) - 1024
        entries = np.arange(4096) * 16
        sequence = table([4096, 0, 16], entries.tolist())
        sequence[0]["LUTDescriptor"].VR = first[0]
        sequence[0]["LUTDescriptor"].value = [4096, first[1], 16]
        path = write_dicom(tmp_path / "a.dcm", pixels, VOILUTSequence=sequence)
        np.testing.assert_allclose(read(path), entries[RAMP] / 65535, atol=1e-5)

    def test_first_value_after_a_negative_intercept(self, tmp_path):
        # Stored values are unsigned; what the table is asked for is signed.
        path = tmp_path / "a.dcm"
        entries = (np.arange(4096) * 16).astype("<u2")
        sequence = table([4096, 65536 - 1024, 16], entries.tobytes(), "OW")
        write_dicom(path, RAMP, ImplicitVRLittleEndian, VOILUTSequence=sequence, **HOUNSFIELD)
        np.testing.assert_allclose(read(path), entries[RAMP] / 65535, atol=1e-5)

    def test_first_value_of_unsigned_pixels_stays_unsigned(self, tmp_path):
        pixels = RAMP + 40000
        path = write_dicom(tmp_path / "a.dcm", pixels, VOILUTSequence=table([4096, 40000, 16], self.ENTRIES.tolist()))
        np.testing.assert_allclose(read(path), self.ENTRIES[RAMP] / 4095, atol=1e-5)

    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
    def test_a_modality_table_that_begins_above_the_pixels(self, tmp_path, dtype):
        pixels = np.arange(256).reshape(16, 16).astype(dtype)
        sequence = table([100, 150, 16], (np.arange(100) * 600).tolist())
        path = write_dicom(tmp_path / "a.dcm", pixels, ModalityLUTSequence=sequence)
        np.testing.assert_allclose(read(path), (pixels.astype(float) - 150).clip(0, 99) / 99, atol=1e-5)

    def test_a_table_that_would_run_past_16_bits_begins_below_0(self, tmp_path):
        sequence = table([4096, 65536 - 1024, 12], np.arange(4096).tolist())
        path = write_dicom(tmp_path / "a.dcm", RAMP, VOILUTSequence=sequence)
        np.testing.assert_allclose(read(path), (RAMP + 1024.0).clip(0, 4095) / 4095, atol=1e-5)

    def test_a_table_that_is_cut_short_counts_as_none(self, tmp_path):
        sequence = table([4096, 0, 12], np.arange(3000).tolist())
        path = write_dicom(tmp_path / "a.dcm", RAMP, VOILUTSequence=sequence)
        np.testing.assert_allclose(read(path), OWN_RANGE, atol=1e-5)

    def test_65536_entries_are_declared_as_0(self, tmp_path):
        entries = np.arange(65536)[::-1].astype("<u2")
        path = write_dicom(tmp_path / "a.dcm", RAMP * 15, VOILUTSequence=table([0, 0, 16], entries.tobytes(), "OW"))
        np.testing.assert_allclose(read(path), 1 - RAMP * 15.0 / 65535, atol=1e-5)

    def test_big_endian_words(self, tmp_path):
        sequence = table([4096, 0, 12], self.ENTRIES.astype(">u2").tobytes(), "OW")
        path = write_dicom(tmp_path / "a.dcm", RAMP.astype(">u2"), ExplicitVRBigEndian, VOILUTSequence=sequence)
        np.testing.assert_allclose(read(path), self.ENTRIES[RAMP] / 4095, atol=1e-5)

    def test_modality_tables_are_read_alike(self, tmp_path):
        modality = item(LUTDescriptor=("US", [4096, 0, 16]), LUTData=("US", (self.ENTRIES * 2).tolist()))
        path = write_dicom(
            tmp_path / "a.dcm", RAMP, ModalityLUTSequence=[modality], WindowCenter=4096.5, WindowWidth=8193
        )
        np.testing.assert_allclose(read(path), self.ENTRIES[RAMP] * 2 / 8192, atol=1e-5)
        judge = apply_modality_lut(RAMP, pydicom.dcmread(path))
        np.testing.assert_array_equal(judge, self.ENTRIES[RAMP] * 2)

    @pytest.mark.parametrize(
        "sequence",
        [
            [item(LUTData=("US", [0, 1]))],
            [item(LUTDescriptor=("US", [4096, 0, 12]))],
            table([4096, 0, 12], [7] * 4096),
            table([0, 0, 16], b"", "OW"),
            table([4096, 30000, 12], list(range(4096))),
        ],
        ids=["no descriptor", "no data", "one grey", "empty", "elsewhere"],
    )
    def test_what_is_no_table_gives_way_to_the_window(self, tmp_path, sequence):
        tags = {"BitsStored": 12, "HighBit": 11, "WindowCenter": 1000.5, "WindowWidth": 2001}
        path = write_dicom(tmp_path / "a.dcm", RAMP, VOILUTSequence=sequence, **tags)
        np.testing.assert_allclose(read(path), (RAMP / 2000).clip(0, 1), atol=1e-5)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID", "table"])
@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("signed", [False, True])
def test_pydicom_agrees(tmp_path, function, bits, signed):
    """Well-formed files through pydicom's own modality and VOI transforms, by their own output range."""
    rng = np.random.default_rng(bits)
    low = -(2 ** (bits - 1)) if signed else 0
    pixels = rng.integers(low, low + 2**bits, (16, 16)).astype(np.int16 if signed else np.uint16)
    tags = {"RescaleSlope": 0.5, "RescaleIntercept": 100}
    if function == "table":
        pixels = abs(pixels)
        entries = rng.permutation(2**16)[: 2**bits].astype("<u2")
        tags = {"VOILUTSequence": table([2**bits % 2**16, 0, 16], entries.tobytes(), "OW")}
    else:
        tags |= {"WindowCenter": 100 + 2**bits / 5, "WindowWidth": 2**bits / 3, "VOILUTFunction": function}
    path = write_dicom(tmp_path / "a.dcm", pixels, BitsStored=bits, HighBit=bits - 1, **tags)
    dataset = pydicom.dcmread(path)
    values = apply_voi_lut(apply_modality_lut(dataset.pixel_array, dataset), dataset)
    ends = (0, 65535) if function == "table" else (low * 0.5 + 100, (low + 2**bits - 1) * 0.5 + 100)
    np.testing.assert_allclose(read(path), (values - ends[0]) / (ends[1] - ends[0]), atol=2e-5)


class TestFunctionalGroups:
    """An enhanced image of one frame gives the picture of its classic twin."""

    VALUES = {"PixelValueTransformationSequence": [item(RescaleIntercept=-1024, RescaleSlope=1, RescaleType="HU")]}
    WINDOW = {"FrameVOILUTSequence": [item(WindowCenter=40, WindowWidth=400)]}

    @pytest.fixture
    def classic(self, tmp_path):
        return read(write_dicom(tmp_path / "classic.dcm", RAMP, WindowCenter=40, WindowWidth=400, **HOUNSFIELD))

    @pytest.mark.parametrize("shared", ["none", "values", "window", "both"])
    def test_shared_and_per_frame(self, tmp_path, classic, shared):
        parts = {"values": self.VALUES, "window": self.WINDOW}
        in_shared = {"none": {}, "both": {**self.VALUES, **self.WINDOW}}.get(shared) or parts.get(shared, {})
        in_frame = {key: part for one in parts.values() for key, part in one.items() if key not in in_shared}
        path = write_dicom(
            tmp_path / "a.dcm",
            RAMP,
            NumberOfFrames=1,
            SharedFunctionalGroupsSequence=[item(**in_shared)],
            PerFrameFunctionalGroupsSequence=[item(**in_frame)],
        )
        np.testing.assert_array_equal(read(path), classic)

    def test_the_frame_goes_before_the_rest(self, tmp_path, classic):
        wrong = {"FrameVOILUTSequence": [item(WindowCenter=9, WindowWidth=9)], **self.VALUES}
        path = write_dicom(
            tmp_path / "a.dcm",
            RAMP,
            WindowCenter=5,
            WindowWidth=5,
            SharedFunctionalGroupsSequence=[item(**wrong)],
            PerFrameFunctionalGroupsSequence=[item(**self.WINDOW)],
        )
        np.testing.assert_array_equal(read(path), classic)

    def test_empty_groups_leave_the_dataset_its_say(self, tmp_path, classic):
        groups = {"SharedFunctionalGroupsSequence": [], "PerFrameFunctionalGroupsSequence": [item()]}
        path = write_dicom(tmp_path / "a.dcm", RAMP, WindowCenter=40, WindowWidth=400, **HOUNSFIELD, **groups)
        np.testing.assert_array_equal(read(path), classic)

    def test_a_table_in_the_frame(self, tmp_path):
        entries = np.arange(4096)[::-1].tolist()
        group = item(FrameVOILUTSequence=[item(VOILUTSequence=table([4096, 0, 12], entries))])
        path = write_dicom(tmp_path / "a.dcm", RAMP, PerFrameFunctionalGroupsSequence=[group])
        np.testing.assert_allclose(read(path), 1 - RAMP / 4095, atol=1e-5)


class TestWhatCannotBeUsed:
    """Numbers that are no numbers fall back to the image's own range: never black, never one grey."""

    @pytest.mark.parametrize("center", ["NaN", "inf", "1e30", "12,5", "-90000", "2048"])
    @pytest.mark.parametrize("width", ["NaN", "-inf", "1e30", "x", "0", "-4096", "0.5", ""])
    def test_windows(self, tmp_path, center, width):
        elements = {"WindowCenter": ("LO", center), "WindowWidth": ("LO", width)}
        np.testing.assert_allclose(read(write_with(tmp_path / "a.dcm", RAMP, elements)), OWN_RANGE, atol=1e-5)

    def test_the_first_usable_window_is_taken(self, tmp_path):
        elements = {"WindowCenter": ("LO", ["NaN", "1000.5", "5"]), "WindowWidth": ("LO", ["1", "2001", "7"])}
        path = write_with(tmp_path / "a.dcm", RAMP, elements)
        np.testing.assert_allclose(read(path), (RAMP / 2000).clip(0, 1), atol=1e-5)

    def test_an_unknown_function_is_no_linear_one(self, tmp_path):
        path = write_dicom(tmp_path / "a.dcm", RAMP, WindowCenter=40, WindowWidth=400, VOILUTFunction="LOG")
        np.testing.assert_allclose(read(path), OWN_RANGE, atol=1e-5)

    @pytest.mark.parametrize(
        "rescale", [("NaN", "0"), ("0", "5"), ("inf", "0"), ("1", "NaN"), ("1", "-inf"), ("1", "1e300"), ("a", "b")]
    )
    def test_rescaling_and_with_it_the_window(self, tmp_path, rescale):
        elements = {"RescaleSlope": ("LO", rescale[0]), "RescaleIntercept": ("LO", rescale[1])}
        path = write_with(tmp_path / "a.dcm", RAMP, elements, WindowCenter=40, WindowWidth=400)
        np.testing.assert_allclose(read(path), OWN_RANGE, atol=1e-5)

    def test_a_missing_half_of_the_rescaling_changes_nothing(self, tmp_path):
        path = write_dicom(tmp_path / "a.dcm", RAMP, RescaleIntercept=-1024, WindowCenter=0.5, WindowWidth=2049)
        np.testing.assert_allclose(read(path), ((RAMP - 1024.0) / 2048 + 0.5).clip(0, 1), atol=1e-5)

    def test_a_negative_slope_turns_the_values_round(self, tmp_path):
        path = write_dicom(tmp_path / "a.dcm", RAMP, RescaleSlope=-2, RescaleIntercept=10)
        np.testing.assert_allclose(read(path), 1 - OWN_RANGE, atol=1e-5)


class TestFloatingPoint:
    VALUES = np.linspace(-3.0, 5.0, 256).reshape(16, 16)

    def write(self, path, values, keyword="FloatPixelData", **tags):
        vr = {"FloatPixelData": ("OF", "<f4"), "DoubleFloatPixelData": ("OD", "<f8")}[keyword]
        write_dicom(path, values.astype(vr[1]), **tags)
        dataset = pydicom.dcmread(path)
        del dataset.PixelData, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation
        dataset.add_new(keyword, vr[0], values.astype(vr[1]).tobytes())
        dataset.save_as(path)
        return path

    @pytest.mark.parametrize("keyword", ["FloatPixelData", "DoubleFloatPixelData"])
    def test_own_range_and_window(self, tmp_path, keyword):
        unit = (self.VALUES + 3) / 8
        np.testing.assert_allclose(read(self.write(tmp_path / "a.dcm", self.VALUES, keyword)), unit, atol=1e-5)
        window = {"WindowCenter": 0, "WindowWidth": 2, "VOILUTFunction": "LINEAR_EXACT"}
        path = self.write(tmp_path / "b.dcm", self.VALUES, keyword, **window)
        np.testing.assert_allclose(read(path), ((self.VALUES + 1) / 2).clip(0, 1), atol=1e-5)

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
    def test_pixels_that_are_not_finite_are_padding(self, tmp_path, value, photometric):
        values = self.VALUES.copy()
        values[3, 3:6] = value
        unit = read(self.write(tmp_path / "a.dcm", values, PhotometricInterpretation=photometric))
        expected = (self.VALUES + 3) / 8 if photometric == "MONOCHROME2" else (5 - self.VALUES) / 8
        expected[3, 3:6] = 0
        np.testing.assert_allclose(unit, expected, atol=1e-5)

    def test_nothing_finite(self, tmp_path):
        path = self.write(tmp_path / "a.dcm", np.full((16, 16), np.nan))
        with pytest.raises(ValueError, match=r"transforms of .*a\.dcm: the pixels hold no finite values"):
            read_dicom(path)
        path = self.write(tmp_path / "b.dcm", self.VALUES * 3e307, "DoubleFloatPixelData")
        with pytest.raises(ValueError, match="more than floating point can hold"):
            read_dicom(path)

    def test_floating_point_padding(self, tmp_path):
        values = self.VALUES.copy()
        values[0] = -1000
        path = self.write(tmp_path / "a.dcm", values, FloatPixelPaddingValue=-1000.0)
        unit = read(path)
        assert (unit[0] == 0).all()
        np.testing.assert_allclose(unit[1:], (values[1:] - values[1, 0]) / (5 - values[1, 0]), atol=1e-5)


class TestPadding:
    """-2000, written in every representation that exports use."""

    @pytest.fixture
    def pixels(self):
        pixels = RAMP.astype(np.int16)
        pixels[0] = -2000
        return pixels

    @pytest.mark.parametrize(
        "element",
        [("SS", -2000), ("US", 65536 - 2000), ("OW", b"\x30\xf8"), ("LO", "-2000"), ("SS", [-2000, -2000])],
        ids=["SS", "US", "OW", "text", "twice"],
    )
    @pytest.mark.parametrize("limit", [None, ("SS", None), ("LO", "none")], ids=["no", "empty", "text"])
    def test_representations(self, tmp_path, pixels, element, limit):
        elements = {"PixelPaddingValue": element} | ({"PixelPaddingRangeLimit": limit} if limit else {})
        unit = read(write_with(tmp_path / "a.dcm", pixels, elements))
        assert (unit[0] == 0).all()
        np.testing.assert_allclose(unit[1:], (RAMP[1:] - 256.0) / (4080 - 256), atol=1e-5)

    @pytest.mark.parametrize("ends", [(-2000, -1900), (-1900, -2000), (63536, 63636)])
    def test_ranges_in_either_order_and_sign(self, tmp_path, pixels, ends):
        pixels[0, :8] = -1950
        vr = "SS" if ends[0] < 0 else "US"
        elements = {"PixelPaddingValue": (vr, ends[0]), "PixelPaddingRangeLimit": (vr, ends[1])}
        unit = read(write_with(tmp_path / "a.dcm", pixels, elements))
        assert (unit[0] == 0).all() and unit[1, 1] > 0

    def test_high_padding_of_unsigned_pixels(self, tmp_path):
        pixels = RAMP.copy()
        pixels[0] = 63536
        unit = read(write_with(tmp_path / "a.dcm", pixels, {"PixelPaddingValue": ("SS", -2000)}))
        assert (unit[0] == 0).all() and unit[1:].max() == 1

    def test_what_cannot_be_read_pads_nothing(self, tmp_path):
        path = write_with(tmp_path / "a.dcm", RAMP, {"PixelPaddingValue": ("LO", "none")})
        np.testing.assert_allclose(read(path), OWN_RANGE, atol=1e-5)

    def test_an_image_of_nothing_else_is_no_padding(self, tmp_path):
        path = write_dicom(tmp_path / "a.dcm", np.full((4, 4), 7, np.uint16), PixelPaddingValue=7, WindowCenter=7)
        assert (read(path) == 0).all()


class TestBits:
    def test_overlays_above_the_stored_bits_are_no_values(self, tmp_path):
        pixels = RAMP | np.uint16(0x8000)
        path = write_dicom(tmp_path / "a.dcm", pixels, BitsStored=12, HighBit=11)
        np.testing.assert_allclose(read(path), OWN_RANGE, atol=1e-5)

    @pytest.mark.parametrize("dtype", [np.uint16, np.int16])
    def test_values_that_end_at_the_highest_bit(self, tmp_path, dtype):
        values = RAMP.astype(dtype) - (2048 if dtype == np.int16 else 0)
        path = write_dicom(tmp_path / "a.dcm", values.astype(dtype) << 4, BitsStored=12, HighBit=15, WindowCenter=1,
                           WindowWidth=1001, VOILUTFunction="LINEAR_EXACT")  # fmt: skip
        np.testing.assert_allclose(read(path), ((values - 1.0) / 1001 + 0.5).clip(0, 1), atol=1e-5)

    def test_large_images_are_the_same_in_strips(self, tmp_path, monkeypatch):
        path = write_dicom(tmp_path / "a.dcm", RAMP, WindowCenter=1000, WindowWidth=2001, PixelPaddingValue=32)
        whole = read(path)
        monkeypatch.setattr("mediffusion_diffusers.data.dicom.grey_scale._VALUES_AT_ONCE", 40)
        np.testing.assert_array_equal(read(path), whole)
