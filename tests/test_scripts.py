"""The scripts of `training/`: a few lines that call a command, and what a user can correct is one sentence."""

import runpy
import sys
from pathlib import Path

import pytest


SCRIPTS = Path(__file__).parents[1] / "training"
MODEL = ("--pretrained_model_name_or_path", "nowhere")
COMMANDS = {
    "calibrate_guidance": "calibrate",
    "evaluate_classification": "evaluate classification",
    "evaluate_counterfactuals": "evaluate counterfactuals",
    "evaluate_generation": "evaluate generation",
    "explain_dataset": "explain-dataset",
    "explain_images": "explain",
    "prepare_dataset": "prepare",
    "run_demo": "demo",
    "train_autoencoder": "train autoencoder",
    "train_joint": "train joint",
    "train_oracle": "train oracle",
}
COMMAND_LINES = {
    "calibrate_guidance": (*MODEL, "--dataset_dir", "nowhere"),
    "evaluate_classification": (*MODEL, "--dataset_dir", "nowhere", "--output_dir", "out"),
    "evaluate_counterfactuals": (*MODEL, "--dataset_dir", "nowhere", "--output_dir", "out"),
    "evaluate_generation": (
        *(*MODEL, "--dataset_dir", "nowhere", "--output_dir", "out"),
        *("--oracle_path", "nowhere"),
    ),
    "explain_dataset": ("--pretrained_model_name_or_path", "./nowhere", "--dataset", "nowhere", "--output_dir", "out"),
    "explain_images": (*MODEL, "nowhere.png", "--away", "Mass", "--output_dir", "nowhere.txt"),
    "run_demo": ("--output_dir", "nowhere.txt"),
    "train_autoencoder": ("--dataset_dir", "nowhere", "--output_dir", "out"),
    "train_joint": ("--dataset_dir", "nowhere", "--output_dir", "out"),
    "train_oracle": ("--dataset_dir", "nowhere", "--output_dir", "out"),
}


@pytest.mark.parametrize("script", sorted(path.stem for path in SCRIPTS.glob("*.py")))
def test_every_script_helps(script, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [f"{script}.py", "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(SCRIPTS / f"{script}.py"), run_name="__main__")
    assert ended.value.code == 0
    assert f"Usage: mediffusion {COMMANDS[script]} " in capsys.readouterr().out


@pytest.mark.parametrize("script", COMMAND_LINES)
def test_what_is_missing_is_said_in_one_sentence(script, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nowhere.txt").write_text("")
    monkeypatch.setattr(sys, "argv", [f"{script}.py", *COMMAND_LINES[script]])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(SCRIPTS / f"{script}.py"), run_name="__main__")
    said = capsys.readouterr().err
    sentence = f"{ended.value.code}\n" if isinstance(ended.value.code, str) else said
    assert ended.value.code not in (0, None) and "Traceback" not in said
    assert sentence.startswith(f"mediffusion {COMMANDS[script]}: ") and sentence.count("\n") == 1, sentence
