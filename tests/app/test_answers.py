"""What the page shows is what the pipelines return, and nothing of a file but its pixels."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from support.components import random_images, random_pil
from support.sources import write_dicom

from mediffusion_diffusers.app import answers
from mediffusion_diffusers.app.edit_request import EditRequest


REMOVE = EditRequest(remove=("Mass",))


@pytest.fixture(scope="module")
def answer(opened, pipe):
    return answers.explain(opened, REMOVE, pipe)


def test_an_image_is_classified_as_the_pipeline_classifies_it(pipe):
    picture = Image.fromarray((random_images(1, 40)[0, ..., 0] * 65535).astype(np.uint16))
    opened = answers.open_given(picture, pipe, "A")
    expected = answers.classifier_of(pipe)(picture)
    np.testing.assert_allclose(opened.scores.probabilities, expected.probabilities, atol=1e-6)
    assert (opened.given_size, opened.pixels.shape, opened.name) == ((40, 40), (16, 16, 1), "A")


def test_the_first_question_is_about_the_likeliest_finding(opened):
    likeliest = max(opened.probabilities, key=opened.probabilities.get)
    scores = {"label_names": opened.scores.label_names, "probabilities": opened.scores.probabilities}
    for labels, expected in (([], ([], [likeliest])), (opened.scores.label_names, ([likeliest], []))):
        seen = SimpleNamespace(labels=[labels], **scores)
        assert answers.OpenedImage(opened.pixels, "", (16, 16), seen).suggested == expected


def test_an_upload_keeps_pixels_alone(tmp_path, pipe):
    levels = np.arange(256, dtype=np.uint16).reshape(16, 16) * 16
    path = write_dicom(tmp_path / "SENTINEL.dcm", levels, PatientName="SENTINEL", PatientID="SENTINEL")
    opened = answers.open_upload(path, pipe)
    assert opened.name == "" and "SENTINEL" not in repr(opened) + repr(opened.source.header)
    np.testing.assert_allclose(opened.pixels, answers.open_given(Image.fromarray(levels * 16), pipe).pixels, atol=0.02)


@pytest.mark.parametrize("burned_in", ["YES", "NO"])
def test_it_is_known_whether_pixels_name_the_patient(tmp_path, pipe, burned_in):
    path = write_dicom(
        tmp_path / "a.dcm", np.arange(256, dtype=np.uint16).reshape(16, 16), BurnedInAnnotation=burned_in
    )
    assert answers.open_upload(path, pipe).source.names_patient is (burned_in == "YES")


def test_a_bad_upload_is_named_without_its_folder(tmp_path, pipe):
    (tmp_path / "notes.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"^Cannot decode notes\.png"):
        answers.open_upload(tmp_path / "notes.png", pipe)


def test_several_images_are_not_one(pipe):
    with pytest.raises(ValueError, match="One image is expected, but got 2"):
        answers.open_given(random_pil(2), pipe)


def test_an_answer_is_the_pipelines(answer, opened, pipe):
    expected = pipe(opened.pixels, away="Mass", output_type="np")
    np.testing.assert_array_equal(answer.output.images, expected.images)
    (explained,) = answer.explained
    assert (explained.heading, answer.heading) == ("Mass removed", "Mass removed")
    assert explained.counterfactual.probability == expected.probabilities_after[0, 2]
    assert dict(explained.changed()).keys() == {"Counterfactual", "Null edit", "Plain gradient", "Random noise"}


def test_every_finding_that_was_asked_for_is_explained(opened, pipe):
    answer = answers.explain(opened, EditRequest(remove=("Mass",), add=("Effusion", "Cardiomegaly")), pipe)
    assert answer.heading == "Mass removed, Effusion added, Cardiomegaly added"
    after = answer.output.probabilities_after[0]
    assert [one.counterfactual.probability for one in answer.explained] == [after[2], after[1], after[0]]


@pytest.mark.parametrize("fields", [{}, {"place": "auto"}, {"care": "fast"}], ids=["plain", "region", "noised paths"])
def test_progress_ends_where_the_steps_do(opened, pipe, fields):
    shares = []
    answers.explain(opened, EditRequest(remove=("Mass",), **fields), pipe, lambda share, _: shares.append(share))
    assert shares == sorted(shares) and (shares[0], shares[-1]) == (0, 1)


SEARCHED = {"push": "target", "place": "auto", "target_probability": 0.4}


@pytest.mark.parametrize(
    "fields",
    [{}, SEARCHED, {"care": "fast"}, {"care": "fast", **SEARCHED}],
    ids=["recommended", "searched in a region", "noised paths", "searched noised paths"],
)
def test_a_sweep_goes_from_the_null_edit_to_the_answer(opened, pipe, fields):
    answer = answers.explain(opened, EditRequest(add=("Mass",), **fields), pipe)
    (explained,) = answers.sweep(answer, pipe)
    first, last = explained.sweep.stops[0], explained.sweep.stops[-1]
    np.testing.assert_allclose(first.image, explained.null_edit.image, atol=1e-5)
    np.testing.assert_allclose(last.image, explained.counterfactual.image, atol=1e-5)
    assert explained.sweep.scales[-1] == pytest.approx(float(answer.output.guidance_scales[0]))


def test_noised_paths_are_repeated_from_other_noises(opened, pipe):
    answer = answers.explain(opened, EditRequest(remove=("Mass",), care="fast"), pipe)
    again = answers.explain(opened, EditRequest(remove=("Mass",), care="fast"), pipe)
    np.testing.assert_array_equal(answer.output.images, again.output.images)
    first, second = answers.agree(answer, pipe, 2).differences
    assert not np.array_equal(first, second)


def test_agreement_is_the_same_whenever_it_is_asked_for(answer, pipe):
    shares = []
    first = answers.agree(answer, pipe, 2, lambda share, _: shares.append(share))
    second = answers.agree(answer, pipe, 2)
    np.testing.assert_array_equal(first.differences, second.differences)
    assert not np.array_equal(first.differences[0], first.differences[1])
    assert shares == sorted(shares) and shares[-1] == 1


def test_agreement_counts_only_what_changed():
    agreement = np.array([[0, 0], [1, 0.5]])
    assert answers.share_of_agreement(SimpleNamespace(agreement=agreement)) == 0.5
    assert np.isnan(answers.share_of_agreement(SimpleNamespace(agreement=np.zeros((2, 2)))))
