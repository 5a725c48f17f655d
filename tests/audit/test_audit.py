"""The audit from end to end, its subgroups, and the command."""

import json

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from mediffusion_diffusers.audit.audit import run_audit, select_labels
from mediffusion_diffusers.audit.subgroups import subgroup_aurocs
from mediffusion_diffusers.commands.mediffusion import COMMANDS


def test_the_command_writes_page_and_figures(world, tmp_path, capsys):
    edit = ("--start", "inversion", "--num_inference_steps", "2", "--num_resamples", "20", "--device", "cpu")
    words = ("--model", world / "pipeline", "--dataset_dir", world / "data", "--output_dir", tmp_path, *edit)
    COMMANDS["audit"].main([*map(str, words), "--labels", "Effusion", "--num_images_per_label", "4"])
    assert {path.name for path in tmp_path.glob("[!.]*")} == {
        *("audit.json", "audit.html", "map-Effusion.png", "panel-Effusion.png")
    }
    results = json.loads((tmp_path / "audit.json").read_text())
    finding = results["findings"]["Effusion"]
    assert list(results["findings"]) == ["Effusion"] and 1 <= finding["num_images"] <= 4
    assert 0 <= finding["planted"]["share_named"] <= 1
    groups = {(group["key"], group["group"]): group["num_images"] for group in results["subgroups"]}
    assert groups["has_marker", "yes"] + groups["has_marker", "no"] == groups["all", "all"] == 24
    assert "planted markers named" in capsys.readouterr().out
    assert (world / "pipeline" / "evaluation" / "audit-phantom-test.json").is_file()  # for its card


def test_only_findings_that_are_asked_for_are_explained(runner):
    assert set(select_labels(runner, "remove", ["Effusion"], 3).targets) == {1}
    assert set(select_labels(runner, "add", ["Infiltration"], 3).targets) == {3}
    assert len(select_labels(runner, "add", ["Effusion"], 3)) == 0  # this model calls every image positive
    with pytest.raises(ValueError, match=r"`labels` must be among Cardiomegaly, .*, but got Fracture"):
        run_audit(runner, ["Fracture"], 3, 20)


def test_subgroups_are_scikit_learns_and_add_up():
    generator = np.random.default_rng(0)
    labels = (generator.random((60, 2)) < 0.4).astype(float)
    scores = generator.random((60, 2))
    scores[3] = np.nan  # an image that could not be read
    metadata = [{"sex": "FM"[row % 2], "age": float(row), "view": "PA"} for row in range(60)]
    metadata[5] = {"age": None}
    groups = subgroup_aurocs(labels, scores, metadata, list(map(str, range(60))), ["a", "b"], 20)
    rows = {
        ("sex", "F"): [row for row in range(60) if row % 2 == 0],
        ("age", "0 to 40"): [row for row in range(40) if row not in (3, 5)],
    }
    by_name = {(group["key"], group["group"]): group for group in groups}
    assert groups[0]["key"] == "all" and groups[0]["num_images"] == 59
    for name, of_group in rows.items():
        assert by_name[name]["num_images"] == len(of_group)
        for column, label in enumerate("ab"):
            expected = roc_auc_score(labels[of_group, column], scores[of_group, column])
            assert by_name[name]["auroc"][label] == pytest.approx(expected, abs=1e-9)
