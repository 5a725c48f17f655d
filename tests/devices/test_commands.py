"""The commands give on an accelerator the figures that they give on the CPU."""

import json
import shutil

import pytest
import torch
from support.components import random_images, random_pil, tiny_pipeline, tiny_scheduler, tiny_unet, tiny_vae
from support.devices import assert_same, same_on
from support.explanation import output_table
from support.studies import QUICK_LINE
from transformers import ResNetConfig, ResNetForImageClassification

from mediffusion_diffusers import MediffusionCounterfactualPipeline
from mediffusion_diffusers.commands import (
    calibrate_guidance,
    evaluate_classification,
    evaluate_counterfactuals,
    explain_dataset,
)
from mediffusion_diffusers.data.phantom import PHANTOM_LABELS
from mediffusion_diffusers.evaluation.agreement import repeat_counterfactual
from mediffusion_diffusers.models.oracle_classifier import OracleClassifier
from mediffusion_diffusers.reports.image_explanations import explain_images


EDIT = ("--num_inference_steps", 2, "--strength", 0.2)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A pipeline that sees three findings everywhere and the others nowhere, and an oracle."""
    folder = tmp_path_factory.mktemp("saved")
    thresholds = [1e-6, 1e-6, 1e-6, 1 - 1e-6, 1 - 1e-6]
    unet = tiny_unet(id2label=dict(enumerate(PHANTOM_LABELS)), label_thresholds=thresholds)
    MediffusionCounterfactualPipeline(tiny_vae(), unet, tiny_scheduler()).save_pretrained(folder / "pipeline")
    torch.manual_seed(3)
    names = {"id2label": dict(enumerate(PHANTOM_LABELS)), "problem_type": "multi_label_classification"}
    size = {"num_channels": 1, "embedding_size": 8, "hidden_sizes": [8, 8], "depths": [1, 1], "image_size": 16}
    network = ResNetForImageClassification(ResNetConfig(**size, **names, layer_type="basic"))
    OracleClassifier(network).save_pretrained(folder / "oracle")
    return folder


@pytest.fixture
def on_both(device, saved, tmp_path):
    """Runs a command on the CPU and on the device, each in a folder of its own; returns both."""

    def run(command, *arguments):
        places = []
        for where in ("cpu", str(device)):
            place = tmp_path / where
            shutil.copytree(saved, place)
            line = ("--pretrained_model_name_or_path", place / "pipeline", "--device", where, *arguments)
            command.main([str(each).replace("<place>", str(place)) for each in line])
            places.append(place)
        return places

    return run


def assert_same_figures(places, name):
    here, there = (json.loads((place / name).read_text()) for place in places)
    for figures in (here, there):
        figures.pop("provenance", None)
    assert_same(there, here)


def test_evaluate_classification(on_both, phantoms):
    places = on_both(evaluate_classification, "--dataset_dir", phantoms, "--output_dir", "<place>/out")
    assert_same_figures(places, "out/classification.json")


def test_evaluate_counterfactuals(on_both, phantoms):
    line = (
        "--dataset_dir",
        phantoms,
        "--oracle_path",
        "<place>/oracle",
        "--output_dir",
        "<place>/out",
        "--num_images_per_label",
        2,
        *QUICK_LINE,
    )
    places = on_both(evaluate_counterfactuals, *line, "--direction", "remove", "--guidance_scale", 20, *EDIT)
    assert_same_figures(places, "out/counterfactuals.json")


def test_calibrate_guidance(on_both, phantoms):
    line = ("--dataset_dir", phantoms, "--strengths", 0.2, "--guidance_scale", 10, "--num_images_per_label", 1)
    line = (*line, "--direction", "remove")
    places = on_both(calibrate_guidance, *line, "--max_trials", 2, "--max_l1", 1, "--num_inference_steps", 2)
    here, there = (json.loads((place / "pipeline/unet/config.json").read_text()) for place in places)
    assert_same(there["guidance_defaults"], here["guidance_defaults"])


def test_explain_images(device, saved):
    def explain(where):
        pipe = MediffusionCounterfactualPipeline.from_pretrained(saved / "pipeline").to(where)
        pipe.set_progress_bar_config(disable=True)
        settings = {"guidance_scale": 20.0, "num_inference_steps": 2, "strength": 0.2}
        return explain_images(pipe, random_images(1), PHANTOM_LABELS[0], "removed", **settings)[0]

    same_on(device, explain)


def test_explain_dataset(on_both, phantoms, capsys):
    line = ("--dataset", phantoms, "--split", "validation", "--away", PHANTOM_LABELS[0], "--output_dir", "<place>/out")
    places = on_both(explain_dataset, *line, "--batch_size", 8, *EDIT, "--json")
    told = [json.loads(text + "}") for text in capsys.readouterr().out.split("\n}\n")[:-1]]
    assert [each["num_explained"] for each in told] == [12, 12] and all(each["manifest"]["complete"] for each in told)
    here, there = (output_table(place / "out") for place in places)
    names = ("image_id", "error", "probabilities_before", "probabilities_after", "probabilities_null", "strength")
    assert len(here) == 12 and here["error"].null_count == 12
    for name in names:
        assert_same(there[name].to_pylist(), here[name].to_pylist())


@pytest.mark.parametrize("runs", [{"strengths": [0.1, 0.2]}, {"seeds": [0, 1]}], ids=["strengths", "seeds"])
def test_agreement(device, runs):
    def repeat(where):
        pipe = tiny_pipeline(MediffusionCounterfactualPipeline).to(where)
        return repeat_counterfactual(
            pipe, random_pil(1), **runs, away="Mass", guidance_scale=5.0, num_inference_steps=2
        )

    same_on(device, repeat)
