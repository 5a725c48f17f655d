"""The benchmark of few labels: its table by hand, and the whole command at the smallest size."""

import json
from dataclasses import replace

import label_efficiency
import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from few_labels import METHODS
from few_labels.fixmatch import cutout
from few_labels.problem import HeldOut
from few_labels.table import Resampled, differences_of, interval_over_draws, method_rows
from PIL import Image
from support.training import TINY_JOINT, joint_config

from mediffusion_diffusers.data.phantom import prepare_phantoms
from mediffusion_diffusers.training.classification import auroc_record
from mediffusion_diffusers.training.presets import JOINT_PRESETS


NUM_STEPS = 2
OURS, OTHER = "consolidated", "resnet"
RUN = ("diffusion_first", OURS, OTHER, "mean_teacher", "fixmatch", "frozen_probe")  # one of each kind


@pytest.fixture
def fresh_accelerate():
    """accelerate keeps its state between runs of one process."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture
def study(tmp_path, monkeypatch, fresh_accelerate):
    """Command line of the study of 24 phantoms, with steps and preset of its own size."""
    prepare_phantoms(tmp_path / "data", 24, 12, 12, image_size=16, show_progress=False)
    tiny = joint_config(*TINY_JOINT, "--classifier_noise_prob", 0, "--classifier_start_step", NUM_STEPS)
    tiny = tiny.with_options(consolidation_batch_size=4, max_train_steps=2 * NUM_STEPS, classifier_hidden_size=0)
    monkeypatch.setitem(JOINT_PRESETS, "tiny", tiny)
    for name in set(METHODS) - {OTHER}:  # one method's learning rate is chosen
        monkeypatch.setitem(METHODS, name, replace(METHODS[name], rates=METHODS[name].rates[:1]))
    monkeypatch.setattr("few_labels.table.NUM_RESAMPLES", 5)
    monkeypatch.setattr(label_efficiency, "TUNING_DRAWS", (1000, 1001))
    paths = ("--dataset_dir", tmp_path / "data", "--work_dir", tmp_path / "runs", "--output", tmp_path / "table.json")
    size = ("--preset", "tiny", "--share", 50, "--num_draws", 1, "--class_steps", NUM_STEPS, "--pool_steps", NUM_STEPS)
    size = (*size, "--methods", *RUN)
    return tmp_path, [str(each) for each in (*paths, *size)]


def test_the_whole_command_goes_on_where_it_ended(study, monkeypatch):
    folder, line = study
    label_efficiency.main(line)
    table = json.loads((folder / "table.json").read_text())
    assert table["methods"].keys() == {METHODS[name].title for name in RUN}
    assert [len(trials) for trials in table["trials"].values()] == [2]
    rows = table["denoising_loss_over_the_pre_trained"]
    assert all(len(row) == 10 for row in rows.values()) and METHODS[OURS].title in rows
    pair = table["differences"][f"{METHODS[OURS].title}, minus {METHODS[OTHER].title}"]
    one, other = (table["methods"][METHODS[name].title]["test_macro_auroc"]["mean"] for name in (OURS, OTHER))
    assert pair["points"]["mean"] == pytest.approx(100 * (one - other))
    low, high = pair["interval_95_over_patients"]
    assert low <= high
    assert Image.open(folder / "table.png").width > 1000
    monkeypatch.setattr(label_efficiency, "train", None)  # nothing is left to train
    label_efficiency.main(line)
    assert json.loads((folder / "table.json").read_text()) == table
    label_efficiency.main([*line, "--tuned_by", str(folder / "table.json")])  # the same rates: nothing is left
    again = json.loads((folder / "table.json").read_text())
    assert again.pop("trials") == {} and again == {name: value for name, value in table.items() if name != "trials"}


def results_of(values):
    return {
        name: {
            draw: {"test": {"macro_auroc": auroc}, "validation": {"macro_auroc": auroc / 2}, "cpu_seconds": 3.0}
            for draw, auroc in enumerate(each)
        }
        for name, each in values.items()
    }


def test_differences_are_paired_over_the_draws_that_both_have():
    results = results_of({OURS: [0.8, 0.9, 0.7], OTHER: [0.7, 0.85], "diffusion_first": [0.8, 0.9, 0.7]})
    pair = differences_of(results, None)[f"{METHODS[OURS].title}, minus {METHODS[OTHER].title}"]
    assert pair["points"]["mean"] == pytest.approx(7.5) and pair["draws_in_favour"] == "2 of 2"
    assert pair["points_on_validation"]["mean"] == pytest.approx(3.75)
    low, high = pair["interval_95_over_draws"]
    half = 12.706 * pair["points"]["sd"] / 2**0.5  # Student's t, one degree of freedom
    assert (low, high) == (pytest.approx(7.5 - half, rel=1e-3), pytest.approx(7.5 + half, rel=1e-3))
    rows = method_rows(results)
    assert rows[METHODS[OURS].title]["cpu_seconds_a_draw"] == 6.0  # with the stage before it
    assert rows[METHODS[OTHER].title]["cpu_seconds_a_draw"] == 3.0


def test_an_interval_needs_two_draws():
    assert interval_over_draws([1.0]) is None


def test_a_method_does_not_differ_from_itself():
    rng = np.random.default_rng(0)
    labels = np.eye(3)[rng.integers(0, 3, size=40)]
    test = HeldOut(torch.zeros(40, 1, 1, 1), labels, [str(each) for each in range(40)])
    noise = rng.random((40, 3))
    scores = {"one": noise, "same": noise, "better": labels + 0.1 * noise}
    resampled = Resampled(lambda draw, name: scores[name], test)
    assert resampled.interval("one", "same", [0, 1]) == [0.0, 0.0]
    low, _ = resampled.interval("better", "one", [0])
    assert low > 0


def test_without_resampling_it_is_the_macro_auroc_of_what_is_known():
    rng = np.random.default_rng(1)
    labels, scores = (rng.random((30, 3)) > 0.5).astype(float), rng.random((30, 3))
    labels[rng.random((30, 3)) < 0.2] = np.nan
    test = HeldOut(torch.zeros(30, 1, 1, 1), labels, [str(each) for each in range(30)])
    found = Resampled(lambda draw, name: scores, test).macro_auroc("any", 0, np.ones(30))
    assert found == pytest.approx(auroc_record(labels, scores, ["a", "b", "c"])["macro_auroc"])


def test_cutout_sets_one_square_to_the_mean():
    images = torch.ones(6, 2, 16, 16)
    changed = cutout(images, torch.Generator().manual_seed(0)) == 0
    assert torch.equal(changed[:, 0], changed[:, 1]) and changed.any()
    for each in changed[:, 0]:
        rows, columns = each.any(dim=1), each.any(dim=0)
        assert each.sum() == rows.sum() * columns.sum() and each.sum() <= 81
