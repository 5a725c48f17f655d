import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from support.sources import random_picture

from mediffusion_diffusers.data import encode_picture, encode_png, open_picture
from mediffusion_diffusers.image_processor import pil_to_float_array, pil_to_tensor


def decode(data):
    return Image.open(io.BytesIO(data))


def test_sixteen_bits_survive(tmp_path):
    picture = random_picture(0, mode="I;16")
    picture.save(tmp_path / "deep.png")
    for source in (picture, tmp_path / "deep.png", (tmp_path / "deep.png").read_bytes()):
        np.testing.assert_array_equal(np.asarray(decode(encode_picture(source, 1))), np.asarray(picture))
    # Reduced too: nothing clips at 255.
    reduced = np.asarray(decode(encode_picture(Image.fromarray(np.full((8, 8), 56703, np.uint16)), 1, 4)))
    assert reduced.shape == (4, 4)
    assert (reduced == 56703).all()


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3)])
def test_files_that_fit_keep_their_bytes(tmp_path, mode, channels):
    for name in ("a.png", "a.jpg"):
        random_picture(1, mode=mode).save(tmp_path / name)
        assert encode_picture(tmp_path / name, channels) == (tmp_path / name).read_bytes()


def test_rgba_radiograph_becomes_grey():
    grey = np.asarray(random_picture(2))
    rgba = Image.fromarray(np.dstack([grey, grey, grey, np.full_like(grey, 255)]))
    stored = decode(encode_picture(rgba, 1))
    assert stored.mode == "L"
    np.testing.assert_array_equal(np.asarray(stored), grey)


def test_reduction_keeps_the_aspect_ratio_and_never_enlarges():
    assert decode(encode_picture(random_picture(0, (40, 20)), 1, 10)).size == (20, 10)
    assert decode(encode_picture(random_picture(0, (40, 20)), 1, 30)).size == (40, 20)


def test_personal_text_is_not_kept(tmp_path):
    from PIL.PngImagePlugin import PngInfo

    text = PngInfo()
    text.add_text("Patient", "Doe^Jane")
    random_picture(3).save(tmp_path / "a.png", pnginfo=text)
    random_picture(3).save(tmp_path / "b.jpg", comment=b"Doe^Jane")
    for name in ("a.png", "b.jpg"):
        assert b"Doe" in (tmp_path / name).read_bytes()
        stored = encode_picture(tmp_path / name, 1)
        assert b"Doe" not in stored
        expected = pil_to_float_array(Image.open(tmp_path / name), 1)
        np.testing.assert_array_equal(pil_to_float_array(decode(stored), 1), expected)


def test_parts_of_a_file_that_no_reader_knows_are_not_kept(tmp_path):
    picture, secret = random_picture(3), b"Doe^Jane"
    segment = b"\xff\xe7" + (len(secret) + 2).to_bytes(2, "big") + secret
    picture.save(tmp_path / "a.jpg")
    plain = (tmp_path / "a.jpg").read_bytes()
    chunk = struct.pack(">I", len(secret)) + b"doEr" + secret + struct.pack(">I", zlib.crc32(b"doEr" + secret))
    png = encode_png(picture)
    for data in (plain[:2] + segment + plain[2:], png[:-12] + chunk + png[-12:], png[:33] + chunk + png[33:]):
        stored = encode_picture(data, 1)
        assert secret in data and secret not in stored
        np.testing.assert_array_equal(np.asarray(decode(stored)), np.asarray(decode(data)))


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    random_picture(4, (12, 8)).save(tmp_path / "turned.png", exif=exif)
    assert open_picture(tmp_path / "turned.png").size == (8, 12)
    assert decode(encode_picture(tmp_path / "turned.png", 1)).size == (8, 12)


def test_what_cannot_be_read_is_named(tmp_path):
    random_picture(5, (64, 64)).save(tmp_path / "torn.png")
    (tmp_path / "torn.png").write_bytes((tmp_path / "torn.png").read_bytes()[:-1000])
    (tmp_path / "text.png").write_text("no picture")
    frames = [random_picture(seed) for seed in range(2)]
    frames[0].save(tmp_path / "film.tif", save_all=True, append_images=frames[1:])
    for name, message in (
        ("torn.png", r"Cannot decode .*torn\.png"),
        ("text.png", r"Cannot decode .*text\.png"),
        ("none.png", r"none\.png does not exist"),
        ("film.tif", r"film\.tif holds 2 frames"),
    ):
        with pytest.raises(ValueError, match=message):
            encode_picture(tmp_path / name, 1)


def with_exif(picture, exif, format="PNG"):
    buffer = io.BytesIO()
    picture.save(buffer, format=format, exif=exif)
    return buffer.getvalue()


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0no TIFF header",
        b"Exif\0\0MM\0*\0\0\0\x08\xff\xff",
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\xff\xff\xff\xff",
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x02\0\0\0six\0\0\0\0\0",
        b"Exif\0\0",
    ],
    ids=["no header", "short", "endless", "text", "empty"],
)
def test_a_broken_exif_is_passed_over(exif, format):
    picture = random_picture(6, (12, 8))
    data = with_exif(picture, exif, format)
    stored = decode(encode_picture(data, 1))
    assert stored.size == (12, 8) and not stored.getexif()
    np.testing.assert_array_equal(
        pil_to_float_array(stored, 1), np.asarray(decode(data).convert("L"))[..., None] / np.float32(255)
    )


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = np.asarray(random_picture(4, (12, 8)))
    # How a camera that is held so would have stored the upright picture (EXIF 2.3, tag 274).
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: upright.T[::-1],
        7: upright.T[::-1, ::-1],
        8: upright.T[:, ::-1],
    }[orientation]
    data = with_exif(Image.fromarray(np.ascontiguousarray(stored)), exif)
    np.testing.assert_array_equal(np.asarray(open_picture(data)), upright)
    np.testing.assert_array_equal(pil_to_float_array(open_picture(data), 1)[..., 0], upright / np.float32(255))


def test_the_primary_image_of_a_phone_picture_is_taken(tmp_path):
    pictures = [random_picture(seed, (16, 16), "RGB") for seed in range(2)]
    pictures[0].save(tmp_path / "phone.jpg", format="MPO", save_all=True, append_images=pictures[1:])
    pictures[0].save(tmp_path / "plain.jpg", format="JPEG")
    with Image.open(tmp_path / "phone.jpg") as phone:
        assert phone.format == "MPO" and phone.n_frames == 2
    expected = np.asarray(Image.open(tmp_path / "plain.jpg"))
    np.testing.assert_array_equal(np.asarray(decode(encode_picture(tmp_path / "phone.jpg", 3))), expected)


@pytest.mark.parametrize("format", ["TIFF", "GIF", "PNG", "WEBP"])
def test_other_pictures_of_several_frames_are_refused(tmp_path, format):
    frames = [random_picture(seed) for seed in range(3)]
    frames[0].save(tmp_path / "film", format=format, save_all=True, append_images=frames[1:])
    with pytest.raises(ValueError, match=r"film holds 3 frames, but one frame is expected"):
        encode_picture(tmp_path / "film", 1)


@pytest.mark.parametrize("error", [RecursionError, MemoryError, AssertionError, struct.error, KeyError])
def test_whatever_a_decoder_raises_is_a_reason(tmp_path, monkeypatch, error):
    random_picture(0).save(tmp_path / "a.png")

    def fail(self):
        raise error("odd")

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", fail)
    with pytest.raises(ValueError, match=r"Cannot decode .*a\.png.*odd"):
        encode_picture(tmp_path / "a.png", 1)


def test_too_large_is_not_corrupt(monkeypatch):
    data = encode_png(random_picture(0, (32, 32)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    with pytest.raises(ValueError, match=r"the image is too large: 1,024 pixels, of at most 1,000 .*Reduce it first"):
        open_picture(data)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "I;16", "P"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("image_size", [None, 20])
def test_large_pictures_are_the_same_in_strips(monkeypatch, mode, channels, image_size):
    picture = random_picture(1, (50, 70)).quantize(64) if mode == "P" else random_picture(1, (50, 70), mode)
    whole = np.asarray(decode(encode_picture(picture, channels, image_size))).astype(int)
    monkeypatch.setattr("mediffusion_diffusers.image_processor._PIXELS_AT_ONCE", 350)
    strips = np.asarray(decode(encode_picture(picture, channels, image_size))).astype(int)
    assert abs(whole - strips).max() <= (0 if image_size is None else 1)


def test_a_large_picture_is_never_whole_in_floating_point():
    """12 megapixels of colour: 137 MiB in float32, 275 MiB in float64."""
    buffer = io.BytesIO()
    Image.new("RGB", (4000, 3000), (200, 100, 50)).save(buffer, format="JPEG")
    tracemalloc.start()
    try:
        encode_picture(buffer.getvalue(), 3, 256)
        encode_picture(buffer.getvalue(), 1)
        pil_to_tensor(decode(buffer.getvalue()), 1, 256, 256)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 60 * 2**20
