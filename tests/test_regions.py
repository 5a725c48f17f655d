"""Where an edit may happen."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from mediffusion_diffusers.regions import (
    boxes_to_mask,
    prepare_region,
    region_of_change,
    region_of_evidence,
    region_to_pixels,
)


BOX = {"x": 0.25, "y": 0.5, "width": 0.5, "height": 0.25}


def test_box_covers_its_pixels():
    mask = boxes_to_mask([BOX], 8, 16)
    assert mask.sum() == 2 * 8
    assert mask[4:6, 4:12].eq(1).all()


def kinds_of_the_same_region():
    pixels = boxes_to_mask([BOX], 16, 16).numpy()
    grey = Image.fromarray((pixels * 255).astype(np.uint8))
    return {
        "pil": grey,
        **{f"pil {mode}": grey.convert(mode) for mode in ("1", "RGB", "RGBA", "LA", "I")},
        "pil palette": grey.convert("P"),
        "pil 16 bits": Image.fromarray((pixels * 65535).astype(np.uint16)),
        "pil float": Image.fromarray(pixels.astype(np.float32)),
        **{f"0 and 1, {dtype}": pixels.astype(dtype) for dtype in ("u1", "i8", "<u2", ">u2", ">f4", "f2")},
        **{f"0 and 255, {dtype}": (pixels * 255).astype(dtype) for dtype in ("u1", "i8", ">u2")},
        "0 and 65535": (pixels * 65535).astype("<u2"),
        "integer tensor": torch.from_numpy(pixels).long() * 255,
        "bfloat16": torch.from_numpy(pixels).bfloat16(),
        "array": pixels,
        "bool": pixels.astype(bool),
        "tensor": torch.from_numpy(pixels)[None, None],
        "boxes": [BOX],
        "list of boxes": [[BOX], [BOX]],
        "list of arrays": [pixels, pixels],
    }


@pytest.mark.parametrize("kind", kinds_of_the_same_region())
def test_every_kind_gives_the_same_region(kind):
    region = prepare_region(kinds_of_the_same_region()[kind], 2, (16, 16), (8, 8))
    assert region.shape == (2 if "list" in kind else 1, 1, 8, 8)
    assert torch.equal(region[0, 0], boxes_to_mask([BOX], 8, 8))


def test_grey_levels_between_blend():
    levels = np.array([[0, 51], [255, 0]], dtype=np.uint8)
    for mask in (levels, Image.fromarray(levels), levels.astype(np.int64), levels / 255):
        region = prepare_region(mask, 1, (2, 2), (2, 2))
        assert region.flatten().tolist() == pytest.approx([0, 0.2, 1, 0])


def test_one_pixel_opens_its_latent_position():
    pixels = np.zeros((16, 16))
    pixels[5, 7] = 1
    region = prepare_region(pixels, 1, (16, 16), (4, 4))
    assert region.sum() == 1 and region[0, 0, 1, 1] == 1


def test_masks_of_other_sizes_are_resized():
    assert prepare_region(np.ones((100, 60)), 1, (16, 16), (8, 8)).eq(1).all()


def test_region_of_change_finds_the_change():
    deviation = torch.zeros(2, 4, 16, 16)
    deviation[0, :, 3:7, 8:12] = 1.0
    deviation[1] = torch.randn(4, 16, 16)
    region = region_of_change(deviation)
    assert region[0, 0, 4:6, 9:11].eq(1).all() and region[0, 0, 3:7, 8:12].sum() == region[0].sum()
    assert region[0].mean() < 0.05 and 0.25 < region[1].mean() < 0.5


def test_region_of_change_is_the_smallest_with_its_share_of_the_energy():
    deviation = torch.randn(3, 2, 9, 7, generator=torch.Generator().manual_seed(0))
    region = region_of_change(deviation, energy_share=0.6)
    size = F.avg_pool2d(deviation.abs().mean(1, keepdim=True), 3, stride=1, padding=1, count_include_pad=False)
    energy = size.square()
    inside = (energy * region).sum((1, 2, 3)) / energy.sum((1, 2, 3))
    smallest = torch.where(region.bool(), energy, torch.inf).amin((1, 2, 3))
    largest_outside = torch.where(region.bool(), 0.0, energy).amax((1, 2, 3))
    assert (inside >= 0.6).all() and (smallest >= largest_outside).all()
    assert (inside - smallest / energy.sum((1, 2, 3)) < 0.6).all()  # without its least position it holds less


def test_region_of_evidence_leaves_out_what_speaks_against_the_target():
    evidence = torch.zeros(1, 1, 16, 16)
    evidence[..., 4:7, 4:7], evidence[..., 12:15, 12:15] = 1.0, -2.0
    region = region_of_evidence(evidence, share=1.0)
    assert region[0, 0, 3:8, 3:8].eq(1).all() and not region[..., 10:, 10:].any()
    assert 0 < region[0, 0, 1, 5] < 1  # the border is soft
    assert not region_of_evidence(-evidence.abs()).any()


class TestOnePlace:
    """Of the connected parts of the region, the one with most of the evidence, in the rows that ask for it."""

    def place(self, *evidence):
        evidence = torch.stack(evidence)
        return region_of_evidence(evidence, share=1.0, in_one_place=torch.ones(len(evidence), dtype=torch.bool))

    def test_the_stronger_of_two(self):
        strong, weak = torch.zeros(1, 16, 16), torch.zeros(1, 16, 16)
        strong[:, 2:8, 2:5], weak[:, 8:13, 11:15] = 1.0, 0.7
        both = torch.stack([strong + weak] * 2)
        found = region_of_evidence(both, share=1.0, in_one_place=torch.tensor([True, False]))
        assert torch.equal(found[:1], self.place(strong))
        assert torch.equal(found[1:], region_of_evidence(both[1:], share=1.0)) and found[1, :, 10, 12] == 1
        assert torch.equal(self.place((strong + weak).flip(-1)), self.place(strong).flip(-1))

    def test_a_winding_part_is_one(self):
        """A long spiral outweighs a square in its middle that is stronger at each position."""
        change = torch.zeros(1, 33, 33)
        change[:, 2, 2:31] = change[:, 2:31, 30] = change[:, 30, 8:31] = change[:, 8:31, 8] = 1.0
        change[:, 8, 8:25] = change[:, 8:25, 24] = 1.0
        change[:, 15:18, 15:18] = 1.5
        place = self.place(change)[0, 0]
        assert place[2, 4:29].eq(1).all() and place[24, 24] > 0 and place[16, 16] == 0

    def test_rows_stand_alone(self):
        rows = torch.randn(5, 1, 12, 9, generator=torch.Generator().manual_seed(0)) ** 5
        rows[3] = -1.0  # nothing speaks for the target
        places = self.place(*rows)
        for row, place in zip(rows, places, strict=True):
            assert torch.equal(self.place(row)[0], place)
        assert not places[3].any()


def test_region_at_the_size_of_the_pictures():
    grid = np.zeros((1, 1, 2, 3), dtype=np.float32)
    grid[0, 0, 1, 2] = 1
    pixels = region_to_pixels(grid, 4, (4, 12))
    assert pixels.shape == (4, 1, 4, 12) and (pixels[:, 0, 2:, 8:] == 1).all() and pixels.sum() == 4 * 2 * 4


def test_region_of_no_change_is_nowhere():
    assert not region_of_change(torch.zeros(1, 4, 8, 8)).any()


@pytest.mark.parametrize(
    "region, message",
    [
        (np.full((16, 16), 2.0), r"`mask` must lie in \[0, 1\]"),
        (np.full((16, 16), np.nan), r"`mask` must lie in \[0, 1\]"),
        (np.zeros((3, 1, 16, 16)), r"`mask` must have shape .* but got \(3, 1, 16, 16\)"),
        ([np.ones((16, 16))] * 3, "one mask per counterfactual, 2, not 3"),
        ([{"x": 0.1}], "needs x, y, width and height"),
        ([{"x": 2.0, "y": 0.1, "width": 0.1, "height": 0.1}], "covers no pixel"),
        ([{"x": -0.8, "y": 0.1, "width": 0.5, "height": 0.1}], "covers no pixel"),  # left of the image
        ([{"x": 0.1, "y": 0.0, "width": 0.5, "height": -0.5}], "covers no pixel"),
        ([{"x": 0.5, "y": 0.1, "width": 0.0, "height": 0.5}], "covers no pixel"),
        ([{"x": 1, "y": 2, "width": 5, "height": 6}], "are relative, .* Divide pixels"),
        # Whole numbers that are neither 0 and 1 nor grey levels up to their end: a map of labels, for example.
        (np.array([[0, 2]], dtype=np.uint8), "`mask` of whole numbers .* largest is 2. .* `mask == 2`"),
        (torch.tensor([[0, 2]]), "`mask` of whole numbers .* largest is 2"),
        (Image.fromarray(np.array([[0, 3]], dtype=np.uint8)), "`mask` of whole numbers .* largest is 3"),
        (np.array([[0, -1]]), r"`mask` must lie in \[0, 1\]"),
        (np.array([[0, 1j]]), "real numbers or booleans, but got ndarray of complex128"),
        (torch.tensor([[0, 1j]]), "real numbers or booleans, but got Tensor of torch.complex64"),
        (np.array([["a"]]), "real numbers or booleans"),
        (Image.new("RGB", (16, 16), (255, 0, 0)), "mode RGB with colours or transparency. Choose"),
        (Image.new("RGBA", (16, 16), (255, 255, 255, 128)), "mode RGBA with colours or transparency"),
    ],
)
def test_mistakes(region, message):
    with pytest.raises(ValueError, match=message):
        prepare_region(region, 2, (16, 16), (8, 8))
