"""What a user can correct ends a script with one sentence, not with a traceback."""

import importlib.util
import sys
from pathlib import Path

import pytest


SCRIPTS = Path(__file__).parents[1] / "training"


@pytest.mark.parametrize(
    "script, arguments",
    [
        ("evaluate_classification", ("--pretrained_model_name_or_path", "/nowhere", "--dataset_dir", "/nowhere")),
        ("evaluate_counterfactuals", ("--pretrained_model_name_or_path", "/nowhere", "--dataset_dir", "/nowhere")),
        ("train_oracle", ("--dataset_dir", "/nowhere")),
    ],
)
def test_a_missing_folder_is_said_in_one_sentence(script, arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [script, *arguments, "--output_dir", "out"])
    spec = importlib.util.spec_from_file_location(script, SCRIPTS / f"{script}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with pytest.raises(SystemExit, match=f"{script}.py: .*nowhere"):
        module.main()
