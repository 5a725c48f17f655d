import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.sources import random_picture
from support.training import TINY_JOINT, joint_config

from mediffusion_diffusers import (
    JointUNet2DModel,
    MediffusionClassifyPipeline,
    MediffusionCounterfactualPipeline,
    SpaceToDepthAutoencoder,
)
from mediffusion_diffusers.data.pictures import encode_png
from mediffusion_diffusers.data.schema import DatasetInfo, load_info, load_prepared, make_row
from mediffusion_diffusers.data.writer import write_prepared
from mediffusion_diffusers.evaluation.classification import per_label_auroc
from mediffusion_diffusers.metrics_log import read_metrics
from mediffusion_diffusers.output_folder import LOCK_FILE
from mediffusion_diffusers.training.joint.components import COUNTERFACTUAL_DEFAULTS
from mediffusion_diffusers.training.joint.task import JointTask, train_joint


TIMINGS = ("seconds", "images_per_second", "data_wait_share")
# The second phase begins in the middle of a logging window, every second step has a class loss, dropout is on.
RECIPE = (
    *("--classifier_start_step", 1, "--classifier_every", 2, "--lr_restart_at_classifier_start"),
    *("--lr_scheduler", "cosine", "--lr_warmup_steps", 1, "--logging_steps", 4, "--classifier_dropout", 0.3),
)


def run(phantoms, output_dir, *arguments):
    line = (*TINY_JOINT, "--dataset_dir", phantoms, "--labelled_split", phantoms / "labelled-50.json")
    train_joint(joint_config(*line, "--output_dir", output_dir, *arguments))
    return output_dir


def records(folder):
    """metrics.jsonl without what the clock says."""
    return [{k: v for k, v in record.items() if k not in TIMINGS} for record in read_metrics(folder / "metrics.jsonl")]


@pytest.fixture(scope="module")
def finished(phantoms, tmp_path_factory):
    """An uninterrupted run of 6 steps."""
    return run(phantoms, tmp_path_factory.mktemp("joint") / "run", *RECIPE, "--counterfactual_strength", 0.25)


def test_the_folder_holds_everything(finished):
    entries = {path.name for path in finished.iterdir()}
    assert {"model_index.json", "unet", "vae", "scheduler", "README.md", "metrics.jsonl", "samples"} <= entries
    assert {"checkpoint-3", "checkpoint-6", "training_config.json"} <= entries
    assert [name for name in entries if name.startswith(".")] == [LOCK_FILE]
    assert [path.name for path in sorted((finished / "samples").iterdir())] == ["step-0000003.png", "step-0000006.png"]
    assert all(path.suffix in (".json", ".safetensors") for path in (finished / "checkpoint-6").iterdir())


def test_the_metrics_tell_the_course(finished):
    train = [record for record in read_metrics(finished / "metrics.jsonl") if record["kind"] == "train"]
    assert [record["step"] for record in train] == [4, 6]
    for record in train:
        assert record["diffusion_loss"] > 0 and record["classification_loss"] > 0 and record["images_per_second"] > 0
        assert 0 <= record["data_wait_share"] <= 1
    validation = [record for record in read_metrics(finished / "metrics.jsonl") if record["kind"] == "validation"]
    assert [record["step"] for record in validation] == [3, 6] and 0 <= validation[-1]["macro_auroc"] <= 1


def test_the_configuration_is_stored(finished, phantoms):
    config = json.loads((finished / "training_config.json").read_text())
    split = json.loads((phantoms / "labelled-50.json").read_text())
    assert config["labelled_split"]["hash"] == split["sha256"] and config["num_labelled_images"] == 12
    assert config["arguments"]["classifier_every"] == 2 and "hub_token" not in config["arguments"]
    assert config["num_classification_steps"] == 3 and config["versions"]["torch"] == torch.__version__


def test_the_pipeline_loads_and_explains(finished, phantoms):
    pipe = MediffusionCounterfactualPipeline.from_pretrained(finished)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.unet.label_names == load_info(phantoms).label_names
    assert pipe.unet.config.guidance_defaults == {**COUNTERFACTUAL_DEFAULTS, "strength": 0.25}
    assert all(0 < threshold < 1 for threshold in pipe.unet.config.label_thresholds)
    assert pipe.scheduler.config.set_alpha_to_one is False and pipe.scheduler.config.beta_end == 0.0195
    image = load_prepared(phantoms, "validation")[0]["image"]
    output = pipe(image, away="Mass", num_inference_steps=2, guidance_scale=1.0)
    assert output.images[0].size == (16, 16)


def test_the_average_is_saved_and_is_what_was_validated(finished, phantoms):
    saved = load_file(finished / "unet" / "diffusion_pytorch_model.safetensors")
    average = load_file(finished / "checkpoint-6" / "ema.safetensors")
    raw = load_file(finished / "checkpoint-6" / "unet.safetensors")
    assert saved.keys() == average.keys() == raw.keys()
    assert all(torch.equal(tensor, average[name]) for name, tensor in saved.items())
    assert not any(torch.equal(saved[name], raw[name]) for name in saved)

    pipe = MediffusionClassifyPipeline.from_pretrained(finished)
    pipe.set_progress_bar_config(disable=True)
    rows = load_prepared(phantoms, "validation")
    probabilities = pipe(rows["image"][:]).probabilities
    auroc = per_label_auroc(np.array(rows["labels"][:]), np.asarray(probabilities))
    recorded = records(finished)[-1]["auroc"]
    for name, value in zip(pipe.unet.label_names, auroc, strict=True):
        assert value == pytest.approx(recorded[name], abs=1e-6) if name in recorded else np.isnan(value)


def test_the_latents_have_unit_scale(finished, phantoms):
    vae = SpaceToDepthAutoencoder.from_pretrained(finished, subfolder="vae")
    pixels = np.stack([np.asarray(image) for image in load_prepared(phantoms, "train")["image"][:]]) / 127.5 - 1
    assert vae.config.scaling_factor == pytest.approx(1 / pixels.std(), rel=1e-5)


@pytest.mark.parametrize("extra", [(), ("--gradient_accumulation_steps", 2)], ids=["plain", "accumulated"])
def test_resuming_is_as_if_nothing_had_happened(finished, phantoms, tmp_path, extra):
    whole = run(phantoms, tmp_path / "whole", *RECIPE, *extra) if extra else finished
    resumed = tmp_path / "run"
    shutil.copytree(whole, resumed, ignore=shutil.ignore_patterns("checkpoint-6", "unet", "step-0000006.png"))
    run(phantoms, resumed, *RECIPE, *extra, "--counterfactual_strength", 0.25, "--resume_from_checkpoint", "latest")
    for name in ("unet", "ema", "optimizer"):
        expected = load_file(whole / "checkpoint-6" / f"{name}.safetensors")
        tensors = load_file(resumed / "checkpoint-6" / f"{name}.safetensors")
        assert tensors.keys() == expected.keys()
        assert all(torch.equal(tensor, expected[key]) for key, tensor in tensors.items()), name
    assert records(resumed) == records(whole)
    for name in ("unet/diffusion_pytorch_model.safetensors", "samples/step-0000006.png"):
        assert (resumed / name).read_bytes() == (whole / name).read_bytes()


def test_a_finished_run_can_be_started_again(finished, phantoms, tmp_path):
    again = tmp_path / "run"
    shutil.copytree(finished, again, ignore=shutil.ignore_patterns("unet", "model_index.json"))
    run(phantoms, again, *RECIPE, "--counterfactual_strength", 0.25, "--resume_from_checkpoint", "latest")
    assert records(again) == records(finished)
    for name in ("unet/diffusion_pytorch_model.safetensors", "unet/config.json"):
        assert (again / name).read_bytes() == (finished / name).read_bytes()


def test_accumulation_changes_nothing_but_rounding(phantoms, tmp_path):
    """Also with fewer labelled images than parts."""
    common = ("--classifier_dropout", 0, "--labelled_batch_size", 2, "--max_train_steps", 3)
    whole = run(phantoms, tmp_path / "whole", *common)
    split = run(phantoms, tmp_path / "split", *common, "--gradient_accumulation_steps", 4)
    for one, other in zip(records(whole), records(split), strict=True):
        for name in ("diffusion_loss", "classification_loss"):
            assert one[name] == pytest.approx(other[name], rel=1e-4)
    weights, others = (load_file(each / "checkpoint-3" / "unet.safetensors") for each in (whole, split))
    assert all(torch.allclose(tensor, others[name], atol=1e-4) for name, tensor in weights.items())


def test_the_head_rests_until_its_start(phantoms, tmp_path):
    line = (*TINY_JOINT, "--dataset_dir", phantoms, "--classifier_start_step", 3, "--adam_weight_decay", 0.5)
    folder = tmp_path / "run"
    train_joint(joint_config(*line, "--output_dir", folder))
    arguments = joint_config(*line, "--output_dir", tmp_path / "other")
    initial = JointTask(arguments).unet.state_dict()
    first, last = (load_file(folder / f"checkpoint-{step}" / "unet.safetensors") for step in (3, 6))
    early_state = load_file(folder / "checkpoint-3" / "optimizer.safetensors")
    assert not [name for name in early_state if name.startswith("classifier.")]
    for name in (name for name in initial if name.startswith("classifier.")):
        assert torch.equal(first[name], initial[name]) and not torch.equal(last[name], initial[name])
    assert "classification_loss" not in records(folder)[0]


def test_classification_alone_and_diffusion_alone(phantoms, tmp_path):
    """Table 3's ablation, and a plain diffusion model."""
    folder = run(phantoms, tmp_path / "classify", "--diffusion_loss_weight", 0, "--max_train_steps", 2)
    assert "diffusion_loss" not in records(folder)[0] and not (folder / "samples").exists()
    folder = run(phantoms, tmp_path / "denoise", "--classifier_loss_weight", 0, "--max_train_steps", 2)
    assert "classification_loss" not in records(folder)[0]


def test_training_goes_on_from_a_checkpoint_of_the_same_kind(finished, phantoms, tmp_path):
    line = tuple(each for each in TINY_JOINT)
    cut = line.index("--block_out_channels")
    rest = line[line.index("--classifier_hidden_size") :]
    common = ("--dataset_dir", phantoms, "--max_train_steps", 1, "--learning_rate", 1e-9, "--no-use_ema")
    arguments = (*line[:cut], *rest, *common, "--unet_path", finished, "--output_dir", tmp_path / "run")
    train_joint(joint_config(*arguments))
    before = JointUNet2DModel.from_pretrained(finished, subfolder="unet").state_dict()
    after = JointUNet2DModel.from_pretrained(tmp_path / "run", subfolder="unet").state_dict()
    assert all(torch.allclose(tensor, after[name], atol=1e-6) for name, tensor in before.items())


def change_info(phantoms, folder, **values):
    """A copy of the dataset that says other things about itself."""
    shutil.copytree(phantoms, folder)
    info = load_info(folder)
    DatasetInfo(**{**vars(info), **values}).save(folder)
    return folder


def test_without_a_validation_split_training_patients_are_held_out(phantoms, tmp_path):
    folder = tmp_path / "data"
    shutil.copytree(phantoms, folder, ignore=shutil.ignore_patterns("validation-*"))
    out = run(folder, tmp_path / "run", "--max_train_steps", 1, "--validation_share", 50)
    config = json.loads((out / "training_config.json").read_text())
    assert config["num_validation_images"] == 6 and config["num_train_images"] == 18
    assert config["num_labelled_images"] == 12
    out = run(folder, tmp_path / "none", "--max_train_steps", 1, "--validation_share", 0)
    assert JointUNet2DModel.from_pretrained(out, subfolder="unet").config.label_thresholds is None


def skin_dataset(folder, known=12):
    """A prepared single-label RGB dataset of 12 training and 6 validation images, some without a class."""
    info = DatasetInfo(
        "skin", "made up", "CC0", "nobody", "single_label_classification", ["NV", "MEL", "BCC"], 3, image_size=16
    )

    def rows(split, count, known):
        for index in range(count):
            label = index % 3 if index < known else None
            picture = encode_png(random_picture(index + 100 * len(split), mode="RGB"))
            yield make_row(info, picture, f"{split}-{index}", label=label)

    splits = {"train": rows("train", 12, known), "validation": rows("validation", 6, 5)}
    write_prepared(folder, splits, info, show_progress=False)
    return folder


def test_single_label_colour_images_with_an_unlabelled_pool(tmp_path):
    data = skin_dataset(tmp_path / "data", known=7)
    line = (*TINY_JOINT, "--dataset_dir", data, "--horizontal_flip", "--random_crop_scale", 0.5, 1.0)
    train_joint(joint_config(*line, "--output_dir", tmp_path / "run"))
    config = json.loads((tmp_path / "run" / "training_config.json").read_text())
    assert config["num_labelled_images"] == 7 and config["num_train_images"] == 12
    pipe = MediffusionClassifyPipeline.from_pretrained(tmp_path / "run")
    pipe.set_progress_bar_config(disable=True)
    assert pipe.unet.config.problem_type == "single_label_classification"
    probabilities = np.asarray(pipe(load_prepared(data, "validation")["image"][:2]).probabilities)
    assert probabilities.sum(axis=1) == pytest.approx([1, 1], abs=1e-5)
    assert records(tmp_path / "run")[-1]["auroc"].keys() == {"NV", "MEL", "BCC"}


def test_a_dataset_without_labels_is_refused_unless_it_only_denoises(tmp_path):
    data = skin_dataset(tmp_path / "data", known=0)
    line = (*TINY_JOINT, "--dataset_dir", data, "--max_train_steps", 1)
    with pytest.raises(ValueError, match="The labelled split is empty: no training image"):
        train_joint(joint_config(*line, "--output_dir", tmp_path / "run"))
    train_joint(joint_config(*line, "--output_dir", tmp_path / "run", "--classifier_loss_weight", 0))


def test_foreign_and_empty_splits_are_refused(phantoms, tmp_path):
    other = change_info(phantoms, tmp_path / "other", name="other")
    with pytest.raises(ValueError, match=r"`labelled_split` was drawn from dataset 'phantom', but .* holds 'other'"):
        run(other, tmp_path / "run")
    changed = json.loads((phantoms / "labelled-50.json").read_text())
    changed["image_ids"] = changed["image_ids"][1:]
    (tmp_path / "changed.json").write_text(json.dumps(changed))
    with pytest.raises(ValueError, match="was changed after it was written"):
        run(phantoms, tmp_path / "run", "--labelled_split", tmp_path / "changed.json")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_data_and_models_that_do_not_fit_are_refused(phantoms, tmp_path):
    with pytest.raises(ValueError, match="`resolution` must be a multiple of the autoencoder's factor 2, but got 15"):
        run(phantoms, tmp_path / "run", "--resolution", 15)
    colour = change_info(phantoms, tmp_path / "colour", channels=3)
    grey = tmp_path / "grey"
    SpaceToDepthAutoencoder().save_pretrained(grey)
    with pytest.raises(ValueError, match="reads images of 1 channels, but dataset 'phantom' has 3"):
        line = [each for each in TINY_JOINT if each not in ("--vae", "space_to_depth")]
        train_joint(joint_config(*line, "--vae_path", grey, "--dataset_dir", colour, "--output_dir", tmp_path / "run"))
    with pytest.raises(ValueError, match=r"`dataset_dir` must be a folder written by `mediffusion prepare`"):
        run(phantoms / "data", tmp_path / "run", "--labelled_split", phantoms / "labelled-50.json")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_another_run_is_not_mixed_in(finished, phantoms, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    before = (folder / "metrics.jsonl").read_bytes()
    with pytest.raises(ValueError, match=r"holds another run\. Continue it with `--resume_from_checkpoint latest`"):
        run(phantoms, folder)
    with pytest.raises(ValueError, match="belongs to another model"):
        run(phantoms, folder, "--classifier_hidden_size", 4, "--resume_from_checkpoint", "latest")
    assert (folder / "checkpoint-6").exists() and (folder / "metrics.jsonl").read_bytes() == before
    assert json.loads((folder / "training_config.json").read_text())["arguments"]["classifier_hidden_size"] == 8
    run(phantoms, folder, "--overwrite_output_dir", "--max_train_steps", 1)
    assert sorted(path.name for path in folder.glob("checkpoint-*")) == ["checkpoint-1"]
    assert {record["step"] for record in records(folder)} == {1}


def test_a_tracker_that_is_not_installed_is_refused(phantoms, tmp_path):
    with pytest.raises(ValueError, match="`report_to` must be an installed tracker, but 'no_such_tracker' is not"):
        run(phantoms, tmp_path / "run", "--report_to", "no_such_tracker")


def test_a_batch_smaller_than_its_parts_is_refused(phantoms, tmp_path):
    with pytest.raises(ValueError, match=r"at least 1 \* 5 = 5, but got 4"):
        run(phantoms, tmp_path / "run", "--gradient_accumulation_steps", 5)


def test_an_exploding_loss_stops_the_run(phantoms, tmp_path):
    with pytest.raises(FloatingPointError, match=r"became (nan|inf) at step"):
        run(phantoms, tmp_path / "run", "--learning_rate", 1e30, "--max_grad_norm", 1e30)


def test_the_layout_of_earlier_checkpoints_is_resumed(finished, phantoms, tmp_path):
    """Before checkpoints had hashes, and runs a device: manifests held sizes alone, configurations fewer names."""
    folder = tmp_path / "run"
    shutil.copytree(finished, folder, ignore=shutil.ignore_patterns("checkpoint-6", "model_index.json", "unet"))
    manifest = folder / "checkpoint-3" / "manifest.json"
    state = json.loads((folder / "checkpoint-3" / "state.json").read_text())
    assert state.keys() == {"step", "ema", "loss_window", "num_processes"}
    content = json.loads(manifest.read_text())
    sizes = {name: facts["bytes"] for name, facts in content["files"].items()}
    manifest.write_text(json.dumps({"format_version": 1, "step": 3, "files": sizes}))
    config = json.loads((folder / "training_config.json").read_text())
    for name in ("device", "allow_tf32"):
        del config["arguments"][name]
    (folder / "training_config.json").write_text(json.dumps(config))
    run(phantoms, folder, *RECIPE, "--counterfactual_strength", 0.25, "--resume_from_checkpoint", "latest")
    for name in ("unet", "ema", "optimizer"):
        file = f"checkpoint-6/{name}.safetensors"
        assert (folder / file).read_bytes() == (finished / file).read_bytes()
