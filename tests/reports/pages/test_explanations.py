"""A page with sliders is one file that loads nothing, and shows what it was given."""

import base64
import io
import json
import re
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from support.explanations import explained_phantom, sliders_alone

from mediffusion_diffusers.notices import PAGE_NOTICE
from mediffusion_diffusers.reports.pages.explanations import write_explanation_html
from mediffusion_diffusers.reports.pictures import drawing


VOID = {"meta", "img", "input", "br"}


class _Page(HTMLParser):
    """Elements with their attributes, and whether every tag is closed where it should be."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.words = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    def all(self, tag, kind=None):
        return [attrs for name, attrs in self.elements if name == tag and (kind is None or attrs.get("class") == kind)]


def decoded(image):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(image["src"].partition(",")[2]))))


@pytest.fixture(scope="module")
def explained():
    return explained_phantom(name="<first> patient")


@pytest.fixture(scope="module")
def page(explained):
    return _Page(sliders_alone(explained))


def test_nothing_is_loaded_from_elsewhere(explained, page):
    addresses = [
        attrs[name] for _, attrs in page.elements for name in ("src", "href", "data", "srcset") if name in attrs
    ]
    assert addresses and all(address.startswith("data:image/png;base64,") for address in addresses)
    assert not re.search(r"https?:|@import|url\(|fetch|import\(|XMLHttp", sliders_alone(explained))


def test_the_disclaimer_and_what_was_given_are_there(page):
    words = " ".join(page.words)
    assert unescape(PAGE_NOTICE) in words and "<first> patient" in words and "Cardiomegaly removed" in words


def test_each_slider_knows_its_stops(explained, page):
    fade, sweep = [json.loads(attrs["data-stops"]) for attrs in page.all("div", "slider")]
    assert fade == [
        {"text": "Original: p 0.93", "probability": 0.93},
        {"text": "Counterfactual: p 0.04", "probability": 0.04},
    ]
    assert [stop["text"] for stop in sweep] == [
        "Guidance scale 0: p 0.90",
        "Guidance scale 10: p 0.50",
        "Guidance scale 20: p 0.10",
    ]
    ranges = [attrs for attrs in page.all("input") if attrs["type"] == "range"]
    assert [(slider["min"], slider["max"]) for slider in ranges] == [("0", "1"), ("0", "2")]
    assert float(ranges[0]["step"]) < 1 and ranges[1]["step"] == "1"  # between two scales nothing was computed
    assert all(slider["aria-label"] and slider["aria-valuetext"] for slider in ranges)


def test_a_cross_fade_claims_no_probability_between_its_ends(page):
    fade, sweep = page.all("div", "slider")
    assert "0.93 → 0.04" in fade["data-between"] and "ends only" in fade["data-between"]
    assert sweep["data-between"] == ""


def test_the_layers_are_the_pictures(explained, page):
    images = page.all("img")
    named = {image["alt"]: decoded(image) for image in images}
    for name, scored in (("Original", explained.original), ("Counterfactual", explained.counterfactual)):
        assert np.array_equal(named[name], drawing.picture_pixels(scored.image))
    for scale, stop in zip(explained.sweep.scales, explained.sweep.stops, strict=True):
        assert np.array_equal(named[f"Guidance scale {scale}"], drawing.picture_pixels(stop.image))
    maps = [decoded(image) for image in images if image["alt"] == "Difference to the original"]
    difference = explained.difference(explained.counterfactual)
    fade, sweep = maps[:-3], maps[-3:]
    for layer, share in zip(fade, np.linspace(0, 1, len(fade)), strict=True):
        assert np.array_equal(layer, drawing.difference_pixels(share * difference, explained.limit()))
    assert not np.array_equal(sweep[0], sweep[-1])


def test_before_any_script_runs_the_counterfactual_alone_is_visible(page):
    visible = [image["alt"] for image in page.all("img") if image["style"] == "opacity:1"]
    differences = "Difference to the original"
    assert visible == ["Counterfactual", differences, "Guidance scale 20", differences]  # two sliders of two stacks


def test_boxes_and_region_lie_over_the_pictures(explained, page):
    (box,) = explained.boxes
    rectangles = page.all("rect")
    assert len(rectangles) == 4
    assert float(rectangles[0]["x"]) == pytest.approx(box["x"] * 32, abs=0.01)
    region = np.zeros((32, 32))
    region[2:5, 3:9] = 1
    marked = _Page(sliders_alone(replace(explained, boxes=(), region=region)))
    assert len(marked.all("path")) == 4 and marked.all("path")[0]["d"].count("M") == 2 * (3 + 6)
    bare = _Page(sliders_alone(replace(explained, boxes=())))
    assert not bare.all("svg") and not bare.all("label", "marks") and page.all("label", "marks")


def test_a_page_of_several_images_is_written_whole(explained, tmp_path):
    colour = explained_phantom(channels=3, label="Mass", null_edit=None, sweep=None)
    path = tmp_path / "folder" / "page.html"
    assert write_explanation_html([explained, colour], path, "For you", provenance={"seed": 3}) == path
    assert [entry.name for entry in path.parent.iterdir()] == ["page.html"]
    page = _Page(path.read_text(encoding="utf-8"))
    words = " ".join(page.words)
    assert len(page.all("div", "slider")) == 3 and len(page.all("script")) == 1
    assert words.index("Cardiomegaly removed") < words.index("Mass removed")
    assert re.findall(r"Not computed for this image: ([a-z, ]+)\.", words) == [
        "plain gradient",
        "null edit, plain gradient",
    ]
    assert "seed" in words and f"{explained.change_size(explained.counterfactual):.4f}" in words
    with pytest.raises(ValueError, match="at least one"):
        write_explanation_html([], path)
