"""Places: what a known change is called, and how much of it they hold."""

import numpy as np
import pytest

from mediffusion_diffusers.audit.places import (
    energy_of_change,
    mirrored,
    places_of_change,
    recurring_places,
    share_that_names,
)


CORNER = {"x": 0.0625, "y": 0.0625, "width": 0.1875, "height": 0.1875}


def changed(*boxes, size=32, strengths=(1.0, 0.5, 0.25)):
    """Energies of an image that changed in boxes, ever more weakly, and in each most in its middle."""
    image = np.zeros((1, 1, size, size))
    for box, strength in zip(boxes, strengths, strict=False):
        top, left, side = round(box["y"] * size), round(box["x"] * size), round(box["width"] * size)
        bump = np.hanning(side + 2)[1:-1]
        image[..., top : top + side, left : left + side] = strength * np.outer(bump, bump)
    return energy_of_change(image, np.zeros_like(image))[0]


@pytest.mark.parametrize(
    ("x", "y", "name"), [(0.0, 0.0, "upper left"), (0.8, 0.8, "lower right"), (0.4, 0.4, "centre"), (0.4, 0.8, None)]
)
def test_a_place_has_the_name_of_its_third(x, y, name):
    (place,) = places_of_change(changed({**CORNER, "x": x, "y": y}))
    assert place.name == (name or "lower centre")


def test_the_strongest_comes_first_and_covers_its_box_alone():
    other = {**CORNER, "x": 0.7, "y": 0.4}
    places = places_of_change(changed(CORNER, other, strengths=(1.0, 0.9)))
    assert [place.name for place in places] == ["upper left", "middle right"]
    assert places[0].covers(CORNER) and not places[0].covers(other) and not places[0].covers(mirrored(CORNER))
    assert places[0].share > places[1].share and sum(place.share for place in places) <= 1


def test_an_image_that_did_not_change_has_no_place():
    nothing = energy_of_change(np.ones((2, 1, 8, 8)), np.ones((2, 1, 8, 8)))
    assert not nothing.any() and places_of_change(nothing[0]) == []
    assert np.isnan(share_that_names(nothing[:0], []))


def test_noise_all_over_names_no_place():
    """Parts that hold little each are no places: nobody names a corner by changing everything."""
    noise = np.random.default_rng(0).standard_normal((20, 1, 32, 32))
    energies = energy_of_change(noise, np.zeros_like(noise))
    assert energies.sum((1, 2)) == pytest.approx(np.ones(20))
    assert share_that_names(energies, [CORNER] * 20) < 0.5


def test_what_recurs_outside_of_the_finding_is_told_from_the_finding():
    """A corner that always changes, and a finding that lies elsewhere each time and changes less."""
    boxes = [{**CORNER, "x": 0.3 + 0.05 * step, "y": 0.5} for step in range(8)]
    energies = np.stack([changed(CORNER, box) for box in boxes])
    place, *_ = recurring_places(energies, [[box] for box in boxes])
    assert (place["name"], place["share_of_images"], place["share_in_boxes"]) == ("upper left", 1.0, 0.0)
    assert share_that_names(energies, [CORNER] * 8) == 1.0
    assert share_that_names(energies, [mirrored(CORNER)] * 8) == 0.0
    honest = np.stack([changed(box) for box in boxes])
    for place in recurring_places(honest, [[box] for box in boxes]):
        assert place["share_in_boxes"] > 0.9
    assert recurring_places(honest, [[]] * 8)[0]["share_in_boxes"] is None


def test_mirroring_twice_is_nothing():
    assert mirrored(mirrored(CORNER)) == pytest.approx(CORNER)
