import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from support.components import tiny_scheduler, tiny_unet, tiny_vae
from support.studies import QUICK

from mediffusion_diffusers import MediffusionCounterfactualPipeline
from mediffusion_diffusers.data.phantom import PHANTOM_LABELS, prepare_phantoms
from mediffusion_diffusers.data.schema import DatasetInfo, load_info, parquet_files
from mediffusion_diffusers.evaluation.counterfactual_study import CounterfactualStudyRunner
from mediffusion_diffusers.evaluation.measure_options import MeasureOptions
from mediffusion_diffusers.models.oracle_classifier import PATIENTS_FILE, OracleClassifier, patient_digest
from mediffusion_diffusers.reports.pages.counterfactual_study import write_study
from mediffusion_diffusers.reports.pictures.counterfactual_study import load_figures
from mediffusion_diffusers.reports.tables import CONTROLS
from mediffusion_diffusers.training.oracle.config import NetworkOptions
from mediffusion_diffusers.training.oracle.task import build_oracle


SETTINGS = {"num_inference_steps": 3, "guidance_scale": 20.0, "strength": 0.3}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A pipeline, phantoms and an oracle, all tiny and untrained."""
    root = tmp_path_factory.mktemp("study")
    prepare_phantoms(root / "data", 0, 0, 40, image_size=16, seed=2, show_progress=False)
    # Thresholds that find three labels in every image, and the others in none.
    unet = tiny_unet(id2label=dict(enumerate(PHANTOM_LABELS)), label_thresholds=[1e-6, 1e-6, 1e-6, 1 - 1e-6, 1 - 1e-6])
    MediffusionCounterfactualPipeline(tiny_vae(), unet, tiny_scheduler()).save_pretrained(root / "pipeline")
    torch.manual_seed(3)
    oracle = OracleClassifier(build_oracle(load_info(root / "data"), 16, NetworkOptions([8, 8], [1, 1])))
    oracle.save_pretrained(root / "oracle")
    return root


@pytest.fixture(scope="module")
def runner(folders):
    return CounterfactualStudyRunner(
        folders / "pipeline", folders / "data", "test", folders / "oracle", SETTINGS, batch_size=7
    )


@pytest.fixture(scope="module")
def study(runner):
    options = MeasureOptions(num_true_ways=3, checks=["reversibility", "head_randomisation"], num_check_images=2)
    return runner.run(("remove", "add"), num_images_per_label=3, options=options)


def test_selection_and_numbers(study):
    removals, additions = study.directions["remove"], study.directions["add"]
    assert removals.results["num_images"] == 9 and set(removals.results["per_label"]) == set(PHANTOM_LABELS[:3])
    assert additions.results["num_images"] == 6 and set(additions.results["per_label"]) == set(PHANTOM_LABELS[3:])
    assert len(removals.image_ids) == 9
    for target, boxes in zip(removals.counterfactuals.targets, removals.boxes, strict=True):
        assert [box["label"] for box in boxes] == [target]


def test_controls_change_as_much_as_the_counterfactual(study):
    for studied in study.directions.values():
        l1 = studied.results["change"]["l1"]
        assert l1 > 0
        controls = studied.results["controls"]
        for name in ("plain_gradient", "random_noise", "average_change"):
            assert controls[name]["change"]["l1"] == pytest.approx(l1, rel=1e-3)
        assert set(controls) == set(CONTROLS)


def test_the_truth_is_where_every_measure_says_it_is(study):
    """It has error 0 and cosine 1, not editing has error 1: whatever else is measured stands between."""
    for direction, studied in study.directions.items():
        truth, ours = studied.results["truth"]["to_truth"], studied.results["to_truth"]
        assert truth["error"] == 0 and truth["cosine"] == pytest.approx(1) and truth["region_iou"] == 1
        assert truth["share_closer"] == 1 and ours["error"] > 0
        assert ("nearest_error" in ours) is (direction == "add")
        if direction == "add":
            assert truth["nearest_error"] == 0 and ours["num_ways"] == 3


def test_controls_stand_beside_ours_with_the_difference(study):
    results = study.directions["remove"].results
    for control in results["controls"].values():
        minus = control["ours_minus_it"]
        assert minus["error"] == pytest.approx(results["to_truth"]["error"] - control["to_truth"]["error"])
        assert minus["error_interval_95"][0] <= minus["error"] <= minus["error_interval_95"][1]
    assert set(results["validity"]) == {"denoised_flip_rate", "smoothed_flip_rate", "cout"}
    assert set(results["checks"]) == {"num_images", "reversibility", "head_randomisation"}
    assert results["checks"]["num_images"] == 2


def test_data_without_a_known_truth_is_compared_with_other_images(folders, tmp_path):
    shutil.copytree(folders / "data", tmp_path / "data")
    for path in parquet_files(tmp_path / "data", "test"):
        table = pq.read_table(path)
        column = table.column_names.index("metadata")
        table = table.set_column(column, "metadata", [["{}"] * len(table)])
        pq.write_table(table, path)
    runner = CounterfactualStudyRunner(folders / "pipeline", tmp_path / "data", settings=SETTINGS)
    results = runner.run(("remove",), 2, options=QUICK).directions["remove"].results
    assert "to_truth" not in results and "truth" not in results
    assert "other images" in results["realism"]["compared_with"] and "kid" not in results["realism"]
    assert "random_region" not in results["controls"]


def test_the_plain_gradient_moves_the_model_more_than_noise(study):
    for direction, sign in (("remove", -1), ("add", 1)):
        controls = study.directions[direction].results["controls"]
        assert sign * controls["plain_gradient"]["own"]["diff"] > sign * controls["random_noise"]["own"]["diff"]


def test_localisation_is_for_removals_and_truth_for_phantoms(study):
    removals, additions = study.directions["remove"], study.directions["add"]
    assert removals.results["localisation"]["vs_original"]["num_images"] == 9
    assert "wrong_box_ratio" in removals.results["localisation"]["vs_null"]
    assert "localisation" not in additions.results
    # A true counterfactual changes the box most of all.
    difference = np.abs(removals.truth - removals.counterfactuals.originals).mean(1)
    box = removals.boxes[0][0]
    y, x = np.unravel_index(difference[0].argmax(), difference[0].shape)
    assert box["x"] <= x / 16 < box["x"] + box["width"] and box["y"] <= y / 16 < box["y"] + box["height"]


def test_batches_do_not_matter(folders, study):
    one = CounterfactualStudyRunner(
        folders / "pipeline", folders / "data", "test", folders / "oracle", SETTINGS, batch_size=64
    ).run(("remove",), num_images_per_label=3, options=QUICK)
    images = (one.directions["remove"].counterfactuals.images, study.directions["remove"].counterfactuals.images)
    np.testing.assert_allclose(*images, atol=1e-4)


def test_unguided_equals_the_null_edit(folders):
    runner = CounterfactualStudyRunner(
        folders / "pipeline", folders / "data", settings={**SETTINGS, "guidance_scale": 0.0}
    )
    results = runner.run(("remove",), 2, options=QUICK).directions["remove"].results
    assert results["change"]["l1_vs_null"] == 0
    assert results["own"]["diff_vs_null"] == 0
    assert "oracle" not in results


def test_an_oracle_that_knows_the_patients_is_told(folders, tmp_path):
    shutil.copytree(folders / "oracle", tmp_path / "oracle")
    first = CounterfactualStudyRunner(folders / "pipeline", folders / "data").dataset["patient_id"][0]
    (tmp_path / "oracle" / PATIENTS_FILE).write_text(json.dumps([patient_digest("phantom", first)]))
    runner = CounterfactualStudyRunner(
        folders / "pipeline", folders / "data", oracle_path=tmp_path / "oracle", settings=SETTINGS
    )
    study = runner.run(("remove",), 1, options=QUICK)
    assert study.provenance["patients_shared_with_oracle"] == 1
    assert any("not independent" in note for note in study.notes)


def test_the_plain_gradient_is_confined_to_the_region(folders):
    settings = {**SETTINGS, "mask": "auto"}
    runner = CounterfactualStudyRunner(folders / "pipeline", folders / "data", settings=settings)
    chosen = runner.select("remove", 1)
    made = runner.explain(chosen, "remove")
    assert made.regions.shape == (len(made), 1, *made.images.shape[-2:]) and 0 < made.regions.mean() < 1
    change = np.abs(runner.controls(made, chosen, "remove")["plain_gradient"] - made.originals)
    assert change[np.broadcast_to(made.regions == 0, change.shape)].max() == 0 and change.max() > 0
    np.testing.assert_allclose(change.mean((1, 2, 3)), np.abs(made.images - made.originals).mean((1, 2, 3)), rtol=0.02)


def test_an_edit_within_a_region_is_told(folders):
    for mask, is_told in (("auto", True), (None, False)):
        settings = {**SETTINGS, "mask": mask}
        runner = CounterfactualStudyRunner(folders / "pipeline", folders / "data", settings=settings)
        assert (
            any("within a region only" in note for note in runner.run(("remove",), 1, options=QUICK).notes) is is_told
        )


def test_a_study_without_a_suitable_image_says_so(folders):
    runner = CounterfactualStudyRunner(folders / "pipeline", folders / "data", settings=SETTINGS)
    runner.labels[:] = 0
    with pytest.raises(ValueError, match="No image fits the direction 'remove'"):
        runner.run(("remove",), 1, options=QUICK)


def test_labels_must_agree(folders, tmp_path):
    info = DatasetInfo("other", "", "", "", "multi_label_classification", ["a", "b"], channels=1, image_size=16)
    OracleClassifier(build_oracle(info, 16, NetworkOptions([8, 8], [1, 1]))).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="oracle's labels must be the model's"):
        CounterfactualStudyRunner(folders / "pipeline", folders / "data", oracle_path=tmp_path)


def test_written_study_is_complete(study, tmp_path):
    report = write_study(study, tmp_path)
    results = json.loads((tmp_path / "counterfactuals.json").read_text())
    assert results["remove"]["own"] == study.directions["remove"].results["own"]
    provenance = results["provenance"]
    assert provenance["settings"]["guidance_scale"] == 20.0
    assert provenance["checkpoint"] != provenance["oracle"]
    assert len(provenance["image_ids"]["remove"]) == 9
    assert set(load_figures(tmp_path)) == {"panel-remove", "panel-add", "oracle-remove", "oracle-add"}
    assert Image.open(tmp_path / "panel-remove.png").width > 800
    text = report.read_text()
    assert "true counterfactual" in text and "Edited or real" in text and provenance["checkpoint"] in text
