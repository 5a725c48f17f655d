import numpy as np
import pytest
import torch
from PIL import Image
from support.sources import random_picture

from mediffusion_diffusers.data import ImageTransform
from mediffusion_diffusers.data.transforms import rotate
from mediffusion_diffusers.image_processor import MediffusionImageProcessor


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("L", 3), ("RGB", 1), ("RGBA", 3), ("I;16", 1)])
def test_evaluation_reads_as_the_pipelines_do(mode, channels):
    picture = random_picture(0, (20, 24), mode)
    ours = ImageTransform(16, channels, crop_scale=(0.5, 1.0), horizontal_flip=True, shift=2, intensity=0.2)(picture)
    theirs = MediffusionImageProcessor(channels=channels).preprocess(picture, 16, 16)[0]
    assert ours.shape == (channels, 16, 16)
    assert torch.equal(ours, theirs)


def test_without_augmentation_training_equals_evaluation():
    transform, picture = ImageTransform(16, 1), random_picture(1)
    assert torch.equal(transform(picture, np.random.default_rng(0)), transform(picture))


def test_deterministic_given_the_generator():
    transform = ImageTransform(12, 1, crop_scale=(0.3, 0.9), horizontal_flip=True, shift=2, intensity=0.3)
    pictures = [random_picture(2, (16, 18))] * 4
    first, second, other = (
        torch.stack([transform(picture, rng) for picture in pictures])
        for rng in (np.random.default_rng(0), np.random.default_rng(0), np.random.default_rng(1))
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert not torch.equal(first[0], first[1])
    assert first.min() >= -1
    assert first.max() <= 1


def test_flip_mirrors_about_every_second_image():
    transform, picture = ImageTransform(16, 1, horizontal_flip=True), random_picture(3)
    plain, rng = transform(picture), np.random.default_rng(0)
    results = [transform(picture, rng) for _ in range(40)]
    flipped = sum(torch.equal(result, plain.flip(-1)) for result in results)
    assert flipped + sum(torch.equal(result, plain) for result in results) == 40
    assert 10 <= flipped <= 30


def test_shift_moves_by_whole_pixels_up_to_its_limit():
    array = np.zeros((16, 16), np.uint8)
    array[8, 8] = 255
    transform, rng = ImageTransform(16, 1, shift=3), np.random.default_rng(0)
    places = {tuple(divmod(int(transform(Image.fromarray(array), rng).argmax()), 16)) for _ in range(300)}
    assert places == {(8 + down, 8 + right) for down in range(-3, 4) for right in range(-3, 4)}


def test_crop_of_everything_changes_nothing_but_the_ratio():
    flat = Image.new("L", (16, 16), 90)
    transform = ImageTransform(8, 1, crop_scale=(0.2, 1.0))
    assert torch.allclose(transform(flat, np.random.default_rng(0)), transform(flat), atol=1e-6)


@pytest.mark.parametrize(
    "arguments",
    [
        {"resolution": 0},
        {"channels": 2},
        {"crop_scale": (0.0, 1.0)},
        {"crop_scale": (0.9, 0.5)},
        {"shift": 8},
        {"intensity": 1.0},
        {"rotation": 181.0},
        {"color_jitter": 1.0},
    ],
)
def test_refuses(arguments):
    with pytest.raises(ValueError, match=f"`{next(iter(arguments))}` must be"):
        ImageTransform(**{"resolution": 8, "channels": 1, **arguments})


def test_a_quarter_turn_moves_every_pixel_to_its_place():
    pixels = torch.rand(1, 3, 8, 8)
    torch.testing.assert_close(rotate(pixels, 90.0), pixels.rot90(-1, (2, 3)), rtol=0, atol=1e-5)
    torch.testing.assert_close(rotate(pixels, 0.0), pixels, rtol=0, atol=1e-5)
    constant = torch.full((1, 1, 9, 9), 0.3)
    torch.testing.assert_close(rotate(constant, 33.0), constant)  # nothing comes in from outside


def test_colours_change_and_shapes_stay():
    transform, picture = ImageTransform(16, 3, color_jitter=0.4), random_picture(3, (16, 16), "RGB")
    plain, varied = transform(picture), transform(picture, np.random.default_rng(0))
    assert not torch.allclose(plain, varied) and varied.min() >= -1 and varied.max() <= 1
    flat = transform(Image.new("RGB", (16, 16), (120, 100, 90)), np.random.default_rng(0))
    assert torch.equal(flat, flat[:, :1, :1].expand_as(flat)) and len(flat[:, 0, 0].unique()) == 3
    grey = ImageTransform(16, 1, color_jitter=0.4)
    assert grey(random_picture(3), np.random.default_rng(0)).shape == (1, 16, 16)
