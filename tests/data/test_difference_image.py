import io

import numpy as np
import pytest
from PIL import Image

from mediffusion_diffusers.data.difference_image import (
    DIFFERENCE_PRECISION,
    decode_difference,
    encode_difference,
)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_difference_comes_back_within_the_stated_precision(channels):
    difference = np.random.default_rng(0).uniform(-1, 1, (5, 7, channels)).astype(np.float32)
    decoded = decode_difference(encode_difference(difference), channels)
    assert decoded.shape == difference.shape
    assert 0.5 * DIFFERENCE_PRECISION < abs(decoded - difference).max() <= DIFFERENCE_PRECISION + 1e-7


def test_no_change_and_full_change_are_exact_and_the_picture_is_grey_16_bit():
    difference = np.array([[[0.0], [1.0], [-1.0], [2.0]]], dtype=np.float32)
    png = encode_difference(difference)
    picture = Image.open(io.BytesIO(png))
    assert picture.mode == "I;16" and decode_difference(picture).ravel().tolist() == [0.0, 1.0, -1.0, 1.0]


def test_channels_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="`channels` must divide the picture's 4 rows, but got 3"):
        decode_difference(encode_difference(np.zeros((4, 2, 1))), 3)
