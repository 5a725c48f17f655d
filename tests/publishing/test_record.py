"""What the evaluation scripts measured stands in the card, with its origin, beside the weights it belongs to."""

import json
import re
import shutil
from dataclasses import asdict, fields, make_dataclass
from typing import Annotated

import numpy as np
import pytest
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

from mediffusion_diffusers import MediffusionCounterfactualPipeline
from mediffusion_diffusers.audit.subgroups import subgroup_aurocs
from mediffusion_diffusers.evaluation.generation_study import study_generation
from mediffusion_diffusers.evaluation.guidance_calibration import GuidanceTrial, write_guidance_defaults
from mediffusion_diffusers.options import Range, option
from mediffusion_diffusers.pipelines.counterfactual.settings import CounterfactualSettings
from mediffusion_diffusers.publishing import defaults_section
from mediffusion_diffusers.publishing.evaluations import kept_evaluations
from mediffusion_diffusers.publishing.model_card import refresh_model_card, render_model_card
from mediffusion_diffusers.publishing.record import record_results
from mediffusion_diffusers.reports.tables import format_value


MEMORISATION = {
    "share_nearer_to_training": 0.5,
    "share_nearer_to_training_interval_95": [0.4, 0.6],
    "distance_ratio": 1.0,
}


@pytest.fixture
def folder(run, evaluated, tmp_path):
    """The evaluated pipeline with its card, metrics and configuration, as training leaves it."""
    folder = tmp_path / "pipeline"
    shutil.copytree(evaluated["pipeline"], folder)
    run["dataset_info"].label_names = evaluated["info"].label_names
    run["labelled_split"] = None
    config = {**run["training_config"], "dataset": {"name": "phantom"}}
    pipeline = MediffusionCounterfactualPipeline.from_pretrained(folder)
    render_model_card(**{**run, "pipeline": pipeline, "training_config": config}).save(folder / "README.md")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in run["metrics"]))
    (folder / "training_config.json").write_text(json.dumps(config))
    return folder


def card_of(folder):
    return ModelCard((folder / "README.md").read_text())


def test_generated_images_fill_the_card(folder, evaluated):
    """Without the training images nobody looked for copies, and the card says so."""
    root = evaluated["pipeline"].parent
    sizes = {"num_images_per_label": 3, "num_inference_steps": 2}
    results = study_generation(folder, root / "data", root / "oracle", **sizes).results
    assert results["memorisation"] is None and "nobody looked for copies" in results["notes"][-1]
    assert record_results(folder, "generation", results).startswith("Recorded beside the model")
    text = card_of(folder).text
    assert f"| generated, guided | {format_value(results['guided']['kid'])} |" in text
    assert "generation (KID" not in text and "memorisation of training images: not measured" in text
    views = {view: {"generated": results["guided"] | MEMORISATION} for view in ("pixels", "features")}
    found = {**views, "num_training_images": 5, "num_held_out_images": 5}
    record_results(folder, "generation", {**results, "memorisation": found})
    text = card_of(folder).text
    assert "| generated, by pixels | 0.500 | 0.400 to 0.600 |" in text and "memorisation of training" not in text


def test_a_classification_fills_the_card(folder, evaluated):
    before = card_of(folder)
    results = evaluated["classification"]
    sentence = record_results(folder, "classification", results)
    assert sentence.startswith("Recorded beside the model")
    card = card_of(folder)
    assert "### Classification: phantom, split test" in card.text
    assert (
        f"Macro AUROC {results['macro_auroc']:.3f}" in card.text and results["provenance"]["checkpoint"] in card.text
    )
    for name, label in results["per_label"].items():
        assert f"| {name} | {label['num_positives']} | {label['auroc']:.3f} |" in card.text
    assert "classification of test images" not in card.text and "external data set: not measured" in card.text
    assert "an outside classifier (Diff, Other diff): not measured" in card.text
    figures = {result.dataset_split: result.metric_value for result in card.data.eval_results}
    assert figures == {"validation": 0.8125, "test": round(results["macro_auroc"], 4)}
    for heading in ("Training data", "Limitations"):  # the rest of the card stays as it was
        assert card.text.partition(f"## {heading}")[2][:800] == before.text.partition(f"## {heading}")[2][:800]


def test_counterfactuals_fill_the_card_and_name_no_image(folder, evaluated):
    results = evaluated["study"].to_dict()
    assert results["provenance"]["image_ids"]["remove"]
    record_results(folder, "classification", evaluated["classification"])
    record_results(folder, "counterfactuals", results)
    text = card_of(folder).text
    assert "### Counterfactuals: phantom, split test" in text and "#### Removing a finding" in text
    assert "| plain gradient |" in text and "guidance_scale: 20.0" in text
    assert "an outside classifier (Diff, Other diff): not measured" not in text and "localisation beside" not in text
    (path,) = (folder / "evaluation").glob("counterfactuals-*.json")
    kept = path.read_text()
    assert "image_ids" not in kept and results["provenance"]["image_ids"]["remove"][0] not in kept
    assert json.loads(kept)["remove"]["own"] == json.loads(json.dumps(results["remove"]["own"]))


def test_recording_twice_changes_nothing(folder, evaluated):
    record_results(folder, "classification", evaluated["classification"])
    once = (folder / "README.md").read_text()
    record_results(folder, "classification", evaluated["classification"])
    assert refresh_model_card(folder) and (folder / "README.md").read_text() == once
    assert len(list((folder / "evaluation").iterdir())) == 1


def test_another_split_and_other_data_stand_beside(folder, evaluated):
    results = evaluated["classification"]
    for change in ({"split": "validation"}, {"data": "other hospital/2021"}):
        record_results(folder, "classification", {**results, "provenance": {**results["provenance"], **change}})
    text = card_of(folder).text
    assert "phantom, split validation" in text and "other hospital/2021, split test" in text
    assert "external data set" not in text
    assert all(path.parent == folder / "evaluation" for path in folder.rglob("classification-*.json"))


def test_figures_of_other_weights_are_not_shown(folder, evaluated):
    record_results(folder, "classification", evaluated["classification"])
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    next(iter(tensors.values())).add_(1)
    save_file(tensors, weights, metadata={"format": "pt"})
    assert kept_evaluations(folder) == []
    assert refresh_model_card(folder)
    card = card_of(folder)
    assert "### Classification" not in card.text and "classification of test images" in card.text
    assert [result.dataset_split for result in card.data.eval_results] == ["validation"]
    assert "Evaluate it again" in record_results(folder, "classification", evaluated["classification"])


def test_a_card_that_left_its_run_keeps_what_it_knows(folder, evaluated):
    for name in ("metrics.jsonl", "training_config.json"):
        (folder / name).unlink()
    record_results(folder, "classification", evaluated["classification"])
    card = card_of(folder)
    assert "| macro AUROC | 0.812 |" in card.text
    assert [result.dataset_split for result in card.data.eval_results] == ["validation", "test"]


def test_an_audit_fills_the_card_and_says_whether_patients_were_told_apart(folder, evaluated):
    labels, scores = np.tile([[0.0, 1.0], [1.0, 0.0]], (6, 1)), np.random.default_rng(0).random((12, 2))
    place = {"name": "lower left", "share_of_images": 0.5, "share_of_energy": 0.4, "share_in_boxes": None}
    findings = {"Mass": {"num_images": 2, "places": [{**place, "is_suspect": None}]}}
    provenance = evaluated["classification"]["provenance"]
    for key, is_missing in (("has_marker", True), ("sex", False)):
        metadata = [{key: row % 4 < 2} for row in range(12)]
        groups = subgroup_aurocs(labels, scores, metadata, list(map(str, range(12))), ["Mass", "Effusion"], 20)
        results = {"subgroups": groups, "findings": findings, "notes": [], "provenance": provenance}
        assert record_results(folder, "audit", results).startswith("Recorded beside the model")
        text = card_of(folder).text
        name = key.replace("_", " ")
        assert f"| {name}: yes | 6 | {groups[2]['macro_auroc']['estimate']:.3f} |" in text
        assert "| Mass | lower left | 0.500 | 0.400 | – | unknown |" in text
        assert ("subgroups (sex, age, view): not measured" in text) == is_missing


def test_what_cannot_be_recorded_is_told(folder, evaluated, tmp_path):
    results = evaluated["classification"]
    assert "no folder of a pipeline" in record_results("org/mediffusion-cxr", "classification", results)
    assert "`kind` must be one of" in record_results(folder, "segmentation", results)
    assert "must name data, split, checkpoint" in record_results(folder, "classification", {})
    (folder / "README.md").write_text("# Our own card\n")
    assert "no card of ours" in record_results(folder, "classification", results)
    assert (folder / "README.md").read_text() == "# Our own card\n"
    (folder / "evaluation" / "broken.json").write_text("{")
    assert "broken.json' holds no evaluation" in record_results(folder, "classification", results)
    shutil.rmtree(folder / "evaluation")
    (folder / "evaluation").write_text("a file")
    assert record_results(folder, "classification", results).startswith("Not recorded beside the model: ")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("training_config.json", "[]"),
        ("training_config.json", '{"dataset": "phantom"}'),
        ("unet/config.json", "[]"),
        ("unet/config.json", '{"id2label": ["Mass"]}'),
        ("vae/config.json", '{"scaling_factor": "1"}'),
        ("README.md", "---\nlicense: [\n---\n\n## Results\n"),
        ("README.md", "---\n1: 2\n---\n\n## Results\n"),
    ],
)
def test_what_is_damaged_beside_the_card_is_told_by_its_name(folder, name, text):
    (folder / name).write_text(text)
    with pytest.raises(ValueError, match=rf"{re.escape(name)}.*(Repair|Restore|damaged|no config)"):
        refresh_model_card(folder)


def test_a_fault_of_ours_does_not_cost_the_results_that_are_written_next(folder, evaluated, monkeypatch):
    def fail(folder):
        raise TypeError("unsupported operand")

    monkeypatch.setattr("mediffusion_diffusers.publishing.record.refresh_model_card", fail)
    sentence = record_results(folder, "classification", evaluated["classification"])
    assert "fault of the software: TypeError('unsupported operand')" in sentence


def test_a_calibration_stands_beside_what_it_chose(folder, evaluated):
    trial = GuidanceTrial("remove", 0.3, "auto", 30.0, 0.141, 0.138, 0.9375, 0.0126, 0.0, 16, {"Mass": 0.141})
    results = {"rule": "the smallest change", "chosen": [asdict(trial)], "trials": [asdict(trial)]}
    provenance = {**evaluated["classification"]["provenance"], "split": "validation"}
    write_guidance_defaults(folder, {"strength": 0.3, "mask": "auto"})
    assert "Recorded" in record_results(folder, "calibration", {"provenance": provenance, **results})
    text = card_of(folder).text
    assert "### Choice of the counterfactuals' defaults: phantom, split validation" in text
    assert "| remove | 0.300 | auto | 30 | 0.141 | 0.138 | 0.938 | 0.013 | 16 |" in text
    assert "Chosen: the smallest change." in text
    assert "| `mask` | `auto` | checkpoint |" in text and "classification of test images" in text


def test_a_new_option_of_the_counterfactuals_stands_in_the_card(folder, monkeypatch):
    column = ("sharpness", Annotated[float, Range(at_least=0)], option(0.5, "How `sharp` | blunt the edit is."))
    extended = make_dataclass("Extended", [column], bases=(CounterfactualSettings,), frozen=True)
    monkeypatch.setattr(defaults_section, "CounterfactualSettings", extended)
    assert refresh_model_card(folder)
    rows = re.findall(r"^\| `(\w+)` \| .* \| (?:pipeline|checkpoint) \| .* \|$", card_of(folder).text, re.M)
    assert rows == [entry.name for entry in fields(extended)] and rows[-1] == "sharpness"
    assert "| `sharpness` | `0.5` | pipeline | How `sharp` \\| blunt the edit is. |" in card_of(folder).text
