"""What the commands that measure a checkpoint say, write and refuse."""

import errno
import json
import os
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from support.studies import prepare_world, save_oracle, save_pipeline, write_split

from mediffusion_diffusers.commands import (
    calibrate_guidance,
    evaluate_classification,
    evaluate_counterfactuals,
    explain_dataset,
    explain_images,
)
from mediffusion_diffusers.commands.boundary import run_command
from mediffusion_diffusers.data.phantom import PHANTOM_LABELS
from mediffusion_diffusers.data.pictures import encode_png
from mediffusion_diffusers.data.schema import DatasetInfo, parquet_files
from mediffusion_diffusers.evaluation.counterfactual_study import CounterfactualStudyRunner
from mediffusion_diffusers.options import range_of


COMMANDS = {
    command.__name__.rpartition(".")[2]: command
    for command in (
        calibrate_guidance,
        evaluate_classification,
        evaluate_counterfactuals,
        explain_dataset,
        explain_images,
    )
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return prepare_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def line_of(world, tmp_path):
    """A sound command line of a script, with some options replaced, or left out by `None`."""

    def make(name, **changes):
        options = {"pretrained_model_name_or_path": world / "pipeline", "output_dir": tmp_path / "out"}
        if name == "explain_dataset":
            options |= {"dataset": world / "data", "split": "test"}
        else:
            options |= {"dataset_dir": world / "data"}
        if name == "calibrate_guidance":
            del options["output_dir"]
            changes = {"dry_run": "true", **changes}
        if name.startswith("explain"):
            options |= {"away": PHANTOM_LABELS[0]}
        if name != "evaluate_classification":
            options |= {"num_inference_steps": 2}
        if name == "evaluate_counterfactuals":
            options |= {"num_true_ways": 2, "region_controls": "false"}
        options |= {"device": "cpu", **changes}
        line = []
        for key, value in options.items():
            values = value if isinstance(value, list) else [value]
            if value is not None:
                line += [f"--{key}={values[0]}"] if len(values) == 1 else [f"--{key}", *map(str, values)]
        return line

    return make


@pytest.fixture
def refused(capsys):
    """Run a command line that cannot work; returns what it said, one line and no traceback."""

    def run(name, line):
        with pytest.raises(SystemExit) as ended:
            run_command(lambda: COMMANDS[name].main(line), name)
        said = capsys.readouterr()
        assert ended.value.code in (1, 2), said
        last = said.err.strip().splitlines()[-1]
        assert last.startswith(f"{name}: ")
        assert "Traceback" not in said.err and "fault of the software" not in said.err, last
        return last

    return run


def numeric_options():
    """Every option of every script with numbers outside its range."""
    for name, command in COMMANDS.items():
        for options in (command.Options, getattr(command, "EditOptions", command.Options)):
            for option in options.__dataclass_fields__:
                allowed = range_of(options, option)
                if allowed is not None:
                    for value in (float("nan"), float("inf"), -1, 0, 10**30):
                        if not allowed.holds(value):
                            yield pytest.param(name, option, value, id=f"{name}-{option}-{value}")


@pytest.mark.parametrize(("name", "option", "value"), numeric_options())
def test_numbers_outside_a_range_are_refused_by_name(name, option, value, line_of, refused, tmp_path):
    assert option in refused(name, line_of(name, **{option: value})).replace("-", "_")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"device": "abacus"}, "`device`"),
        ({"dtype": "int8"}, "'--dtype': 'int8' is not one of 'float32', 'bfloat16', 'float16'."),
        ({"pretrained_model_name_or_path": "nowhere"}, "nowhere"),
        ({"dataset_dir": None, "dataset": None}, "dataset"),
        ({"nonsense": 1}, "nonsense"),
    ],
)
def test_bad_arguments(name, changes, message, line_of, refused, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert message in refused(name, line_of(name, **changes))


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "calibrate_guidance"])
def test_an_output_folder_that_cannot_be_is_refused_before_the_work(name, line_of, refused, tmp_path):
    (tmp_path / "file").write_text("")
    assert "is a file" in refused(name, line_of(name, output_dir=tmp_path / "file"))
    assert "`output_dir` must be a folder" in refused(name, line_of(name, output_dir="/proc/out"))


@pytest.mark.parametrize("name", ["evaluate_classification", "evaluate_counterfactuals", "calibrate_guidance"])
def test_data_that_tells_nothing_is_refused_before_the_work(name, world, line_of, refused, tmp_path, monkeypatch):
    monkeypatch.setattr(CounterfactualStudyRunner, "run", None)
    picture = encode_png(Image.new("L", (16, 16)))
    split = {"split": "validation"} if name == "calibrate_guidance" else {}
    nothing_known = write_split(tmp_path / "unlabelled", [picture], [[np.nan] * 5], split.get("split", "test"))
    assert "has no labelled image" in refused(name, line_of(name, dataset_dir=nothing_known))
    others = write_split(tmp_path / "others", [picture], [[1, 0]], label_names=["Mass", "Nodule"])
    assert "labels must be the model's" in refused(name, line_of(name, dataset_dir=others, **split))
    shutil.copytree(world / "data", tmp_path / "empty")
    for file in parquet_files(tmp_path / "empty", split.get("split", "test")):
        pq.write_table(pq.read_table(file).slice(0, 0), file)
    assert "0 rows of" in refused(name, line_of(name, dataset_dir=tmp_path / "empty"))
    assert "`split` must be one of" in refused(name, line_of(name, split="holdout"))


@pytest.mark.parametrize("name", COMMANDS)
def test_damaged_pipelines(name, world, line_of, refused, tmp_path):
    for damaged in ("model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors"):
        folder = tmp_path / damaged.replace("/", "-")
        shutil.copytree(world / "pipeline", folder)
        (folder / damaged).write_bytes((folder / damaged).read_bytes()[:40])
        refused(name, line_of(name, pretrained_model_name_or_path=folder))


@pytest.mark.parametrize(
    "damaged",
    [
        *("data/dataset_info.json", "data/data/test-00000-of-00001.parquet", "pipeline/training_config.json"),
        *("oracle/config.json", "oracle/model.safetensors", "oracle/training_patients.json"),
    ],
)
@pytest.mark.parametrize("content", [b"", b"[1, [", b"[[1]]", b"7", b"\xff\xfe\x00"])
def test_damaged_files_are_named_before_the_work(damaged, content, world, line_of, refused, tmp_path, monkeypatch):
    monkeypatch.setattr(CounterfactualStudyRunner, "run", lambda *_: pytest.fail("The work began."))
    shutil.copytree(world, tmp_path / "world")
    (tmp_path / "world" / damaged).write_bytes(content)
    places = {"pretrained_model_name_or_path": "pipeline", "dataset_dir": "data", "oracle_path": "oracle"}
    places = {name: tmp_path / "world" / folder for name, folder in places.items()}
    said = refused("evaluate_counterfactuals", line_of("evaluate_counterfactuals", **places))
    assert damaged.split("/")[0] in said or damaged.rsplit("/")[-1] in said


def test_oracles_that_do_not_fit(line_of, refused, tmp_path):
    info = DatasetInfo("other", "", "", "", "multi_label_classification", ["a", "b"], channels=1, image_size=16)
    save_oracle(tmp_path / "labels", info)
    assert "labels must be the model's" in refused(
        "evaluate_counterfactuals", line_of("evaluate_counterfactuals", oracle_path=tmp_path / "labels")
    )
    names = list(PHANTOM_LABELS)
    info = DatasetInfo("colour", "", "", "", "multi_label_classification", names, channels=3, image_size=16)
    save_oracle(tmp_path / "colour", info)
    assert "of 1 channels, but takes 3" in refused(
        "evaluate_counterfactuals", line_of("evaluate_counterfactuals", oracle_path=tmp_path / "colour")
    )
    for path in (tmp_path / "nowhere", tmp_path):
        assert "`oracle_path`" in refused(
            "evaluate_counterfactuals", line_of("evaluate_counterfactuals", oracle_path=path)
        )


def test_classification(line_of, tmp_path, capsys, written):
    evaluate_classification.main(line_of("evaluate_classification", num_resamples=20))
    # What says that all is done comes last, after pictures and what the model's card is filled with.
    names = ["classification-phantom-test.json", "reliability.png", "decision-curves.png", "classification.json"]
    assert [path.name for path in written[-4:]] == names
    result = json.loads(written[-1].read_text())
    assert result["num_images"] == result["num_patients"] == 40
    assert result["macro_auroc"] == result["macro_auroc_interval"]["estimate"]
    assert all(label["threshold"] is not None for label in result["per_label"].values())
    assert "40 images of 40 patients of phantom (test)" in capsys.readouterr().out


def test_a_split_with_one_class_has_no_auroc_and_says_so(line_of, tmp_path, capsys):
    picture = encode_png(Image.new("L", (16, 16)))
    data = write_split(tmp_path / "data", [picture] * 3, [[1, 1, 0, 0, 0]] * 3, patients=["a", "a", "b"])
    evaluate_classification.main(line_of("evaluate_classification", dataset_dir=data))
    result = json.loads((tmp_path / "out/classification.json").read_text())
    assert result["macro_auroc"] is None and result["macro_auroc_interval"]["low"] is None
    assert (result["num_images"], result["num_patients"]) == (3, 2) and len(result["left_out"]) == 5
    assert result["per_label"][PHANTOM_LABELS[0]]["brier"] is not None
    said = capsys.readouterr().out
    assert "there is no AUROC" in said and "left out: no negative in this split" in said


def test_images_that_cannot_be_read_are_named_and_left_out(line_of, tmp_path, capsys):
    good = encode_png(Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16), dtype=np.uint8)))
    pictures = [good, good[:60], None, good, good]
    labels = [[1, 0, 0, 0, 0], [1, 0, 0, 0, 0], [0, 1, 0, 0, 0], [0, 1, 0, 0, 0], [0, 0, 1, 0, 0]]
    data = write_split(tmp_path / "data", pictures, labels)
    evaluate_classification.main(line_of("evaluate_classification", dataset_dir=data))
    result = json.loads((tmp_path / "out/classification.json").read_text())
    assert result["num_images"] == 3
    assert any("2 images of 'test' are left out" in note and "corrupt" in note for note in result["notes"])
    assert result["provenance"]["image_ids"] == {"unreadable": ["image-1", "image-2"]}
    evaluate_counterfactuals.main(
        line_of("evaluate_counterfactuals", dataset_dir=data, direction="remove", output_dir=tmp_path / "study")
    )
    study = json.loads((tmp_path / "study/counterfactuals.json").read_text())
    assert study["provenance"]["image_ids"]["remove"] == ["image-0", "image-3", "image-4"]
    assert any("2 images of 'test' are left out" in note for note in study["notes"])
    capsys.readouterr()


def test_nothing_that_can_be_read(line_of, refused, tmp_path):
    data = write_split(tmp_path / "data", [b"no picture"], [[1, 0, 0, 0, 0]])
    assert "cannot be read" in refused("evaluate_classification", line_of("evaluate_classification", dataset_dir=data))
    said = refused("evaluate_counterfactuals", line_of("evaluate_counterfactuals", dataset_dir=data))
    assert "No image of split 'test' can be explained" in said


def test_no_image_fits(world, line_of, refused, tmp_path):
    save_pipeline(tmp_path / "blind", label_thresholds=[1 - 1e-6] * 5)
    changes = {"pretrained_model_name_or_path": tmp_path / "blind", "direction": "remove"}
    said = refused("evaluate_counterfactuals", line_of("evaluate_counterfactuals", **changes))
    assert "No image fits the direction 'remove'" in said
    said = refused("calibrate_guidance", line_of("calibrate_guidance", **changes))
    assert "No image of split 'validation' can be explained" in said
    assert not list((tmp_path / "out").glob("*.json"))


def test_a_study_states_its_units_and_is_recorded_before_it_says_that_it_is_done(
    line_of, world, tmp_path, capsys, written
):
    evaluate_counterfactuals.main(
        line_of("evaluate_counterfactuals", oracle_path=world / "oracle", num_images_per_label=3)
    )
    assert [path.parent.name for path in written].count("evaluation") == 1
    assert written[-1] == tmp_path / "out/counterfactuals.json"
    study = json.loads(written[-1].read_text())
    for direction in ("remove", "add"):
        images = study["provenance"]["image_ids"][direction]
        part = study[direction]
        assert len(images) == part["num_images"] > 0 and len(set(images)) == part["num_patients"]
        assert direction == "remove" or len(set(images)) == len(images)
        low, high = part["oracle"]["diff_interval_95"]
        assert low < part["oracle"]["diff"] < high
    assert " patients, own flips " in capsys.readouterr().out


@pytest.mark.usefixtures("without_animations")
@pytest.mark.parametrize("name", ["evaluate_classification", "evaluate_counterfactuals", "explain_images"])
def test_results_that_cannot_be_written_are_kept_elsewhere(name, line_of, refused, tmp_path, monkeypatch):
    def replace(source, target, replace=os.replace):
        if str(target).startswith(str(tmp_path / "out")):
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        replace(source, target)

    monkeypatch.setattr("mediffusion_diffusers.atomic_files.os.replace", replace)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    few = {
        "evaluate_classification": {"num_resamples": 2},
        "evaluate_counterfactuals": {"direction": "add", "num_images_per_label": 1},
        "explain_images": {"num_images": 1},
    }
    said = refused(name, line_of(name, **few[name]))
    kept = next(path for path in tmp_path.iterdir() if path.name.startswith("mediffusion-results-"))
    assert "No space left on device" in said and f"They are kept in '{kept}'" in said
    assert {path.suffix for path in kept.iterdir()} & {".json", ".html"}


def test_calibration_is_stored_once_it_is_whole(world, line_of, tmp_path, capsys):
    folder = tmp_path / "pipeline"
    shutil.copytree(world / "pipeline", folder)
    line = line_of(
        "calibrate_guidance",
        pretrained_model_name_or_path=folder,
        strengths=0.2,
        guidance_scale=5,
        max_trials=2,
        max_l1=1,
    )
    calibrate_guidance.main([*line, "--num_images_per_label", "1"])
    assert not (folder / "guidance_calibration.json").exists()
    calibrate_guidance.main([*line, "--num_images_per_label", "1", "--no-dry_run", "--hold", "0.001"])
    chosen = json.loads((folder / "guidance_calibration.json").read_text())["chosen"]
    stored = json.loads((folder / "unet/config.json").read_text())["guidance_defaults"]
    assert stored["num_inference_steps"] == 2 and "hold" not in stored
    assert [one["direction"] for one in chosen] == ["remove", "add"]
    assert [stored["guidance_scale"][name] for name in ("away", "towards")] == [
        one["guidance_scale"] for one in chosen
    ]
    assert {one["mask"] for one in chosen} == {stored["mask"]}
    said = capsys.readouterr()
    assert said.out.count("<- chosen") == 4 and "cannot store hold" in said.err


def test_calibration_asks_for_another_split_and_known_masks(line_of, refused):
    assert "must not be chosen on the test split" in refused(
        "calibrate_guidance", line_of("calibrate_guidance", split="test")
    )
    assert "`masks` must be among auto, everywhere" in refused(
        "calibrate_guidance", line_of("calibrate_guidance", masks=["auto", "nowhere"])
    )


@pytest.mark.usefixtures("without_animations")
def test_explained_images(world, line_of, refused, tmp_path, capsys):
    Image.new("L", (20, 24)).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    files = {"dataset_dir": None, "images": [tmp_path / "good.png", tmp_path / "bad.png"]}
    assert explain_images.main(line_of("explain_images", **files)) == 1  # one was explained, and one was not
    assert "Not explained: " in (said := capsys.readouterr()).err and "bad.png" in said.err
    page = (tmp_path / "out/explanations.html").read_text()
    assert "Image 1" in page and "Image 2" not in page
    files["images"] = [tmp_path / "bad.png"]
    assert "None of the images" in refused("explain_images", line_of("explain_images", **files))


@pytest.mark.usefixtures("without_animations")
def test_explained_images_of_a_dataset(line_of, tmp_path):
    question = {"num_images": 1, "away": None, "towards": PHANTOM_LABELS[1]}
    assert explain_images.main(line_of("explain_images", **question)) == 0
    assert "Image 1" in (tmp_path / "out/explanations.html").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": "a.png"}, "either `images`"),
        ({"dataset_dir": None}, "Name the `images`"),
        ({"away": None}, "either `away`"),
        ({"towards": "Mass"}, "either `away`"),
        ({"away": "Yeti"}, "must be among"),
        ({"strength": 0.2, "start_snr": 1.0}, "`strength` and `start_snr`"),
        ({"max_strength": 0.5}, "`target_probability`"),
    ],
)
def test_questions_that_cannot_be_asked(changes, message, line_of, refused):
    assert message in refused("explain_images", line_of("explain_images", **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"away": None}, "Name at least one label"),
        ({"dataset": "/proc"}, "`dataset`"),
        ({"away": "Yeti"}, "Yeti"),
        ({"num_shards": 2}, "belong together"),
        ({"num_shards": 2, "shard_index": 2}, "`shard_index`"),
        ({"rows": "some"}, "not one of"),
    ],
)
def test_datasets_that_cannot_be_explained(changes, message, line_of, refused):
    assert message in refused("explain_dataset", line_of("explain_dataset", **changes))


def test_bfloat16_changes_figures_by_rounding_alone(line_of, world, tmp_path):
    for dtype in ("float32", "bfloat16"):
        evaluate_classification.main(
            line_of("evaluate_classification", dtype=dtype, num_resamples=2, output_dir=tmp_path / dtype)
        )
    results = [json.loads((tmp_path / dtype / "classification.json").read_text()) for dtype in ("float32", "bfloat16")]
    briers = [[label["brier"] for label in result["per_label"].values()] for result in results]
    assert briers[0] == pytest.approx(briers[1], abs=0.02) and briers[0] != briers[1]
