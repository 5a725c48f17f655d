"""HTML says what the answer says, shows the pixels it has, escapes names, and fetches nothing."""

import base64
import io
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from mediffusion_diffusers.app import answers, blocks
from mediffusion_diffusers.app.edit_request import EditRequest
from mediffusion_diffusers.app.files import DownloadFile
from mediffusion_diffusers.notices import PAGE_NOTICE, PICTURE_NOTICE
from mediffusion_diffusers.regions import region_to_pixels
from mediffusion_diffusers.reports.pictures.drawing import map_pixels, picture_pixels
from mediffusion_diffusers.reports.pictures.explanations import AGREEMENT_COLOURS


@pytest.fixture(scope="module")
def answer(opened, pipe):
    return answers.explain(opened, EditRequest(remove=("Mass",)), pipe)


def pictures(html):
    """Alternative text and pixels of every picture."""
    found = re.findall(r'alt="([^"]*)" src="data:image/png;base64,([^"]*)"', html)
    return {alt: np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))) for alt, data in found}


def test_the_notice_stands_on_the_page_twice_over():
    assert PICTURE_NOTICE in blocks.head_block("T", "A").replace("&#39;", "'")
    assert PAGE_NOTICE in blocks.foot_block().replace("&#39;", "'")


def test_scores_stand_beside_their_thresholds(opened):
    html = blocks.opened_block(opened)
    for label, probability in opened.probabilities.items():
        assert re.search(rf"{label}</span>.*?width:{100 * probability:.1f}%.*?>{probability:.2f}<", html, re.S)
    assert html.count("mdf-threshold") == 3 and "resized" not in html


def test_resizing_is_said(opened):
    assert "16 × 16 pixels, resized from 40 × 20" in blocks.opened_block(replace(opened, given_size=(40, 20)))
    assert "distorted" in blocks.opened_block(replace(opened, given_size=(40, 20)))
    assert "distorted" not in blocks.opened_block(replace(opened, given_size=(40, 40)))


def test_an_answer_shows_its_pixels_and_numbers(answer):
    html, output = blocks.answer_block(answer), answer.output
    shown = pictures(html)
    np.testing.assert_array_equal(shown["Original"], picture_pixels(output.originals[0].transpose(2, 0, 1)))
    np.testing.assert_array_equal(shown["Counterfactual"], picture_pixels(output.images[0].transpose(2, 0, 1)))
    before, after = output.probabilities_before[0, 2], output.probabilities_after[0, 2]
    assert f"Mass removed: {before:.2f} → {after:.2f}" in html


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [(0.9, 0.6, "still reports"), (0.9, 0.1, "no longer reports"), (0.1, 0.1, "still does not report")],
)
def test_the_verdict_is_held_against_the_threshold(answer, before, after, words):
    (one,) = answer.explained
    changed = replace(
        one,
        original=replace(one.original, probability=before),
        counterfactual=replace(one.counterfactual, probability=after),
    )
    html = blocks.answer_block(replace(answer, explained=[changed]))
    assert f"The model {words} Mass (threshold 0.50)" in html
    assert ("✓" in html) == (after < 0.5)


def test_a_model_of_one_class_decides_without_thresholds(answer):
    single = replace(answer, opened=replace(answer.opened, is_single_label=True))
    html = blocks.answer_block(single)
    winner = answer.output.label_names[int(answer.output.probabilities_after[0].argmax())]
    assert f"The model now decides for {winner}." in html and "mdf-threshold" not in html


def test_what_was_not_asked_for_is_mentioned_when_it_changes(answer):
    def html(effusion):
        after = np.array([[*answer.output.probabilities_before[0]]])
        after[0, 1] = effusion
        return blocks.answer_block(replace(answer, output=replace(answer.output, probabilities_after=after)))

    before = float(answer.output.probabilities_before[0, 1])
    assert "Effusion changes too" not in html(before)
    assert "Effusion changes too" in html(before - 0.3 if before > 0.5 else before + 0.3)


def test_where_noises_agree_is_shown_where_there_are_some(opened, answer, pipe):
    noised = answers.explain(opened, EditRequest(remove=("Mass",), care="fast"), pipe)
    html = blocks.answer_block(noised)
    assert (
        f"Where its {noised.output.settings_of(0)['num_noises']} noises agree" in html
        and "noises agree" not in blocks.answer_block(answer)
    )
    shown = pictures(html)["How far the noises agree on the change of each place"]
    difference = noised.explained[0].difference(noised.explained[0].counterfactual)
    expected = map_pixels(region_to_pixels(noised.output.agreement, 1, (16, 16))[0, 0], AGREEMENT_COLOURS)
    has_changed = np.abs(difference) >= 0.01
    assert has_changed.any()
    np.testing.assert_array_equal(shown[has_changed], expected[has_changed])
    assert len(np.unique(shown[~has_changed], axis=0)) <= 1  # where nothing changed there is nothing to agree on


def test_a_search_without_success_says_so(answer):
    for reached in (True, False):
        output = replace(answer.output, reached=np.array([reached]))
        html = blocks.answer_block(replace(answer, output=output))
        assert ("the best that was found" in html) is not reached


def test_controls_share_one_scale(answer):
    shown = pictures(blocks.controls_block(answer))
    names = {"Counterfactual", "Null edit", "Plain gradient", "Random noise"}
    assert shown.keys() == names | {f"{name}: difference to the original" for name in names}


def test_names_are_text(opened, answer):
    name = "<script>alert(1)</script>"
    assert name not in blocks.opened_block(replace(opened, name=name))
    explained = [replace(one, label=name, action="removed") for one in answer.explained]
    assert name not in blocks.sweep_block(answers_with_sweep(answer, explained))
    assert name not in blocks.controls_block(replace(answer, explained=explained))


def answers_with_sweep(answer, explained):
    sweep = SimpleNamespace(scales=[0, 1], stops=[one.counterfactual for one in explained] * 2)
    sweep.differences = lambda original: [np.zeros(original.shape[-2:])] * 2
    return [replace(one, sweep=sweep) for one in explained]


def test_links_hold_whole_files():
    html = blocks.downloads_block([DownloadFile("a.png", "A <picture>", b"\x89PNG")], ["Not <b>."])
    ((name, data),) = re.findall(r'download="([^"]+)" href="data:[a-z/-]+;base64,([^"]+)"', html)
    assert (name, base64.b64decode(data)) == ("a.png", b"\x89PNG")
    assert "A &lt;picture&gt;" in html and "Not &lt;b&gt;." in html


def test_agreement_shows_each_run(answer, pipe):
    agreement = answers.agree(answer, pipe, 2)
    html = blocks.agreement_block(answer, agreement)
    assert all(f"Mass {row[2]:.2f}" in html for row in agreement.probabilities_after)
    none = replace(agreement, agreement=np.zeros_like(agreement.agreement))
    assert "None of them changed" in blocks.agreement_block(answer, none)


def test_nothing_is_fetched_from_elsewhere(opened, answer):
    html = blocks.head_block("T", "A") + blocks.opened_block(opened) + blocks.answer_block(answer)
    assert not re.search(r"(?:src|href)=\"(?!data:)|url\(|@import|https?://", html)
