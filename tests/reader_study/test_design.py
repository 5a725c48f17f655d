"""The design: balanced, in randomised blocks, blinded; and a key that is kept apart."""

from collections import Counter

import numpy as np
import pytest

from mediffusion_diffusers.reader_study.design import StudyKey, choose_cases, design_study, reading_order
from mediffusion_diffusers.reader_study.pairs import Case
from mediffusion_diffusers.reports.pages.questionnaire import Questionnaire


def test_every_method_answers_the_same_cases_of_both_directions(study):
    cases = {}
    for item in study.items:
        cases.setdefault(item.pair.method, []).append(item.pair.case)
    assert {method: len(of_method) for method, of_method in cases.items()} == dict.fromkeys(study.methods, 6)
    assert len({frozenset(of_method) for of_method in cases.values()}) == 1
    assert Counter(case.direction for case in cases["own_edit"]) == {"remove": 3, "add": 3}


def test_cases_are_drawn_in_turns_over_findings_and_images(generator):
    candidates = [Case(f"{n}", label, way) for n in range(6) for label in "ABC" for way in ("remove", "add")]
    chosen = choose_cases(candidates, 6, generator)
    for direction in ("remove", "add"):
        of_direction = [case for case in chosen if case.direction == direction]
        assert Counter(case.label for case in of_direction) == {"A": 2, "B": 2, "C": 2}
    assert max(Counter(case.name for case in chosen).values()) == 2 and len(set(chosen)) == 12


def test_the_smaller_direction_decides_and_one_alone_is_whole(generator):
    candidates = [Case(f"{n}", "A", "remove") for n in range(5)] + [Case("9", "A", "add")]
    assert len(choose_cases(candidates, 10, generator)) == 2
    assert len(choose_cases(candidates[:5], 10, generator)) == 5


@pytest.mark.parametrize(("num_cases", "num_methods"), [(20, 4), (7, 3), (2, 2), (1, 2), (5, 1)])
def test_an_order_is_a_latin_square_of_blocks(num_cases, num_methods, generator):
    for _ in range(20):
        order = reading_order(num_cases, num_methods, generator)
        assert sorted(order.tolist()) == list(range(num_cases * num_methods))
        cases, methods = order // num_methods, order % num_methods
        for block in range(num_methods):
            rows = slice(block * num_cases, (block + 1) * num_cases)
            assert len(set(cases[rows].tolist())) == num_cases
            counts = np.bincount(methods[rows], minlength=num_methods)
            assert counts.max() - counts.min() <= 1
        for case in range(num_cases):
            gaps = np.diff(np.flatnonzero(cases == case))
            assert len(gaps) == 0 or gaps.min() > num_cases // 2


def test_the_same_seed_is_the_same_study_and_another_is_not(pairs, study):
    again, other = design_study(pairs, 3, seed=5), design_study(pairs, 3, seed=6)
    assert (again.name, again.orders, again.key()) == (study.name, study.orders, study.key())
    assert other.name != study.name
    assert design_study(pairs, 3).seed != design_study(pairs, 3).seed


def test_incomplete_cases_are_left_out_and_counted(pairs):
    kept = [pair for pair in pairs if pair.method != "null_edit" or pair.case.name.endswith(("0", "1"))]
    study = design_study(kept, 100, seed=0)
    assert {item.pair.case.name for item in study.items} == {"SENTINEL-0", "SENTINEL-1"}
    assert study.notes == ["8 cases are left out, because not every method has an image of them."]
    with pytest.raises(ValueError, match="No case has an image of every method"):
        design_study([pair for pair in pairs if (pair.method == "own_edit") == pair.case.name.endswith("0")], 3)


def test_the_page_tells_nothing_of_cases_methods_or_directions(study):
    page = Questionnaire(study).render()
    for secret in ("SENTINEL", *study.methods, "remove", "Math.random", "http://", "https://", "fetch("):
        assert secret not in page, secret
    for item in study.items:
        assert page.count(f'"{item.name}"') == 1


def test_the_place_in_the_page_does_not_follow_the_method(pairs):
    """Over many studies each method is about equally often first."""
    first = Counter(design_study(pairs, 3, seed=seed).items[0].pair.method for seed in range(90))
    assert len(first) == 3 and min(first.values()) > 15


def test_the_key_comes_back_and_is_its_owners_alone(study, tmp_path):
    study.key().save(tmp_path / "key.json")
    assert StudyKey.load(tmp_path / "key.json") == study.key()
    assert (tmp_path / "key.json").stat().st_mode & 0o077 == 0
    (tmp_path / "other.json").write_text('{"items": []}')
    with pytest.raises(ValueError, match="must be the key of a reader study"):
        StudyKey.load(tmp_path / "other.json")
