"""Every kind of picture that a user may hold becomes the same numbers, and no 16-bit value is clipped."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from mediffusion_diffusers import MediffusionImageProcessor
from mediffusion_diffusers.image_processor import denormalize, normalize, numpy_to_pil, pil_to_float_array, resize


SIZE = (6, 5)  # height, width: not square, so that a swap shows


def grey_levels(high=256, dtype=np.uint8, seed=0):
    return np.random.default_rng(seed).integers(0, high, SIZE).astype(dtype)


def colour_levels():
    return np.random.default_rng(1).integers(0, 256, (*SIZE, 3)).astype(np.uint8)


def luma(colour):
    return (colour @ np.array([0.299, 0.587, 0.114]))[..., None]


def png_bytes(image):
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


class TestPILModes:
    @pytest.mark.parametrize("channels", [1, 3])
    def test_grey(self, channels):
        levels = grey_levels()
        array = pil_to_float_array(Image.fromarray(levels), channels)
        assert array.shape == (*SIZE, channels) and array.dtype == np.float32
        assert np.array_equal(array, np.repeat(levels[..., None] / np.float32(255), channels, axis=-1))

    def test_colour(self):
        levels = colour_levels()
        image = Image.fromarray(levels)
        np.testing.assert_allclose(pil_to_float_array(image, 3), levels / 255, rtol=1e-6)
        np.testing.assert_allclose(pil_to_float_array(image, 1), luma(levels / 255), rtol=1e-5)

    @pytest.mark.parametrize("mode", ["I;16", "I;16B", "I"])
    @pytest.mark.parametrize("saved", [True, False])
    def test_16_bit_is_not_clipped(self, mode, saved):
        levels = grey_levels(65536, np.uint16)
        levels[0, 0], levels[0, 1] = 65535, 256
        if mode == "I":
            image = Image.fromarray(levels.astype(np.int32))
        else:
            image = Image.frombytes(mode, SIZE[::-1], levels.astype(">u2" if mode == "I;16B" else "<u2").tobytes())
        if saved:
            buffer = io.BytesIO()
            image.save(buffer, format="TIFF" if mode == "I" else "PNG")
            image = Image.open(buffer)
        array = pil_to_float_array(image, 1)[..., 0]
        np.testing.assert_allclose(array, levels / 65535, rtol=1e-6)
        assert array[0, 0] == 1 and array[0, 1] < 0.01

    def test_alpha_lies_on_black(self):
        levels = colour_levels()
        alpha = grey_levels()
        image = Image.fromarray(np.concatenate([levels, alpha[..., None]], axis=-1))
        assert image.mode == "RGBA"
        expected = levels * (alpha[..., None] / 255) / 255
        np.testing.assert_allclose(pil_to_float_array(image, 3), expected, atol=1 / 255)
        grey = Image.merge("LA", [Image.fromarray(grey_levels(seed=3)), Image.fromarray(alpha)])
        np.testing.assert_allclose(
            pil_to_float_array(grey, 1)[..., 0], grey_levels(seed=3) / 255 * alpha / 255, atol=1 / 255
        )

    def test_palette_is_resolved(self):
        image = Image.fromarray(colour_levels()).quantize(64)
        assert image.mode == "P"
        np.testing.assert_allclose(pil_to_float_array(image, 3), np.asarray(image.convert("RGB")) / 255, rtol=1e-6)

    def test_transparent_palette_lies_on_black(self):
        image = Image.new("P", SIZE[::-1], 0)
        image.putpalette([200, 100, 50] + [0] * 765)
        image.info["transparency"] = 0
        assert pil_to_float_array(image, 3).max() == 0

    def test_bilevel_and_other_colour_spaces(self):
        bilevel = Image.fromarray(grey_levels() > 127)
        assert set(np.unique(pil_to_float_array(bilevel, 1))) == {0.0, 1.0}
        for mode in ("CMYK", "YCbCr", "HSV"):
            image = Image.fromarray(colour_levels()).convert(mode)
            np.testing.assert_allclose(pil_to_float_array(image, 3), np.asarray(image.convert("RGB")) / 255, rtol=1e-6)

    def test_16_bit_colour_keeps_its_8_highest_bits(self):
        # Pillow has no mode for it; written by hand as the PNG specification says.
        levels = np.random.default_rng(0).integers(0, 65536, (*SIZE, 3)).astype(">u2")
        rows = b"".join(b"\0" + row.tobytes() for row in levels)

        def chunk(kind, data):
            return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

        header = struct.pack(">IIBBBBB", SIZE[1], SIZE[0], 16, 2, 0, 0, 0)
        png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
        array = pil_to_float_array(Image.open(io.BytesIO(png)), 3)
        np.testing.assert_allclose(array, levels / 65535, atol=1 / 255)

    @pytest.mark.parametrize("mode", ["La", "RGBa", "PA", "RGBX"])
    def test_rare_modes(self, mode):
        image = Image.new("RGBA", (2, 2), (200, 200, 200, 255)).convert(mode[:2].upper() if mode == "La" else "RGBA")
        image = image.convert(mode) if mode != "RGBX" else Image.new("RGBX", (2, 2), (200, 200, 200, 0))
        np.testing.assert_allclose(pil_to_float_array(image, 1), 200 / 255, atol=1 / 255)

    def test_floating_point(self):
        values = np.random.default_rng(0).random(SIZE).astype(np.float32)
        assert np.array_equal(pil_to_float_array(Image.fromarray(values), 1)[..., 0], values)

    def test_exif_orientation_is_applied(self):
        levels = grey_levels()
        exif = Image.Exif()
        exif[0x0112] = 6  # turn by 90 degrees clockwise to view
        buffer = io.BytesIO()
        Image.fromarray(levels).save(buffer, format="PNG", exif=exif)
        array = pil_to_float_array(Image.open(buffer), 1)[..., 0]
        assert np.array_equal(array, np.rot90(levels, -1) / np.float32(255))

    def test_leaves_the_given_picture_alone(self):
        image = Image.fromarray(colour_levels())
        before = image.tobytes()
        pil_to_float_array(image, 1)
        assert image.mode == "RGB" and image.tobytes() == before


class TestPILMistakes:
    @staticmethod
    def corruptions():
        whole = png_bytes(Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)))
        start = whole.index(b"IDAT") + 4
        wrong_data = bytearray(whole)
        wrong_data[start + 100] ^= 0xFF
        no_zlib = bytearray(whole)
        no_zlib[start : start + 20] = b"\0" * 20
        return {
            "truncated": whole[: len(whole) // 2],
            "without_end_of_data": whole[: start + 50],
            "flipped": bytes(wrong_data),
            "not_compressed": bytes(no_zlib),
        }

    @pytest.mark.parametrize("kind", ["truncated", "without_end_of_data", "flipped", "not_compressed"])
    def test_corrupt_png(self, kind, tmp_path):
        path = tmp_path / "chest.png"
        path.write_bytes(self.corruptions()[kind])
        with pytest.raises(ValueError, match=r"Cannot decode .*chest\.png: the file is corrupt or truncated"):
            pil_to_float_array(Image.open(path), 1)

    def test_corrupt_jpeg_and_tiff(self, tmp_path):
        for name in ("a.jpg", "a.tif"):
            path = tmp_path / name
            Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)).save(path)
            path.write_bytes(path.read_bytes()[: len(path.read_bytes()) // 2 + (300 if name == "a.tif" else 0)])
            try:
                image = Image.open(path)
            except OSError:
                continue  # PIL says so itself
            with pytest.raises(ValueError, match="Cannot decode"):
                pil_to_float_array(image, 1)

    def test_several_frames(self):
        buffer = io.BytesIO()
        frames = [Image.fromarray(grey_levels(seed=seed)) for seed in range(3)]
        frames[0].save(buffer, format="TIFF", save_all=True, append_images=frames[1:])
        image = Image.open(buffer)
        with pytest.raises(ValueError, match=r"holds 3 frames.*image\.seek"):
            pil_to_float_array(image, 1)
        image.seek(1)
        assert np.array_equal(pil_to_float_array(image.copy(), 1)[..., 0], grey_levels(seed=1) / np.float32(255))

    @pytest.mark.parametrize("values", [[[0.0, np.nan]], [[0.0, 1.5]], [[-0.5, 1.0]], [[0.0, np.inf]]])
    def test_floating_point_range(self, values):
        with pytest.raises(ValueError, match=r"mode 'F'.*lie in \[0, 1\]"):
            pil_to_float_array(Image.fromarray(np.array(values, dtype=np.float32)), 1)

    @pytest.mark.parametrize("level", [-1, 65536])
    def test_integer_range(self, level):
        with pytest.raises(ValueError, match=r"values in \[0, 65535\]"):
            pil_to_float_array(Image.fromarray(np.array([[0, level]], dtype=np.int32)), 1)

    @pytest.mark.parametrize("channels", [0, 2, 4])
    def test_channels(self, channels):
        with pytest.raises(ValueError, match="`channels` must be 1"):
            pil_to_float_array(Image.new("L", (2, 2)), channels)
        with pytest.raises(ValueError, match="`channels` must be 1"):
            MediffusionImageProcessor(channels)


class TestPreprocess:
    @staticmethod
    def kinds():
        """One grey picture in every accepted form."""
        levels = grey_levels()
        floats = (levels / 255).astype(np.float32)
        return {
            "pil": Image.fromarray(levels),
            "list": [Image.fromarray(levels)],
            "tuple": (Image.fromarray(levels),),
            "uint8_hw": levels,
            "uint16_hw": levels.astype(np.uint16) * 257,
            "uint16_big_endian": (levels.astype(np.uint16) * 257).astype(">u2"),
            "float_big_endian": floats.astype(">f4"),
            "float_hw": floats,
            "float64_hw": levels / 255,
            "float_hwc": floats[..., None],
            "float_bhwc": floats[None, ..., None],
            "tensor_hw": torch.from_numpy(floats),
            "tensor_chw": torch.from_numpy(floats)[None],
            "tensor_bchw": torch.from_numpy(floats)[None, None],
            "tensor_uint8": torch.from_numpy(levels)[None],
            "tensor_float64": torch.from_numpy(levels / 255)[None],
            "tensor_with_graph": torch.from_numpy(floats)[None].requires_grad_(),
            "list_of_tensors": [torch.from_numpy(floats)[None]],
            "strided": np.flip(np.flip(floats, 0).copy(), 0),
        }

    @pytest.mark.parametrize("channels", [1, 3])
    @pytest.mark.parametrize("kind", sorted(kinds()))
    def test_every_kind_means_the_same(self, kind, channels):
        tensor = MediffusionImageProcessor(channels).preprocess(self.kinds()[kind], *SIZE)
        assert tensor.shape == (1, channels, *SIZE) and tensor.dtype == torch.float32 and not tensor.requires_grad
        expected = torch.from_numpy(grey_levels() / 127.5 - 1).float().expand(1, channels, *SIZE)
        torch.testing.assert_close(tensor, expected)

    def test_colour_to_grey_from_pil_array_and_tensor(self):
        levels = colour_levels()
        floats = (levels / 255).astype(np.float32)
        processor = MediffusionImageProcessor(1)
        results = [
            processor.preprocess(image, *SIZE)
            for image in (Image.fromarray(levels), levels, floats, torch.from_numpy(floats).permute(2, 0, 1))
        ]
        for result in results:
            assert result.shape == (1, 1, *SIZE)
            torch.testing.assert_close(result, results[0])

    def test_batches_and_lists_of_batches(self):
        batch = np.random.default_rng(0).random((3, *SIZE, 1)).astype(np.float32)
        processor = MediffusionImageProcessor(1)
        expected = processor.preprocess(batch, *SIZE)
        assert expected.shape == (3, 1, *SIZE)
        for images in (list(batch), [batch[:1], batch[1:]], torch.from_numpy(batch).permute(0, 3, 1, 2)):
            assert torch.equal(processor.preprocess(images, *SIZE), expected)

    def test_sizes_and_kinds_may_differ_within_a_list(self):
        images = [
            Image.new("L", (7, 9), 255),
            Image.new("RGB", (30, 20), (255, 255, 255)),
            np.ones((4, 4), dtype=np.float32),
            torch.ones(3, 5, 5),
        ]
        tensor = MediffusionImageProcessor(1).preprocess(images, 8, 8)
        assert tensor.shape == (4, 1, 8, 8)
        torch.testing.assert_close(tensor, torch.ones_like(tensor))

    def test_output_range(self):
        image = np.array([[0, 255]], dtype=np.uint8)
        assert MediffusionImageProcessor(1).preprocess(image, 1, 2).flatten().tolist() == [-1, 1]

    @pytest.mark.parametrize(
        "images, message",
        [
            ([], "the list is empty"),
            (np.zeros((0, 4, 4, 1), dtype=np.float32), "the list is empty"),
            (np.zeros((4, 4, 2), dtype=np.float32), r"layout \(height, width, channels\), but got shape \(4, 4, 2\)"),
            (torch.zeros(2, 4, 4), r"layout \(channels, height, width\), but got shape \(2, 4, 4\)"),
            (torch.zeros(4, 4, 3), "layout"),
            (np.zeros((1, 1, 4, 4, 1), dtype=np.float32), "layout"),
            (np.zeros((0, 4), dtype=np.float32), "height and a width above 0"),
            (np.full((4, 4), np.nan, dtype=np.float32), "NaN or infinite"),
            (torch.full((1, 4, 4), torch.inf), "NaN or infinite"),
            (np.ma.masked_invalid(np.array([[0.0, np.nan]])), "NaN or infinite"),
            (np.full((4, 4), 255.0, dtype=np.float32), r"lie in \[0, 1\].*image / 255"),
            (np.full((4, 4), -1.0, dtype=np.float32), r"\(image \+ 1\) / 2"),
            (np.zeros((4, 4), dtype=np.int64), "dtype is int64"),
            (np.zeros((4, 4), dtype=bool), "dtype is bool"),
            ("chest.png", "but got str"),
            ([None], "but got NoneType"),
            ([[Image.new("L", (2, 2))]], "but got list"),
        ],
    )
    def test_mistakes(self, images, message):
        with pytest.raises(ValueError, match=message):
            MediffusionImageProcessor(1).preprocess(images, 4, 4)


class TestResize:
    def test_equal_size_is_the_identity(self):
        images = torch.rand(2, 1, 8, 8)
        assert resize(images, 8, 8) is images

    def test_shrinking_averages(self):
        """Antialiasing: every pixel counts, not the four nearest ones alone."""
        noise = torch.rand(1, 1, 64, 64)
        assert resize(noise, 8, 8).std() < 0.25 * noise.std()

    @pytest.mark.parametrize("size", [(3, 5), (8, 8), (40, 16)])
    def test_keeps_range_and_brightness(self, size):
        images = torch.rand(1, 3, 16, 16)
        resized = resize(images, *size)
        assert resized.shape == (1, 3, *size)
        assert resized.min() >= 0 and resized.max() <= 1 + 1e-6
        assert abs(resized.mean() - images.mean()) < 0.05


class TestPostprocess:
    @pytest.mark.parametrize("channels", [1, 3])
    def test_round_trip(self, channels):
        processor = MediffusionImageProcessor(channels)
        levels = np.random.default_rng(0).integers(0, 256, (2, *SIZE, channels)).astype(np.uint8)
        tensor = processor.preprocess(levels, *SIZE)
        pictures = processor.postprocess(tensor)
        assert [picture.mode for picture in pictures] == ["L" if channels == 1 else "RGB"] * 2
        assert np.array_equal(np.stack([np.asarray(picture).reshape(*SIZE, channels) for picture in pictures]), levels)
        np.testing.assert_allclose(processor.postprocess(tensor, "np"), levels / 255, atol=1e-6)
        pt = processor.postprocess(tensor, "pt")
        assert pt.shape == (2, channels, *SIZE)
        np.testing.assert_allclose(pt.permute(0, 2, 3, 1), levels / 255, atol=1e-6)

    def test_clamps(self):
        wild = torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0]).reshape(1, 1, 1, 5)
        processor = MediffusionImageProcessor(1)
        assert processor.postprocess(wild, "pt").flatten().tolist() == [0, 0, 0.5, 1, 1]
        assert np.asarray(processor.postprocess(wild)[0]).tolist() == [[0, 0, 128, 255, 255]]

    def test_half_precision_and_graph(self):
        images = torch.zeros(1, 1, 2, 2, dtype=torch.bfloat16, requires_grad=True)
        assert MediffusionImageProcessor(1).postprocess(images, "np").dtype == np.float32

    def test_unknown_type(self):
        with pytest.raises(ValueError, match="`output_type` must be"):
            MediffusionImageProcessor(1).postprocess(torch.zeros(1, 1, 2, 2), "jpg")


def test_the_range_is_its_own_inverse():
    images = torch.rand(100)
    torch.testing.assert_close(denormalize(normalize(images)), images)
    assert normalize(torch.tensor([0.0, 1.0])).tolist() == [-1, 1]


def test_numpy_to_pil_rounds():
    (image,) = numpy_to_pil(np.full((1, 2, 2, 3), 0.5019, dtype=np.float32))
    assert image.mode == "RGB" and image.getpixel((0, 0)) == (128, 128, 128)


def test_saves_its_config(tmp_path):
    MediffusionImageProcessor(3).save_config(tmp_path)
    assert MediffusionImageProcessor.from_config(MediffusionImageProcessor.load_config(tmp_path)).config.channels == 3
