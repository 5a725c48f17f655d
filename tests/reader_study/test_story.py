"""A study from end to end: made of the boxed checkpoint, read in a browser by keyboard, collected and plotted."""

import json
import re
import shutil

import pytest

from mediffusion_diffusers.commands.reader_study import COMMANDS
from mediffusion_diffusers.reader_study.answers import ANSWER_COLUMNS
from mediffusion_diffusers.reader_study.design import GRADES


playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
PATIENCE = 60_000  # milliseconds


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A questionnaire with one case of each direction, by two methods."""
    folder = tmp_path_factory.mktemp("reader-study")
    edit = ("--quality", "fast", "--num_noises", "2", "--num_inference_steps", "2")
    words = ("--model", "example", "--methods", "ours", "null_edit", "--num_cases", "1", "--seed", "1", *edit)
    COMMANDS["make"].main([*words, "--output_dir", str(folder / "study"), "--device", "cpu"])
    return folder


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as tool:
        browser = tool.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, made):
    context = browser.new_context(accept_downloads=True, viewport=DESKTOP)
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    faults, addresses = [], []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("request", lambda request: addresses.append(request.url.split(":")[0]))
    page.goto((made / "study" / "questionnaire.html").as_uri())
    yield page
    assert faults == [] and set(addresses) <= {"file", "data", "blob"}
    context.close()


def begin(page, reader):
    page.get_by_label("Your code").fill(reader)
    page.keyboard.press("Enter")
    page.locator("#count").wait_for()


def come_back(page, reader):
    """Open the page again, once another page is given what the first has stored: a browser stores in its own time."""
    other = page.context.new_page()
    other.goto(page.url)
    for _ in range(60):
        if other.get_by_label("Your code").input_value() == reader:
            break
        other.wait_for_timeout(500)
        other.reload()
    other.close()
    page.reload()
    assert page.get_by_label("Your code").input_value() == reader


def count(page):
    return page.locator("#count").inner_text()


def save(page, folder, button="Save my answers"):
    with page.expect_download() as download:
        page.get_by_role("button", name=button).click()
    path = folder / download.value.suggested_filename
    download.value.save_as(path)
    return path


def test_a_study_from_the_checkpoint_to_the_box_plots(made, page, tmp_path, capsys):
    begin(page, "R1")
    for grade in "1345":
        page.keyboard.press(grade)
    page.get_by_role("heading", name="Thank you").wait_for()
    file = save(page, tmp_path)
    assert re.fullmatch(r"answers-[0-9a-f]{12}-R1\.csv", file.name)
    assert file.read_text().split("\n")[0] == ",".join(ANSWER_COLUMNS)

    joined = tmp_path / "answers.csv"
    COMMANDS["collect"].main([str(file), "--key_file", str(made / "study-key.json"), "--output", str(joined)])
    COMMANDS["plot"].main([str(joined), "--output_dir", str(tmp_path / "results")])
    assert {path.name for path in (tmp_path / "results").iterdir()} >= {
        *("reader_study.json", "reader_study.png", "reader_study.html")
    }
    results = json.loads((tmp_path / "results" / "reader_study.json").read_text())
    assert (results["num_readers"], results["num_answers"], results["methods"]) == (1, 4, ["null_edit", "ours"])
    means = [one["mean"] for way in ("remove", "add") for one in results[way]["grades"].values()]
    assert sorted(means) == [1, 3, 4, 5]
    assert "4 answers of 1 readers" in capsys.readouterr().out


def test_answers_are_kept_and_each_reader_has_an_own_place(page):
    begin(page, "R1")
    page.keyboard.press("2")
    page.keyboard.press("4")
    come_back(page, "R1")
    page.keyboard.press("Enter")
    assert count(page) == "Pair 3 of 4, 2 answered"
    page.keyboard.press("ArrowLeft")
    assert page.locator("input:checked").get_attribute("value") == "4"
    page.keyboard.press("5")  # changes the answer
    page.keyboard.press("ArrowLeft")
    assert page.locator("input:checked").get_attribute("value") == "5"
    come_back(page, "R1")
    begin(page, "R2")
    assert count(page) == "Pair 1 of 4, 0 answered"


def test_nobody_passes_over_a_pair_and_part_of_it_can_be_saved(page, tmp_path):
    begin(page, "R1")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("9")
    page.keyboard.press("0")
    assert count(page) == "Pair 1 of 4, 0 answered"
    page.keyboard.press("3")
    assert len(save(page, tmp_path, "Save so far").read_text().splitlines()) == 2


def test_a_mouse_and_a_screen_reader_find_the_same_answers(page):
    begin(page, "R1")
    for grade in GRADES[:2]:
        page.get_by_role("radio", name=re.compile(rf"\d {grade}$")).click()
    assert count(page) == "Pair 3 of 4, 2 answered"
    page.get_by_role("radio").first.focus()
    page.keyboard.press("Space")
    assert count(page) == "Pair 4 of 4, 3 answered"
    assert page.get_by_role("img", name="Original image").is_visible()


def test_a_pair_fits_a_phone(page):
    page.set_viewport_size(PHONE)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    begin(page, "R1")
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    for element in (page.locator("#modified"), page.get_by_role("radio").last):
        box = element.bounding_box()
        assert box["y"] >= 0 and box["y"] + box["height"] <= PHONE["height"]


def test_a_code_that_could_be_a_formula_is_not_taken(page):
    page.get_by_label("Your code").fill("=1+1")
    page.keyboard.press("Enter")
    assert page.locator("#pair").is_hidden()


def test_without_storage_the_reader_is_told(page):
    page.add_init_script("Object.defineProperty(window, 'localStorage', { get() { throw new Error('none'); } });")
    page.reload()
    begin(page, "R1")
    assert page.get_by_role("alert").is_visible()
    page.keyboard.press("1")
    assert count(page) == "Pair 2 of 4, 1 answered"
