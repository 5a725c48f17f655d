"""Answers: joined with the key, and refused where they cannot be what readers said."""

import pytest

from mediffusion_diffusers.reader_study.answers import collect_answers, read_joined_answers, write_answers


def test_answers_are_joined_with_the_key(study, answer_file, tmp_path):
    key, items = study.key(), [item.name for item in study.items]
    files = [answer_file(name, [(item, 3) for item in items], key.study) for name in ("R2", "R1")]
    collected = collect_answers(files, key)
    assert [one.reader for one in collected.answers] == ["R1"] * len(items) + ["R2"] * len(items)
    assert collected.notes == []
    for answer in collected.answers:
        case, method = key.items[answer.item]
        assert (answer.case, answer.label, answer.direction) == (case.name, case.label, case.direction)
        assert answer.method == method
    write_answers(collected.answers, tmp_path / "joined.csv")
    assert read_joined_answers(tmp_path / "joined.csv") == collected.answers


def test_a_partial_and_a_finished_file_are_one_reader(study, answer_file):
    key, items = study.key(), [item.name for item in study.items]
    early = answer_file("R1", [(item, 2) for item in items[:4]], key.study, "early")
    late = answer_file("R1", [(item, 2) for item in items[:-1]], key.study, "late")
    collected = collect_answers([early, late], key)
    assert len(collected.answers) == len(items) - 1
    assert collected.notes == [
        "4 answers came several times, each time the same.",
        f"Reader R1 has answered {len(items) - 1} of {len(items)} questions.",
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"study_name": "another"}, r"line 2: the answer belongs to the study 'another'"),
        ({"item": "deadbeef"}, r"line 2: the key knows no item 'deadbeef'"),
        ({"grade": 6}, r"`grade` must be a whole number in \[1, 5\], but got '6'"),
        ({"grade": "2.5"}, r"`grade` must be a whole number"),
        ({"reader": ""}, r"the reader's code is missing"),
    ],
)
def test_what_no_reader_of_this_study_said_is_refused(study, answer_file, change, message):
    given = {"study_name": study.name, "item": study.items[0].name, "grade": 2, "reader": "R1", **change}
    file = answer_file(given["reader"], [(given["item"], given["grade"])], given["study_name"], "file")
    with pytest.raises(ValueError, match=message):
        collect_answers([file], study.key())


def test_two_people_with_one_code_are_noticed(study, answer_file):
    item = study.items[0].name
    files = [answer_file("R1", [(item, grade)], study.name, f"file-{grade}") for grade in (2, 4)]
    with pytest.raises(ValueError, match=r"Reader 'R1' grades the item \w+ 2 in .*file-2.csv, line 2, and 4 in .*"):
        collect_answers(files, study.key())


def test_no_answer_is_said(study, answer_file):
    with pytest.raises(ValueError, match="holds no answer"):
        collect_answers([answer_file("R1", [], study.name)], study.key())
