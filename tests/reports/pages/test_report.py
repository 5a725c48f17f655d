import base64
import doctest
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from mediffusion_diffusers.reports import tables
from mediffusion_diffusers.reports.pages import report
from mediffusion_diffusers.reports.pages.report import HtmlReport, KeyFigure


VOID = {"meta", "img", "br", "link", "hr"}


class _Checker(HTMLParser):
    """Follows open tags and collects addresses, pictures and text."""

    def __init__(self):
        super().__init__()
        self.open, self.addresses, self.tags, self.words = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "action", "data", "srcset")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture
def page():
    picture = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    report = HtmlReport("A <report>", "with a subtitle")
    report.add_key_figures([KeyFigure("AUROC", 0.91234, "at least 0.80", True), KeyFigure("images", 1200)])
    report.add_section("Section & more", "First paragraph.\n\nSecond <b>paragraph</b>.")
    report.add_table(["label", "x", "n"], [["Mass", 0.5, 3], ["All", None, float("nan")]], "caption", strong_rows=[1])
    report.add_figure(picture, "What one sees").add_code("print(1 < 2)")
    return report.add_provenance({"labelled_split_hash": "abc", "seed": 3, "checkpoint": None}), picture


def test_page_is_well_formed_and_loads_nothing(page):
    text = page[0].render()
    checker = _Checker()
    checker.feed(text)
    assert checker.open == []
    assert all(address.startswith("data:image/png;base64,") for address in checker.addresses)
    assert "script" not in checker.tags and "link" not in checker.tags
    assert not re.search(r"https?://|@import|url\(", text)


def test_text_is_escaped(page):
    text = page[0].render()
    assert "A &lt;report&gt;" in text and "Second &lt;b&gt;paragraph&lt;/b&gt;." in text and "1 &lt; 2" in text


def test_everything_is_there(page):
    checker = _Checker()
    checker.feed(page[0].render())
    words = " ".join(checker.words)
    for expected in ("0.912", "✓ at least 0.80", "1,200", "Mass", "–", "abc", "labelled split hash", "What one sees"):
        assert expected in words
    assert words.count("not for clinical use") >= 2


def test_pictures_survive(page):
    report, picture = page
    data = re.search(r"base64,([A-Za-z0-9+/=]+)", report.render()).group(1)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))), np.asarray(picture))


def test_saving_leaves_one_file(page, tmp_path):
    path = page[0].save(tmp_path / "folder" / "report.html")
    assert path.read_text(encoding="utf-8") == page[0].render()
    assert [entry.name for entry in path.parent.iterdir()] == ["report.html"]


def test_rows_must_fit_the_columns():
    with pytest.raises(ValueError, match="2 cells"):
        HtmlReport("title").add_table(["a", "b"], [[1]])


def test_examples_run():
    results = [doctest.testmod(module) for module in (tables, report)]
    assert all(result.attempted > 0 and result.failed == 0 for result in results)
