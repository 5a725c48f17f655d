"""The comparison of procedures: costs, the search for a scale, and the whole command at the smallest size."""

import json
import sys
from dataclasses import replace

import compare_procedures
import numpy as np
import procedure_figures
import procedures
import pytest
import torch
import tune_procedure
from edit_cost import CountOperations, peak_megabytes, unet_evaluations
from procedure_figures import PerImage, Row, difference
from procedure_table import table_of
from procedures import PROCEDURES
from support.components import tiny_unet
from support.studies import prepare_world


def test_operations_of_a_convolution_and_of_its_gradient():
    layer = torch.nn.Conv2d(3, 5, 3, padding=1)
    images = torch.zeros(2, 3, 8, 8, requires_grad=True)
    with CountOperations() as forward:
        result = layer(images)
    assert forward.total == 2 * (2 * 8 * 8) * (5 * 3 * 3 * 3)  # a multiplication and an addition each
    layer.requires_grad_(False)
    with CountOperations() as both:
        torch.autograd.grad(layer(images).sum(), images)
    assert both.total == 2 * forward.total and result.shape == (2, 5, 8, 8)


def test_costs_are_in_evaluations_of_the_unet():
    unet = tiny_unet()
    latents = torch.zeros(3, 4, 8, 8)

    @torch.no_grad()
    def run():
        for _ in range(2):
            unet(latents, 0, return_logits=False)

    assert unet_evaluations(unet, run, num_images=3) == pytest.approx(2)
    assert unet_evaluations(unet, lambda: unet(latents, 0, return_sample=False), 3) < 1  # the encoder alone


def test_memory_of_what_is_held_at_once():
    def hold():
        held = torch.ones(64, 2**18)  # 64 MB
        torch.mm(torch.ones(600, 600), torch.ones(600, 600)).sum()
        return held.sum()

    assert 50 < peak_megabytes(hold) < 200


@pytest.mark.parametrize("rises", [True, False])
def test_the_search_closes_in_on_the_scale(rises):
    """Of a classifier whose log odds are linear in the logarithm of the scale, from far below and far above."""
    sign = 1 if rises else -1

    def answer(scale):
        return 1 / (1 + np.exp(-sign * (np.log(scale) - np.log(20))))

    for first in (1.0, 500.0):
        tried = {}
        for _ in range(5):
            scale = tune_procedure.next_scale(tried, 0.5, first, rises)
            tried[scale] = answer(scale)
        assert min(abs(probability - 0.5) for probability in tried.values()) < 0.1


def row_of(errors):
    errors = np.asarray(errors, dtype=float)
    rng = np.random.default_rng(0)
    patients = [f"patient {number}" for number in range(len(errors))]
    per_image = PerImage(patients, errors**2, np.ones(len(errors)), errors, None, errors, rng.random(2 * len(errors)))
    return Row({}, per_image)


def test_differences_are_paired_by_patient():
    """Each image is .1 closer to the truth than with the other, however far both are."""
    far = np.linspace(0.5, 5, 20)
    found = difference({0: row_of(far), 1: row_of(far)}, {1: row_of(far + 0.1), 2: row_of(far)})
    assert found["num_models"] == 1
    low, high = found["cosine"]["interval_95"]
    assert found["cosine"]["estimate"] == pytest.approx(-0.1) and low == pytest.approx(-0.1) == high
    assert found["error"]["interval_95"][1] < 0 and found["realism_auroc"]["estimate"] == 0


def test_tables_leave_out_what_was_not_measured():
    figures = {"error": {"mean": 0.625, "sd": 0.01}, "l1": {"mean": 0.005, "sd": 0.0}}
    table = table_of({"remove": {"ours": figures, "other": {"error": {"mean": float("nan"), "sd": 0.0}}}})
    assert table.splitlines()[2:] == [
        "| procedure | error | L1 x1000 |",
        "|---|---|---|",
        "| ours | .62 | 5.0 |",
        "| other |  |  |",
    ]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return prepare_world(tmp_path_factory.mktemp("world"))


def short(name, **variant):
    """One of the procedures, cut short."""
    (found,) = (each for each in PROCEDURES if each.name == name)
    return replace(found, variants=({**found.variants[0], **variant},))


def test_the_whole_command(world, monkeypatch):
    output = world / "results" / "comparison.json"
    line = [
        "compare_procedures.py",
        *("--models", str(world / "pipeline"), "--dataset_dir", str(world / "data")),
        *("--oracle_path", str(world / "oracle"), "--external_path", str(world / "oracle")),
        *("--num_images_per_label", "2", "--num_validation_images_per_label", "1"),
        *("--work_dir", str(world / "work"), "--output", str(output)),
    ]
    few = [
        short("ours, fast", num_inference_steps=1, num_noises=1),
        short("external guidance", num_inference_steps=1),
        short("MaskDiME-like", num_inference_steps=1),
    ]
    monkeypatch.setattr(compare_procedures, "PROCEDURES", few)
    monkeypatch.setattr(tune_procedure, "SCALES_PER_VARIANT", 2)
    monkeypatch.setattr(procedures, "NUM_WAYS", 2)
    monkeypatch.setattr(procedure_figures, "NUM_RESAMPLES", 5)
    monkeypatch.setattr(sys, "argv", line)
    compare_procedures.main()
    report = json.loads(output.read_text())
    (model,) = report["models"]
    for direction in ("remove", "add"):
        found = model["results"][direction]
        assert found["num_images"] == found["num_patients"] > 1
        ours, plain = found["ours, fast"], found["plain gradient, as ours, fast"]
        assert ours["l1"] == pytest.approx(plain["l1"], rel=1e-3)
        assert len(model["procedures"]["MaskDiME-like"][direction]["trials"]) == 2
        # one pair of evaluations; and of the encoder: two for the region, several more for the stop of a removal
        assert 2 < ours["unet_evaluations"] < (6 if direction == "remove" else 4)
    assert "add: ours, fast minus MaskDiME-like" in report["differences"]
    assert output.with_suffix(".png").stat().st_size > 0
    assert "| MaskDiME-like |" in output.with_suffix(".md").read_text()

    monkeypatch.setattr(compare_procedures, "tune", None)  # nothing is chosen or edited again
    workshop = compare_procedures.Workshop(world / "pipeline", compare_procedures.parse(line[1:]))
    for procedure in few:
        workshop.make(procedure, workshop)
