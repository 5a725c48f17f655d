"""Counterfactuals as training data: who says what they show, and what is written."""

import json
from dataclasses import replace

import numpy as np
import pytest

from mediffusion_diffusers.audit.audit import planted_box, select_labels
from mediffusion_diffusers.audit.lessons import make_lessons, questions_table
from mediffusion_diffusers.audit.teachers import OracleTeacher, RegionTeacher, TableTeacher, TruthTeacher
from mediffusion_diffusers.commands.prepare_counterfactuals import CounterfactualsOptions
from mediffusion_diffusers.commands.prepare_dataset import COMMANDS
from mediffusion_diffusers.data import LabelledSplit
from mediffusion_diffusers.data.schema import label_matrix, load_info, load_prepared


@pytest.fixture(params=["remove", "add"])
def made(request, runner):
    chosen = select_labels(runner, request.param, None, 2)
    return runner.explain(chosen, request.param), chosen


def answers(teacher, made, images):
    return teacher.answer(replace(made[0], images=images), made[1], [str(row) for row in made[1].rows])


def test_the_truth_knows_the_whole_way_and_none_of_it(runner, made):
    teacher, has_finding = TruthTeacher(runner), float(made[0].direction == "remove")
    truth, originals = runner.truth(made[1]), made[0].originals
    assert (answers(teacher, made, originals) == has_finding).all()
    assert (answers(teacher, made, truth) == 1 - has_finding).all()
    assert (answers(teacher, made, 0.6 * originals + 0.4 * truth) == has_finding).all()


def test_the_truth_does_not_count_what_was_changed_elsewhere(runner, made):
    """Erasing everything that the finding does not touch, a marker say, leaves the finding as it was."""
    truth, originals = runner.truth(made[1]), made[0].originals
    erased = np.where(np.abs(truth - originals) < 1e-6, 0.5, originals)
    assert (answers(TruthTeacher(runner), made, erased) == float(made[0].direction == "remove")).all()


def test_a_named_region_answers_for_changes_within_it_alone(made):
    originals = made[0].originals
    inside, outside = originals.copy(), originals.copy()
    inside[..., :4, :4] += 0.2
    outside[..., 8:, 8:] += 0.2
    teacher = RegionTeacher([{"x": 0.0, "y": 0.0, "width": 0.25, "height": 0.25}])
    assert (answers(teacher, made, inside) == float(made[0].direction == "remove")).all()
    assert np.isnan(answers(teacher, made, outside)).all() and np.isnan(answers(teacher, made, originals)).all()


def test_the_oracle_answers_by_its_thresholds(made):
    found = answers(OracleTeacher(), made, made[0].images)
    scores = made[0].oracle.after[np.arange(len(made[0])), made[0].targets]
    assert (found == (scores >= 0.5)).all()


def test_a_table_answers_what_people_wrote(made, tmp_path):
    first = str(made[1].rows[0])
    (tmp_path / "t.csv").write_text(f"image_id,label,present\n{first},Mass,1\nsomebody,Mass,0\n")
    found = answers(TableTeacher(tmp_path / "t.csv"), made, made[0].images)
    named = np.array([str(row) == first for row in made[1].rows])
    assert (found[named] == 1).all() and np.isnan(found[~named]).all()
    (tmp_path / "t.csv").write_text(f"image_id,present\n{first},perhaps\n")
    with pytest.raises(ValueError, match="line 2: `present` must be 1, 0 or empty, but got 'perhaps'"):
        answers(TableTeacher(tmp_path / "t.csv"), made, made[0].images)
    (tmp_path / "t.csv").write_text("image_id,present\nsomebody,1\n")
    with pytest.raises(ValueError, match="names none of the counterfactuals"):
        answers(TableTeacher(tmp_path / "t.csv"), made, made[0].images)


def test_teachers_without_what_they_need_say_so_before_the_work(runner, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"`region` is no place in a picture\. .*finite"):
        RegionTeacher([{"x": float("nan"), "y": 0.0, "width": 0.25, "height": 0.25}])
    with pytest.raises(ValueError, match=r"`region` is no place in a picture\. .*covers no pixel"):
        RegionTeacher([{"x": 1.5, "y": 0.0, "width": 0.25, "height": 0.25}])
    with pytest.raises(ValueError, match=r"missing\.csv is needed, but does not exist"):
        TableTeacher(tmp_path / "missing.csv")
    photographs = [{**runner.references.held_out.dataset[0], "metadata": ""}]
    monkeypatch.setattr(runner.references.held_out, "dataset", photographs)
    with pytest.raises(ValueError, match="`teacher` truth needs phantoms"):
        TruthTeacher(runner)


def test_the_dataset_is_the_old_one_and_the_lessons(world, tmp_path, capsys):
    edit = ("--start", "inversion", "--num_inference_steps", "2", "--num_images_per_label", "2", "--device", "cpu")
    words = ("--model", world / "pipeline", "--dataset_dir", world / "data", "--output_dir", tmp_path / "out", *edit)
    COMMANDS["counterfactuals"].main([*map(str, words), "--teacher", "truth", "--labels", "Effusion", "--json"])
    counts = json.loads(capsys.readouterr().out)["counterfactuals"]
    num_lessons = counts["present"] + counts["absent"]
    before, after = load_prepared(world / "data", "train"), load_prepared(tmp_path / "out", "train")
    assert num_lessons > 0 == counts["unanswered"] and len(after) == len(before) + num_lessons
    labels = label_matrix(after, load_info(tmp_path / "out"))
    place = {name: row for row, name in enumerate(before["image_id"])}
    for row in range(len(after)):
        one = after[row]
        if row < len(before):
            assert one == before[row]
            continue
        parent = json.loads(one["metadata"])["counterfactual_of"]
        assert one["image_id"] in (f"{parent}-without-Effusion", f"{parent}-with-Effusion")
        assert one["patient_id"] == before[place[parent]]["patient_id"]
        others = [0, 2, 3, 4]
        assert (labels[row, others] == labels[place[parent], others]).all()
    pairs = LabelledSplit.load(tmp_path / "out" / "counterfactuals-split.json")
    parents = {json.loads(text)["counterfactual_of"] for text in after["metadata"][len(before) :]}
    assert set(pairs.image_ids) == parents | set(after["image_id"][len(before) :])
    for split in ("validation", "test"):
        assert load_prepared(world / "data", split)[:] == load_prepared(tmp_path / "out", split)[:]


def test_without_a_teacher_there_are_pictures_to_look_at_and_no_lesson(world, tmp_path):
    edit = ("--start", "inversion", "--num_inference_steps", "2", "--num_images_per_label", "1", "--device", "cpu")
    words = ("--model", world / "pipeline", "--dataset_dir", world / "data", "--output_dir", tmp_path / "out", *edit)
    COMMANDS["counterfactuals"].main(list(map(str, words)))
    table = (tmp_path / "out" / "counterfactuals.csv").read_text().splitlines()
    assert len(load_prepared(tmp_path / "out", "train")) == len(load_prepared(world / "data", "train"))
    assert len(list((tmp_path / "out" / "counterfactuals").glob("*.png"))) == len(table) - 1 > 0
    assert all(line.endswith(",") for line in table[1:])


def test_a_teacher_without_what_it_needs_is_refused(tmp_path):
    given = {"pretrained_model_name_or_path": "model", "dataset_dir": tmp_path, "output_dir": tmp_path}
    for teacher, needs in (("oracle", "oracle_path"), ("region", "region"), ("table", "answers")):
        with pytest.raises(ValueError, match=f"needs `{needs}`"):
            CounterfactualsOptions(**given, teacher=teacher)
    with pytest.raises(ValueError, match="must be x, y, width and height, but got 3 numbers"):
        CounterfactualsOptions(**given, teacher="region", region=[0, 0, 1])


def test_an_oracle_that_is_not_there_cannot_teach(runner):
    runner.oracle = None
    with pytest.raises(ValueError, match="needs an `oracle_path`"):
        make_lessons(runner, OracleTeacher(), ["Effusion"], ["remove"], 1)


def test_questions_are_read_back_whatever_the_names(tmp_path):
    questions = [('a,"b"-without-Mass, left', "Mass, left", 1.0), ("c", "Edema", 0.0), ("d", "Edema", float("nan"))]
    (tmp_path / "counterfactuals.csv").write_text(questions_table(questions))
    names = [name for name, _, _ in questions]
    answers = TableTeacher(tmp_path / "counterfactuals.csv").answer(None, None, names)
    np.testing.assert_array_equal(answers, [1, 0, np.nan])


def test_only_a_box_is_a_planted_marker():
    box = {"x": 0.1, "y": 0.1, "width": 0.1, "height": 0.1}
    assert planted_box({"marker": box}) == box
    assert all(planted_box({"marker": other}) is None for other in ("left", 3, {"x": 1}, None)) and not planted_box({})
