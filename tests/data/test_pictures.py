import io

import numpy as np
import pytest
from PIL import Image
from support.sources import random_picture

from mediffusion_diffusers.data import encode_picture, open_picture
from mediffusion_diffusers.image_processor import pil_to_float_array


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
