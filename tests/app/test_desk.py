from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import pytest
from support.components import random_pil

from mediffusion_diffusers.app.desk import Desk


FIELDS = {"remove": ("Mass",)}


def test_an_upload_is_deleted_whether_it_can_be_read_or_not(desk, tmp_path):
    random_pil(1)[0].save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_text("no picture")
    opened, html, remove, add = desk.open_file(tmp_path / "good.png")
    assert opened.pixels.shape == (16, 16, 1) and "What the model sees" in html and len(remove + add) == 1
    with pytest.raises(ValueError, match=r"bad\.png"):
        desk.open_file(tmp_path / "bad.png")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_computed_of_nothing(desk):
    with pytest.raises(ValueError, match="Pick an example"):
        desk.explain(None, FIELDS)
    for ask in (desk.sweep, desk.agree, lambda answer: desk.downloads(answer, None)):
        with pytest.raises(ValueError, match="Explain an image first"):
            ask(None)


def test_two_users_at_once_get_what_each_alone_gets(desk):
    opened = [desk.open_example(index)[0] for index in (0, 1)]
    asked = [(opened[0], FIELDS), (opened[1], {"add": ("Effusion",)})]
    alone = [desk.explain(*one)[0].output.images for one in asked]
    with ThreadPoolExecutor(2) as users:
        together = list(users.map(lambda one: desk.explain(*one)[0].output.images, asked * 2))
    assert all((images == alone[index % 2]).all() for index, images in enumerate(together))


def test_what_is_taken_away_is_linked_and_why_it_is_not_is_said(desk):
    answer, *_ = desk.explain(desk.examples[0], FIELDS)
    html = desk.downloads(answer, None)
    assert "DICOM files are not offered: `pipe` must be loaded from a folder" in html  # it was made of components
    assert html.count("<a download=") == 2
    named = replace(answer, opened=replace(answer.opened, source=SimpleNamespace(names_patient=True)))
    assert "its pixels name the patient" in desk.dicom_files(named, answer.explained)[1][0]


def test_a_page_needs_no_examples(pipe):
    assert Desk(pipe).examples == []
