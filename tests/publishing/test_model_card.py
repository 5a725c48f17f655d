"""The card says what the run's files say, calls the rest unmeasured, and gives nothing private away."""

import json
import re

import pytest
from huggingface_hub import ModelCard

from mediffusion_diffusers.evaluation.guidance_calibration import write_guidance_defaults
from mediffusion_diffusers.notices import CARD_NOTICE
from mediffusion_diffusers.publishing.model_card import refresh_model_card, render_model_card


def section(card: ModelCard, title: str) -> str:
    return re.search(rf"^#+ {title}\n(.*?)(?=^#+ |\Z)", card.content, re.M | re.S)[1]


def test_the_metadata_is_what_the_hub_reads(run):
    card = render_model_card(**run, dataset_id="org/phantom")
    read_back = ModelCard(card.content).data

    assert read_back.license == "cc-by-nc-4.0" and read_back.library_name == "diffusers"
    assert {"mediffusion", "medical", "counterfactual"} <= set(read_back.tags)
    assert read_back.datasets == ["org/phantom"] and read_back.model_name == "mediffusion-phantom"
    (result,) = read_back.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_split) == ("roc_auc", 0.8125, "validation")


def test_only_what_was_measured_has_a_number(run):
    results = section(render_model_card(**run), "Validation images, while training")
    assert "| macro AUROC | 0.812 |" in results and "0.61" not in results
    assert "| AUROC, Mass | 0.812 |" in results and "| AUROC, Effusion | not measured |" in results
    not_measured = section(render_model_card(**run), "Not measured")
    for name in (
        "classification of test images",
        "judged by an outside classifier",
        "localisation",
        "external data set",
    ):
        assert re.search(rf"^- .*{name}.*: not measured$", not_measured, re.M)

    card = render_model_card(**{**run, "metrics": []})
    assert card.data.eval_results is None
    assert "Nothing was measured." in section(card, "Results") and "Validation images" not in card.content


def test_the_training_data_is_stated_with_split_and_people(run):
    card = render_model_card(**run)
    assert "Jane Doe et al. (2020)" in section(card, "Training data")
    assert "| train | 1,200 | 900 | F 500, M 700 | median 54 (quartiles 40 to 63) | not stated |" in card.content
    assert "| test | 300 | not stated | not stated | not stated | not stated |" in card.content
    share = section(card, "Labelled share")
    assert run["labelled_split"].hash in share and "10 % drawn by patient with seed 3: 2 images" in share
    assert "Every training image" in section(render_model_card(**{**run, "labelled_split": None}), "Labelled share")


def test_the_arguments_are_real_and_name_no_place_or_account(run, tmp_path):
    card = render_model_card(**run)
    procedure = section(card, "Training procedure")
    for row in ("| `seed` | 7 |", "| `learning_rate` | 0.0003 |", "| `block_out_channels` | 8, 16 |"):
        assert row in procedure
    assert "| `unet_path` | org/unet |" in procedure
    assert "1.5 minutes" in procedure and "optimizer steps: 20" in procedure
    for private in ("/home/jane", "runs/joint", str(tmp_path), "hub_model_id", "unet_subfolder"):
        assert private not in card.content


def test_the_counterfactual_defaults_name_what_belongs_together(run):
    defaults = section(render_model_card(**run), "Defaults of the counterfactuals")
    assert (
        "| `strength` | `0.2` | checkpoint |" in defaults and "| `guidance_scale` | `5.0` | checkpoint |" in defaults
    )
    assert "| `solver_order` | `2` | pipeline |" in defaults
    assert "`scaling_factor` 1.7" in defaults


def test_the_counterfactual_defaults_follow_a_calibration(run, tmp_path):
    run["pipeline"].save_pretrained(tmp_path)
    assert not refresh_model_card(tmp_path)  # no card, nothing to do
    card = render_model_card(**run)
    card.save(tmp_path / "README.md")
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in run["metrics"]))
    (tmp_path / "training_config.json").write_text(json.dumps(run["training_config"]))
    before = (tmp_path / "README.md").read_text()
    assert refresh_model_card(tmp_path)
    assert (tmp_path / "README.md").read_text() == before
    write_guidance_defaults(tmp_path, {"guidance_scale": {"away": 9.0, "towards": 4.0}})
    assert refresh_model_card(tmp_path)
    after = (tmp_path / "README.md").read_text()
    assert after == before.replace("`5.0`", "`{'away': 9.0, 'towards': 4.0}`")


def test_the_card_disclaims_and_tells_how_to_load(run):
    card = render_model_card(**run)
    assert card.content.count(CARD_NOTICE) == 2
    assert "what changes this model's score: not causal, not anatomy, not disease\n  progression" in card.content
    with_package, without = re.findall(r"```python\n(.*?)```", card.content, re.S)
    assert 'from_pretrained("org/mediffusion-phantom")' in with_package
    assert "mediffusion_diffusers" not in without and "trust_remote_code=True" in without
    for example in (with_package, without):
        assert len(example.strip().splitlines()) <= 6
        compile(example, "card", "exec")
    assert "{{" not in card.content and "None" not in card.content


@pytest.mark.parametrize(
    ("licence", "expected"),
    [
        ("Apache-2.0", "apache-2.0"),
        ("CC BY 4.0", "cc-by-4.0"),
        ("CC BY-NC 4.0 (non-commercial)", "cc-by-nc-4.0"),
        ("no restrictions, attribution", "other"),
    ],
)
def test_the_licence_follows_the_data_unless_it_is_given(run, licence, expected):
    run["dataset_info"].licence = licence
    assert render_model_card(**run).data.license == expected
    assert render_model_card(**run, license="mit").data.license == "mit"


def test_a_card_with_an_empty_mandatory_field_is_not_written(run):
    run["dataset_info"].licence = ""
    run["dataset_info"].attribution = ""
    with pytest.raises(ValueError, match=r"`dataset_info.licence`, `dataset_info.attribution`"):
        render_model_card(**run)


def test_an_undefined_auroc_is_not_a_result(run):
    run["metrics"][-1]["macro_auroc"] = None
    card = render_model_card(**run)
    assert card.data.eval_results is None and "| macro AUROC | not measured |" in card.content
