"""What the demo promises: the truth keeps every promise, and what explains nothing does not."""

import copy
import json

import pytest

from mediffusion_diffusers.reports.pages.demo import check_demo


TRUE = {
    "num_images": 40,
    "per_label": dict.fromkeys("abcde"),
    "own": {"after": 0.15},
    "truth": {"own": {"after": 0.15}},
    "to_truth": {"error": 0.0, "nearest_error": 0.0},
    "realism": {"detector_auroc": 0.5},
    "oracle": {"diff": -0.7, "other_diff": 0.06},
    "change": {"null_l1": 0.0},
    "controls": {"plain_gradient": {"ours_minus_it": {"error": -0.95, "detector_auroc": -0.3}}},
}


@pytest.fixture
def failures(tmp_path):
    """Names of the promises that a removal does not keep, with the additions of the truth."""

    def check(removal):
        (tmp_path / "counterfactuals").mkdir(exist_ok=True)
        addition = {**TRUE, "oracle": {"diff": 0.7, "other_diff": 0.06}}
        study = {"remove": removal, "add": addition}
        (tmp_path / "counterfactuals" / "counterfactuals.json").write_text(json.dumps(study))
        (tmp_path / "classification.json").write_text(json.dumps({"macro_auroc": 0.9}))
        return [one.name for one in check_demo(tmp_path) if not one.passed]

    return check


def test_the_truth_keeps_every_promise(failures):
    assert failures(TRUE) == []


@pytest.mark.parametrize(
    ("changes", "broken"),
    [
        # The plain gradient itself: no better than itself, and no closer to the truth than the original.
        (
            {"to_truth": {"error": 1.04}, "ours_minus_it": {"error": 0, "detector_auroc": 0}},
            ["error", "gradient", "gradient"],
        ),
        ({"own": {"after": 0.5}, "oracle": {"diff": 0.0, "other_diff": 0.0}}, ["probability", "Diff under removal"]),
        ({"realism": {"detector_auroc": 0.9}}, ["AUROC"]),
        ({"oracle": {"diff": -0.7, "other_diff": 0.2}, "change": {"null_l1": 0.02}}, ["Other diff", "null edit"]),
    ],
)
def test_what_explains_nothing_does_not(failures, changes, broken):
    removal = copy.deepcopy(TRUE)
    if "ours_minus_it" in changes:
        removal["controls"]["plain_gradient"] = {"ours_minus_it": changes["ours_minus_it"]}
    removal.update({name: value for name, value in changes.items() if name != "ours_minus_it"})
    names = failures(removal)
    assert len(names) == len(broken) and all(word in name for word, name in zip(broken, names, strict=True))
