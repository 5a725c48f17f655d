"""What people do on the page, in a headless browser: skipped where there is no Chromium, Playwright or gradio."""

import re
import shutil

import numpy as np
import pytest
from support.components import random_pil
from support.sources import write_dicom

from mediffusion_diffusers import app
from mediffusion_diffusers.notices import PICTURE_NOTICE


gradio = pytest.importorskip("gradio")
playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium"),
    # Reading back from a browser takes event loops of its own, which warn when they end.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
GROUPS = {"remove": "removed", "add": "added"}
PATIENCE = 60_000  # milliseconds; a story takes one or two seconds of a free core


@pytest.fixture(scope="module")
def address(pipe):
    examples = [app.Example(f"Example {index}", image) for index, image in enumerate(random_pil(2))]
    with app.serve(pipe, examples) as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as tool:
        browser = tool.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser.new_context(accept_downloads=True)  # whose cache all visitors share
        browser.close()


class Visitor:
    """Somebody in front of a page of their own."""

    def __init__(self, browser, address, size=DESKTOP):
        self.addresses, self.faults = [], []
        self.page = browser.new_page()
        self.page.set_viewport_size(size)
        self.page.set_default_timeout(PATIENCE)
        self.page.on("request", lambda request: self.addresses.append(request.url))
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.goto(address)
        self.answer = self.page.locator(".mdf-answer")
        self.answer.wait_for()

    @property
    def heading(self):
        return self.answer.locator("h2").first.inner_text()

    def choose(self, group, label):
        """Tick or untick a finding, e.g. `choose("remove", "Mass")`."""
        self.page.locator(f"#{group}").get_by_label(label, exact=True).click()

    def explain(self):
        """Ask; what comes is to be waited for."""
        self.page.get_by_role("button", name="Explain").click()

    def ask_only(self, group, label):
        """Untick everything, ask for one finding, and wait for the answer to come."""
        for ticked in self.page.locator("input[type=checkbox]:checked").all():
            ticked.click()
        self.choose(group, label)
        self.explain()
        self.expect_headings(f"{label} {GROUPS[group]}")

    def expect_headings(self, *headings):
        """Wait until these findings are answered."""
        patterns = [re.compile(rf"^{heading}: [01]\.\d\d → [01]\.\d\d") for heading in headings]
        playwright.expect(self.answer.locator("h2")).to_have_text(patterns, timeout=PATIENCE)


@pytest.fixture
def visitor(browser, address):
    visitor = Visitor(browser, address)
    yield visitor
    assert visitor.faults == []
    assert {url.split("/")[2] for url in visitor.addresses if not url.startswith("data:")} == {address.split("/")[2]}
    visitor.page.close()


def upload(visitor, path):
    visitor.page.locator("#upload input[type=file]").set_input_files(path)


def test_opening_the_page_shows_an_explanation_and_the_notice(visitor):
    assert re.fullmatch(r"\w+ (added|removed): [01]\.\d\d → [01]\.\d\d", visitor.heading)
    notice = visitor.page.get_by_text(PICTURE_NOTICE)
    for place in ("window.scrollTo(0, 0)", "window.scrollTo(0, 1e6)"):
        visitor.page.evaluate(place)
        box = notice.bounding_box()
        assert box["y"] >= 0 and box["y"] + box["height"] <= DESKTOP["height"]


def test_an_example_is_picked(visitor):
    visitor.page.get_by_role("button", name="Example 1").click()
    visitor.page.get_by_alt_text("Example 1, as the model sees it").wait_for()


def test_a_picture_and_a_dicom_file_are_uploaded(visitor, tmp_path):
    random_pil(1, size=40, seed=5)[0].save(tmp_path / "SENTINEL.png")
    upload(visitor, tmp_path / "SENTINEL.png")
    visitor.page.get_by_text("resized from 40 × 40").wait_for()
    levels = np.arange(1024, dtype=np.uint16).reshape(32, 32)
    write_dicom(tmp_path / "film.dcm", levels, PatientName="SENTINEL")
    upload(visitor, tmp_path / "film.dcm")
    visitor.page.get_by_text("resized from 32 × 32").wait_for()
    visitor.answer.wait_for()
    assert "SENTINEL" not in visitor.page.content()


def test_a_finding_is_removed_and_another_added(visitor):
    visitor.ask_only("remove", "Mass")
    visitor.choose("add", "Effusion")
    visitor.explain()
    visitor.expect_headings("Mass removed", "Effusion added")


def test_others_are_held_and_a_drawn_box_is_kept_to(visitor):
    visitor.ask_only("remove", "Mass")
    difference = visitor.page.get_by_alt_text("Difference: counterfactual minus original")
    everywhere = difference.get_attribute("src")
    visitor.page.get_by_role("button", name="How firmly, and where").click()
    visitor.page.get_by_label("Hold the other findings").click()
    picture = visitor.page.locator(".mdf-draw")
    picture.scroll_into_view_if_needed()
    frame = picture.bounding_box()
    visitor.page.mouse.move(frame["x"] + 0.25 * frame["width"], frame["y"] + 0.5 * frame["height"])
    visitor.page.mouse.down()
    visitor.page.mouse.move(frame["x"] + 0.75 * frame["width"], frame["y"] + 0.9 * frame["height"])
    visitor.page.mouse.up()
    left = visitor.page.get_by_label(re.compile("number input for Left edge"))
    playwright.expect(left).to_have_value(re.compile(r"0\.2[3-7]"), timeout=PATIENCE)
    playwright.expect(visitor.page.get_by_label("In a box")).to_be_checked()
    playwright.expect(visitor.page.locator(".mdf-box")).to_be_visible()
    visitor.explain()
    visitor.answer.get_by_text("in the given box").wait_for()
    assert difference.get_attribute("src") != everywhere


def test_severity_and_agreement_are_looked_at(visitor):
    visitor.page.get_by_role("tab", name="Severity").click()
    visitor.page.get_by_text("No push (null edit)").wait_for()
    assert visitor.page.locator("#sweep figure").count() == 4
    visitor.page.get_by_role("tab", name="Agreement").click()
    visitor.page.get_by_text("all agree").wait_for()


@pytest.mark.parametrize("name", ["notes.txt", "film.dcm"])
def test_a_bad_file_is_answered_in_words(visitor, tmp_path, name):
    (tmp_path / name).write_text("<b>no picture</b>")
    upload(visitor, tmp_path / name)
    alert = visitor.page.get_by_test_id("toast-body")
    alert.wait_for()
    assert re.search(rf"Cannot decode {name}|{name} is no readable DICOM file", alert.inner_text())
    assert str(tmp_path) not in alert.inner_text()
    visitor.ask_only("remove", "Mass")  # the page goes on


def test_two_visitors_at_once_do_not_see_each_other(browser, address, visitor):
    other = Visitor(browser, address)
    other.page.get_by_role("button", name="Example 1").click()
    other.page.get_by_alt_text("Example 1, as the model sees it").wait_for()
    visitor.ask_only("remove", "Mass")
    other.ask_only("add", "Effusion")
    assert (visitor.heading.split(":")[0], other.heading.split(":")[0]) == ("Mass removed", "Effusion added")
    assert visitor.page.get_by_alt_text("Example 0, as the model sees it").is_visible()
    other.page.close()


def test_the_page_fits_a_phone(browser, address):
    phone = Visitor(browser, address, PHONE)
    assert phone.page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    for name in ("Controls", "Severity", "Agreement", "Download"):
        assert phone.page.get_by_role("tab", name=name).is_visible()
    phone.ask_only("add", "Effusion")
    playwright.expect(phone.answer).to_be_in_viewport()  # where the button had been
    phone.page.close()


def test_the_keyboard_alone_is_enough(visitor):
    page = visitor.page
    page.get_by_role("slider", name=re.compile("^Divider")).focus()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Home")
    assert page.locator(".mdf-compare").get_attribute("style") == "--at: 0%;"
    page.get_by_role("button", name="Example 1").focus()
    page.keyboard.press("Enter")
    page.get_by_alt_text("Example 1, as the model sees it").wait_for()
    for ticked in page.locator("input[type=checkbox]:checked").all():
        ticked.focus()
        page.keyboard.press("Space")
    page.locator("#remove").get_by_label("Mass", exact=True).focus()
    page.keyboard.press("Space")
    page.get_by_role("button", name="Explain").focus()
    page.keyboard.press("Enter")
    page.get_by_role("heading", name=re.compile("^Mass removed")).wait_for()


def test_page_and_panel_are_downloaded(visitor, tmp_path):
    visitor.page.get_by_role("tab", name="Download").click()
    for link, start in (("Page with sliders", b"<!DOCTYPE html>"), ("Panel", b"\x89PNG")):
        with visitor.page.expect_download() as download:
            visitor.page.get_by_role("link", name=re.compile(link)).click()
        download.value.save_as(tmp_path / link)
        assert (tmp_path / link).read_bytes().startswith(start)
