"""The command as a user types it: help, completion, wrong words, and a few real runs on a tiny checkpoint."""

import csv
import inspect
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from support.components import random_pil, tiny_pipeline
from typer.testing import CliRunner

from mediffusion_diffusers import MediffusionCounterfactualPipeline, data
from mediffusion_diffusers.commands import doctor, mediffusion
from mediffusion_diffusers.commands.command import Command
from mediffusion_diffusers.data.phantom import prepare_phantoms
from mediffusion_diffusers.version import __version__


def every_command(commands=mediffusion.COMMANDS, before=()):
    for name, command in commands.items():
        if isinstance(command, Command):
            yield pytest.param((*before, name), command, id=" ".join((*before, name)))
        else:
            yield from every_command(command[1], (*before, name))


@pytest.fixture(scope="module")
def application():
    return mediffusion.build()


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a command line as the console script does; returns the exit code, the standard output and the error."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["mediffusion", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            mediffusion.main()
        return ended.value.code, *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A checkpoint that is called `model`, and pictures of persons."""
    folder = tmp_path_factory.mktemp("place")
    tiny_pipeline(MediffusionCounterfactualPipeline).save_pretrained(folder / "model")
    (folder / "scans").mkdir()
    for name, picture in zip(("JANE_DOE.png", "JOHN_DOE.png"), random_pil(2), strict=True):
        picture.save(folder / "scans" / name)
    (folder / "scans" / "notes.txt").write_text("nothing to see")
    return folder


@pytest.fixture
def here(place, monkeypatch, tmp_path):
    monkeypatch.chdir(place)
    return tmp_path / "out"


@pytest.mark.parametrize(("words", "command"), every_command())
def test_help_shows_every_option(words, command, application):
    result = CliRunner().invoke(application, [*words, "--help"])
    assert result.exit_code == 0, result.output
    text, letters = " ".join(result.output.split()), re.sub(r"[\s-]", "", result.output)
    for parameter in command.parser.parameters:
        assert parameter.flag in text or parameter.metadata.get("positional"), parameter.name
        assert re.sub(r"[\s-]", "", parameter.help) in letters, parameter.name  # lines break at hyphens too
    assert command.parser.description.split("\n")[0].split()[0] in text


@pytest.mark.parametrize(("words", "command"), every_command())
def test_what_a_command_finds_out_can_be_told_as_json(words, command):
    """But training, which ends in a checkpoint, and what people look at."""
    flags = {parameter.flag for parameter in command.parser.parameters}
    assert ("--json" in flags) != (words[0] in ("train", "app", "demo"))


def test_help_and_completion_load_nothing_heavy():
    code = (
        "import sys; from mediffusion_diffusers.commands import mediffusion; mediffusion.build();"
        "print([name for name in ('torch', 'diffusers', 'transformers', 'numpy', 'datasets') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("mediffusion train ", {"autoencoder", "joint", "oracle"}),
        ("mediffusion explain --target-p", {"--target-probability"}),
        ("mediffusion explain --away Mass --start ", {"inversion", "noise"}),
        ("mediffusion train joint --preset phantom", {"phantom", "phantom-demo", "phantom-short"}),
    ],
)
def test_completion(typed, offered):
    words = typed.split(" ")
    asked = {"_MEDIFFUSION_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(len(words) - 1)}
    line = [sys.executable, "-m", "mediffusion_diffusers"]
    done = subprocess.run(line, env={**os.environ, **asked}, capture_output=True, text=True)
    assert offered <= set(done.stdout.split()), done
    assert all(answer.startswith(words[-1]) for answer in done.stdout.split())


def test_the_version(run):
    assert run("--version") == (0, f"{__version__}\n", "")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("explian",), "mediffusion: No such command 'explian'."),
        (("classify",), "mediffusion classify: Missing argument"),
        (("classify", "a.png", "--thresholds"), "mediffusion classify: No such option: --thresholds"),
        (("train", "joint", "--seed", "x"), "mediffusion train joint: Invalid value for '--seed': "),
        (("evaluate", "all"), "mediffusion evaluate: No such command 'all'."),
    ],
)
def test_a_wrong_command_line_is_one_line_and_code_2(words, message, run):
    code, out, err = run(*words)
    assert (code, out) == (2, "") and err.startswith(message) and err.count("\n") == 1, err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("explain", "a.png", "--away", "Mass", "--target_probability", "2"), "`target_probability` must be"),
        (("explain", "a.png"), "Give either `away`"),
        (("explain", "--away", "Mass"), "Name the `images`"),
        (("explain", "a.png", "--away", "Mass", "--dicom_identity"), "name a folder for them"),
        (("prepare", "phantom", "--output_dir", "out", "--num_train", "1000000000000"), "`num_train` must be"),
        (("classify", "a.png", "--output", "a.txt"), "`output` must end with .csv or .json"),
        (("generate", "--guidance_scale", "-1"), "`guidance_scale` must be"),
        (("app", "--server_port", "0"), "`server_port` must be"),
        (("train", "joint", "--preset", "huge"), "`preset` must be one of"),
    ],
)
def test_a_wrong_value_is_one_line_and_code_1(words, message, run, here):
    code, out, err = run(*words)
    assert (code, out) == (1, "") and message in err and err.count("\n") == 1, err
    assert not here.exists()


def test_classify_prints_a_table(run, here):
    code, out, err = run("classify", "scans", "--model", "model", "--device", "cpu")
    rows = list(csv.DictReader(out.splitlines()))
    assert (code, [row["image"] for row in rows[1:]]) == (0, ["scans/JANE_DOE.png", "scans/JOHN_DOE.png"]), err
    for name in list(rows[0])[2:]:
        assert float(rows[0][name]) == 0.5  # the threshold
        for row in rows[1:]:
            assert (name in row["labels"].split("|")) == (float(row[name]) >= 0.5)


def test_classify_writes_and_names_what_it_cannot_read(run, here):
    here.mkdir()
    code, out, err = run("classify", "scans/*", "--model", "model", "--output", here / "p.json", "--json")
    result = json.loads(out)
    assert code == 1 and re.search(r"^Not classified: .*notes\.txt", err, flags=re.M)
    assert result == json.loads((here / "p.json").read_text())
    assert len(result["images"]) == 2 and set(result["images"][0]["probabilities"]) == set(result["thresholds"])


def test_generate_draws_each_scale_and_all_side_by_side(run, here):
    words = ("generate", "--model", "model", "--towards", "Mass", "--guidance_scale", "0", "5", "--num_images", "3")
    code, out, _ = run(*words, "--num_inference_steps", "2", "--output_dir", here, "--json")
    result = json.loads(out)
    assert code == 0 and len(result["images"]) == 6
    tile = Image.open(result["images"][0]["image"])
    assert Image.open(result["grid"]).size == (3 * tile.width + 2, 2 * tile.height + 1)
    again = run(*words, "--num_inference_steps", "2", "--output_dir", here / "again", "--json")[1]
    for first, second in zip(result["images"], json.loads(again)["images"], strict=True):
        np.testing.assert_array_equal(Image.open(first["image"]), Image.open(second["image"]))


@pytest.mark.usefixtures("without_animations")
@pytest.mark.parametrize("extra", [(), ("--with_names",)])
def test_explain_names_nobody_unless_asked(extra, run, here):
    words = ("explain", "scans/JOHN*.png", "--model", "model", "--away", "Mass", "--num-inference-steps", "2", *extra)
    code, out, err = run(*words, "--output_dir", here, "--dicom_out", here / "dicom", "--json")
    assert code == 0, err
    (row,) = json.loads(out)["explanations"]
    name = "JOHN_DOE.png" if extra else "Image 1"
    assert (row["label"], row["action"], row["name"]) == ("Mass", "removed", name)
    (written,) = csv.DictReader((here / "explanations.csv").read_text().splitlines())
    assert float(written["probability_after"]) == row["probability_after"]
    files = {path.name for path in (here / "dicom").iterdir()}
    assert files == {"explanation-1-panel.dcm", "explanation-1-report.dcm"}
    named = [path.name for path in here.rglob("*") if path.is_file() and b"JOHN" in path.read_bytes()]
    assert {"explanations.html", "explanations.csv"} <= set(named) if extra else named == []


def test_the_example_is_there_without_a_model_and_is_called_so(run, here, place):
    code, _, err = run("classify", "scans/JANE_DOE.png", "--json")
    assert code == 0 and "the example's is used. It knows drawn chests alone" in err


def test_doctor_says_all_is_well_and_never_a_token(run, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_" + "a" * 34)
    code, out, err = run("doctor", "--json")
    found = {finding["name"]: finding for finding in json.loads(out)}
    assert {"python", "torch", "torchvision", "pipelines", "device", "memory", "disk"} <= found.keys()
    assert "a" * 34 not in out + err
    assert code == any(finding["state"] == "fail" for finding in found.values())


def test_doctor_names_what_is_broken_and_what_to_do(run, monkeypatch):
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "safetensors" else "1.0")
    monkeypatch.setattr(doctor, "_memory", lambda: 1 / 0)
    code, out, _ = run("doctor")
    assert code == 1
    assert "fail  safetensors: not installed\n      -> Install the package anew" in out
    assert "ZeroDivisionError" in out


@pytest.mark.parametrize(
    ("command", "function"),
    [
        ("chestxray14", data.convert_chestxray14),
        ("isic2019", data.convert_isic2019),
        ("medmnist", data.convert_medmnist),
        ("dicom", data.convert_dicom),
        ("phantom", prepare_phantoms),
        ("split", data.draw_labelled_split),
    ],
)
def test_defaults_of_prepare_are_those_of_its_functions(command, function):
    parser = mediffusion.COMMANDS["prepare"][1][command].parser
    named = {parameter.name: parameter.default for parameter in parser.parameters}
    library = {
        name: parameter.default
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.default is not inspect.Parameter.empty
    }
    both = {name for name in named.keys() & library.keys() if named[name] is not None}
    assert both and {name: named[name] for name in both} == {name: library[name] for name in both}


@pytest.mark.parametrize(
    "line",
    [
        "explain scans --model model --away Cardiomegly --output_dir {out} --dicom_out {out}/dicom",
        "generate --model model --towards Cardiomegly --output_dir {out}",
        "classify missing.png --model model --output {out}/table.csv",
        "explain-dataset --dataset scans --model model --away Cardiomegly --output_dir {out} --device cpu",
        "evaluate classification --model model --dataset_dir missing --output_dir {out}",
        "evaluate counterfactuals --model model --dataset_dir missing --output_dir {out}",
        "evaluate generation --model model --dataset_dir missing --oracle_path missing --output_dir {out}",
        "audit --model model --dataset_dir missing --output_dir {out}",
        "reproduce --run missing --output_dir {out}",
        "reader-study make --table missing.csv --output_dir {out} --key_file {out}-keys/key.json",
        "reader-study plot missing.csv --output_dir {out}",
        "prepare imagefolder --source_dir missing --output_dir {out}",
        "prepare split --dataset_dir missing --share 10 --output {out}/split.json",
        "train joint --preset phantom --dataset_dir missing --output_dir {out}",
        "train oracle --dataset_dir missing --output_dir {out}",
    ],
    ids=lambda line: " ".join(line.split()[:2]),
)
def test_a_wrong_argument_leaves_no_empty_folder(line, run, here):
    code, _, error = run(*line.format(out=here / "new" / "results").split())
    assert code == 1 and ("Cardiomegly" if "Cardiomegly" in line else "missing") in error
    assert not here.exists()
