"""The pictures hold the pixels that they are given, on the scales that they promise."""

from dataclasses import replace

import numpy as np
import pytest
from support.explanations import explained_phantom

from mediffusion_diffusers.reports.pictures import drawing
from mediffusion_diffusers.reports.pictures.explained_image import ScoredImage
from mediffusion_diffusers.reports.pictures.explanations import agreement_figure, explanation_panel, severity_sweep


LIME, AMBER = (0, 255, 0), (255, 176, 0)


@pytest.fixture(scope="module")
def explained():
    return explained_phantom()


def enlarged(pixels, image_size=32):
    """8-bit RGB pixels as `drawing` shows a small picture: every pixel a square."""
    factor = drawing.PICTURE_SIDE // image_size
    return pixels.repeat(factor, 0).repeat(factor, 1)


def where(picture, part):
    """Top left corners at which a picture holds a part exactly, but for its rim of one pixel (frames, boxes)."""
    picture, part = np.asarray(picture), part[2:-2, 2:-2]
    height, width = part.shape[:2]
    corners = np.argwhere((picture[: 1 - height or None, : 1 - width or None] == part[0, 0]).all(-1))
    return [tuple(c) for c in corners if np.array_equal(picture[c[0] : c[0] + height, c[1] : c[1] + width], part)]


def has_colour(picture, colour):
    return bool((np.abs(np.asarray(picture).astype(int) - colour).sum(-1) < 60).any())


def test_the_panel_shows_every_picture_above_its_difference(explained):
    picture = explanation_panel(replace(explained, boxes=()))
    limit, above = explained.limit(), []
    for _, image in explained.changed():
        (shown,) = where(picture, enlarged(drawing.picture_pixels(image.image)))
        (difference,) = where(picture, enlarged(drawing.difference_pixels(explained.difference(image), limit)))
        assert difference[1] == shown[1] and difference[0] > shown[0]
        above.append(shown)
    assert len({top for top, _ in above}) == 1 and above == sorted(above)


def test_the_panel_has_a_column_for_each_control_only(explained):
    full = explanation_panel(replace(explained, plain_gradient=explained.null_edit))
    bare = explanation_panel(replace(explained, null_edit=None, random_noise=None))
    column = drawing.PICTURE_SIDE + drawing.GAP
    assert full.width - explanation_panel(explained).width == pytest.approx(column, abs=2)
    assert full.width - bare.width == pytest.approx(3 * column, abs=2)


def test_the_panel_has_a_line_more_with_an_oracle(explained):
    scored = replace(explained, original=ScoredImage(explained.original.image, 0.9, 0.8))
    assert explanation_panel(scored).height - explanation_panel(explained).height == pytest.approx(drawing.LINE, abs=1)


def test_boxes_and_regions_are_drawn_if_known(explained):
    plain = replace(explained, boxes=())
    region = np.zeros((32, 32))
    region[4:20, 6:24] = 1
    assert not has_colour(explanation_panel(plain), LIME) and has_colour(explanation_panel(explained), LIME)
    assert not has_colour(explanation_panel(plain), AMBER)
    assert has_colour(explanation_panel(replace(plain, region=region)), AMBER)
    assert not has_colour(explanation_panel(replace(plain, region=np.zeros((32, 32)))), AMBER)


@pytest.mark.parametrize("shape", [(3, 24, 24), (3, 20, 60), (1, 300, 100)])
def test_colour_and_oblong_pictures_fit(shape):
    rng = np.random.default_rng(0)
    images = [ScoredImage(rng.random(shape), 0.5) for _ in range(3)]
    explained = replace(explained_phantom(), boxes=(), sweep=None, random_noise=None)
    explained = replace(explained, original=images[0], counterfactual=images[1], null_edit=images[2])
    picture = np.asarray(explanation_panel(explained))
    if shape == (3, 24, 24):
        factor = drawing.shown_size(images[1].image)[0] // 24
        colours = drawing.picture_pixels(images[1].image).repeat(factor, 0).repeat(factor, 1)
        assert len(where(picture, colours)) == 1
    assert picture.shape[1] > 2 * drawing.shown_size(images[0].image)[0]


def test_a_region_is_outlined_along_its_pixels():
    region = np.zeros((6, 8))
    region[1:3, 2:7] = 1
    edges = drawing.region_edges(region)
    assert len(edges) == 2 * (2 + 5)
    assert edges.min((0, 1)).tolist() == [2, 1] and edges.max((0, 1)).tolist() == [7, 3]
    assert len(drawing.region_edges(np.zeros((6, 8)))) == 0
    assert len(drawing.region_edges(np.ones((6, 8)))) == 2 * (6 + 8)
    assert len(drawing.region_edges(np.full((6, 8), 1 / 9))) == 2 * (6 + 8)  # the border of a soft region


def test_pictures_grow_by_whole_factors_and_large_ones_shrink():
    assert drawing.shown_size(np.zeros((32, 32))) == (256, 256)
    assert drawing.shown_size(np.zeros((3, 64, 32))) == (128, 256)
    assert drawing.shown_size(np.zeros((28, 28))) == (252, 252)
    assert drawing.shown_size(np.zeros((200, 200))) == (200, 200)
    assert drawing.shown_size(np.zeros((1024, 512))) == (128, 256)


def test_agreement_is_shown_beside_mean_and_spread_on_one_scale(explained):
    rng = np.random.default_rng(0)
    mean = explained.difference(explained.counterfactual)
    spread, agreement = 0.02 * rng.random((32, 32)), rng.random((32, 32))
    picture = agreement_figure(mean, spread, agreement, explained.original.image, "8 seeds")
    limit = drawing.difference_limit([mean, spread])
    (shown,) = where(picture, enlarged(drawing.difference_pixels(mean, limit)))
    (original,) = where(picture, enlarged(drawing.picture_pixels(explained.original.image)))
    assert shown[0] == original[0] and shown[1] > original[1]
    untitled = agreement_figure(mean, spread, agreement, explained.original.image)
    boxed = agreement_figure(mean, spread, agreement, explained.original.image, boxes=explained.boxes)
    assert untitled.height < picture.height and has_colour(boxed, LIME) and not has_colour(untitled, LIME)


def test_maps_that_cannot_be_are_refused(explained):
    zeros, ones, original = np.zeros((32, 32)), np.ones((32, 32)), explained.original.image
    with pytest.raises(ValueError, match="one height and width"):
        agreement_figure(zeros, zeros, zeros[:8], original)
    with pytest.raises(ValueError, match="`spread` must be"):
        agreement_figure(zeros, -ones, zeros, original)
    with pytest.raises(ValueError, match="`agreement` must lie"):
        agreement_figure(zeros, zeros, 2 * ones, original)
    with pytest.raises(ValueError, match="`agreement` must lie"):
        agreement_figure(zeros, zeros, np.nan * ones, original)


def test_a_sweep_is_a_row_in_the_order_of_its_scales(explained):
    plain = severity_sweep(explained.sweep, "Cardiomegaly")
    factor = drawing.shown_size(explained.original.image, 160)[0] // 32
    corners = []
    for stop in explained.sweep.stops:
        pixels = drawing.picture_pixels(stop.image).repeat(factor, 0).repeat(factor, 1)
        corners += where(plain, pixels)
    assert len(corners) == 3 and corners == sorted(corners) and len({top for top, _ in corners}) == 1
    compared = severity_sweep(explained.sweep, "Cardiomegaly", explained.original.image)
    assert compared.height > plain.height + 32 * factor
    with pytest.raises(ValueError, match="`original` must have"):
        severity_sweep(explained.sweep, "Cardiomegaly", np.zeros((8, 8)))


@pytest.mark.parametrize("probability", [0.0, 0.25, 1.0])
def test_the_probability_bar_is_as_long_as_it_says(probability):
    with drawing.new_canvas(300, 40) as canvas:
        canvas.probability(10, 20, 254, probability)
        row = np.asarray(canvas.to_image())[20]
    blue = np.abs(row.astype(int) - [0x25, 0x63, 0xA8]).sum(-1) < 30
    assert blue.sum() == pytest.approx(200 * probability, abs=1.5)
