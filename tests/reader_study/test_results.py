"""Figures of a study: identities, limits, and a published example."""

import numpy as np
import pytest
from scipy.stats import wilcoxon

from mediffusion_diffusers.reader_study.agreement import krippendorff_alpha
from mediffusion_diffusers.reader_study.answers import Answer
from mediffusion_diffusers.reader_study.results import holm, paired_tests, study_results


# K. Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011), data of section C: ordinal alpha 0.815.
_GAP = np.nan
PUBLISHED = np.array(
    [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, _GAP, _GAP, _GAP],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, _GAP, 3],
        [_GAP, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, _GAP],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, _GAP],
    ]
)


def answers_of(grades, direction="remove"):
    """Answers from `grades[reader][method][case]`."""
    return [
        Answer(f"R{reader}", 1, f"{method}-{case}", f"{case}", "Mass", direction, method, int(grade), 1.0)
        for reader, by_method in enumerate(grades)
        for method, of_method in by_method.items()
        for case, grade in enumerate(of_method)
    ]


def test_alpha_is_the_published_one():
    assert krippendorff_alpha(PUBLISHED) == pytest.approx(0.815, abs=5e-4)


def test_alpha_at_its_limits():
    generator = np.random.default_rng(0)
    one = generator.integers(1, 6, 2000).astype(float)
    assert krippendorff_alpha(np.stack([one, one, one])) == 1.0
    assert krippendorff_alpha(np.stack([one, generator.permutation(one)])) == pytest.approx(0, abs=0.06)
    assert krippendorff_alpha(np.stack([one, 6 - one])) < -0.5
    assert np.isnan(krippendorff_alpha(one[None])) and np.isnan(krippendorff_alpha(np.ones((3, 4))))


def test_alpha_knows_only_the_order_of_grades_and_not_of_readers():
    assert krippendorff_alpha(PUBLISHED**3) == pytest.approx(krippendorff_alpha(PUBLISHED))
    assert krippendorff_alpha(PUBLISHED[::-1]) == pytest.approx(krippendorff_alpha(PUBLISHED))
    assert krippendorff_alpha(6 - PUBLISHED) == pytest.approx(krippendorff_alpha(PUBLISHED))


def test_readers_of_one_case_count_once():
    """Seven readers who say the same are no more evidence about cases than one."""
    grades = {"ours": [1, 1, 2, 1, 3, 2], "null": [3, 2, 4, 3, 3, 3]}
    (one,), (seven,) = (paired_tests(answers_of([grades] * num), ["ours", "null"]) for num in (1, 7))
    assert one == seven
    difference = np.array(grades["ours"]) - np.array(grades["null"])
    assert one["mean_difference"] == pytest.approx(difference.mean())
    assert one["p_value"] == pytest.approx(wilcoxon(difference, zero_method="pratt").pvalue)


def test_the_order_of_two_methods_turns_the_sign_alone():
    answers = answers_of([{"a": [1, 2, 2, 5], "b": [3, 3, 1, 4]}, {"a": [2, 2, 1, 4], "b": [3, 5, 1, 1]}])
    (one,), (other,) = paired_tests(answers, ["a", "b"]), paired_tests(answers, ["b", "a"])
    assert one["mean_difference"] == -other["mean_difference"] and one["p_value"] == other["p_value"]


def test_methods_that_nobody_tells_apart_have_p_1_and_missing_ones_none():
    same, missing, other = paired_tests(answers_of([{"a": [1, 2], "b": [1, 2]}]), ["a", "b", "c"])
    assert (same["p_value"], same["mean_difference"]) == (1.0, 0.0)
    assert np.isnan(missing["p_value"]) and np.isnan(other["p_value_holm"]) and missing["num_cases"] == 0
    assert same["p_value_holm"] == 1.0


def test_holm_is_between_no_correction_and_bonferroni():
    p_values = [0.001, 0.2, 0.04, float("nan"), 0.03]
    corrected = holm(p_values)
    for raw, one in zip(p_values, corrected, strict=True):
        assert np.isnan(raw) == np.isnan(one) and (np.isnan(raw) or raw <= one <= min(1, 4 * raw))
    assert holm([0.5]) == [0.5]


def test_counts_add_up():
    answers = answers_of([{"a": [1, 2, 2], "b": [3, 5, 4]}]) + answers_of([{"a": [5, 4, 4], "b": [1, 3, 3]}], "add")
    results = study_results(answers)
    assert sum(one["num_answers"] for way in ("remove", "add") for one in results[way]["grades"].values()) == 12
    for direction in ("remove", "add"):
        for grades in results[direction]["grades"].values():
            assert sum(grades["counts"].values()) == grades["num_answers"]
            assert grades["quartiles"] == sorted(grades["quartiles"])
