"""`mediffusion reader-study`: sources of pairs, and the place of the key."""

import json

import numpy as np
import pytest
from support.components import random_pil, tiny_pipeline
from support.studies import prepare_world

from mediffusion_diffusers.commands.reader_study import COMMANDS, MakeOptions
from mediffusion_diffusers.pipelines import MediffusionCounterfactualPipeline
from mediffusion_diffusers.reader_study.methods import make_pairs
from mediffusion_diffusers.reader_study.pairs import Case


@pytest.fixture
def table(tmp_path):
    rows = ["case,label,direction,method,original,modified"]
    for number, picture in enumerate(random_pil(4)):
        picture.save(tmp_path / f"{number}.png")
        rows += [f"{number},Mass,{way},{who},{number}.png,0.png" for way in ("remove", "add") for who in ("a", "b")]
    (tmp_path / "pairs.csv").write_text("\n".join(rows))
    return tmp_path / "pairs.csv"


def test_a_table_makes_a_study_whose_key_lies_outside(table, tmp_path, capsys):
    COMMANDS["make"].main(["--table", str(table), "--output_dir", str(tmp_path / "study"), "--json"])
    said = json.loads(capsys.readouterr().out)
    assert said["num_pairs"] == 16 and said["methods"] == ["a", "b"]
    assert [path.name for path in (tmp_path / "study").glob("[!.]*")] == ["questionnaire.html"]
    assert json.loads((tmp_path / "study-key.json").read_text())["study"] == said["study"]


def test_a_dataset_is_read_and_every_method_answers(tmp_path, capsys):
    world = prepare_world(tmp_path)
    edit = ("--start", "inversion", "--num_inference_steps", "2", "--num_cases", "2", "--seed", "3")
    words = ("--model", str(world / "pipeline"), "--dataset_dir", str(world / "data"), *edit)
    methods = ("--methods", "ours", "plain_gradient", "null_edit")
    COMMANDS["make"].main([*words, *methods, "--output_dir", str(tmp_path / "study"), "--json", "--device", "cpu"])
    assert json.loads(capsys.readouterr().out)["num_pairs"] == 2 * 2 * 3


def test_the_null_edit_shows_nothing_and_the_gradient_is_as_large_as_ours():
    pipe = tiny_pipeline(MediffusionCounterfactualPipeline)
    picture, case = random_pil(1)[0], Case("a", "Mass", "remove")
    settings = {"start": "inversion", "num_inference_steps": 2}
    made = make_pairs(pipe, [case], {"a": picture}, ["ours", "null_edit", "plain_gradient"], settings)
    change = {one.method: np.subtract(one.modified, one.original, dtype=float) for one in made}
    assert not change["null_edit"].any() and change["ours"].any()
    sizes = {name: np.abs(one).mean() for name, one in change.items()}
    assert sizes["plain_gradient"] == pytest.approx(sizes["ours"], abs=1)  # grey levels


def test_sources_and_methods_are_checked(tmp_path):
    with pytest.raises(ValueError, match="one source of images, but got `table` and `dataset_dir`"):
        MakeOptions(output_dir=tmp_path, table=tmp_path, dataset_dir=tmp_path)
    with pytest.raises(ValueError, match="`methods` must be among ours, "):
        MakeOptions(output_dir=tmp_path, methods=["theirs"])
    with pytest.raises(ValueError, match="`methods` must be among"):
        MakeOptions(output_dir=tmp_path, methods=["ours", "ours"])
