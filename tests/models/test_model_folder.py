"""No pickle is opened, no config asks for too much, no model answers with NaN."""

import json
import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.components import tiny_pipeline, tiny_unet

from mediffusion_diffusers import JointUNet2DModel, MediffusionClassifyPipeline, SpaceToDepthAutoencoder
from mediffusion_diffusers.guidance.external import ExternalClassifier
from mediffusion_diffusers.models.model_folder import local_model
from mediffusion_diffusers.models.oracle_classifier import load_oracle


class Opened:
    """Whoever unpickles this leaves a trace."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return open, (str(self.trace), "w")


@pytest.fixture(scope="module")
def saved_pipeline(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline")
    tiny_pipeline(MediffusionClassifyPipeline, vae="kl").save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved_pipeline, tmp_path):
    shutil.copytree(saved_pipeline, tmp_path / "pipeline")
    return tmp_path / "pipeline"


@pytest.fixture(scope="module")
def saved_oracle(tmp_path_factory):
    from transformers import ResNetConfig, ResNetForImageClassification

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("oracle")
    config = ResNetConfig(
        num_channels=1, embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=2
    )
    config.image_size, config.problem_type = 16, "multi_label_classification"
    ResNetForImageClassification(config).save_pretrained(folder)
    return folder


@pytest.fixture
def oracle(saved_oracle, tmp_path):
    shutil.copytree(saved_oracle, tmp_path / "oracle")
    return tmp_path / "oracle"


def pickle_weights(folder, trace):
    """Put a pickle in the place of the safetensors, as old checkpoints have it."""
    (weights,) = folder.glob("*.safetensors")
    target = weights.with_name({"model.safetensors": "pytorch_model.bin"}.get(weights.name, f"{weights.stem}.bin"))
    target.write_bytes(pickle.dumps(Opened(trace)))
    weights.unlink()


def edit(path, **fields):
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, **fields}))


def load_pipeline(folder):
    return MediffusionClassifyPipeline.from_pretrained(folder)


@pytest.mark.parametrize("part", ["unet", "vae"])
def test_pickled_weights_of_a_pipeline_are_not_opened(folder, tmp_path, part):
    pickle_weights(folder / part, tmp_path / "opened")
    loaders = [load_pipeline, lambda folder: local_model(folder, part)]
    if part == "unet":
        loaders.append(lambda folder: JointUNet2DModel.from_pretrained(folder / part))
    for load in loaders:
        with pytest.raises(ValueError, match=r"diffusion_pytorch_model\.bin, .* was not read\. Convert them"):
            load(folder)
    assert not (tmp_path / "opened").exists()


def test_pickled_weights_of_classifiers_are_not_opened(oracle, tmp_path):
    pickle_weights(oracle, tmp_path / "opened")
    for load in (load_oracle, ExternalClassifier.from_pretrained):
        with pytest.raises(ValueError, match=r"pytorch_model\.bin, .* was not read"):
            load(oracle)
    assert not (tmp_path / "opened").exists()


def test_pickle_cannot_be_asked_for_nor_be_named_by_an_index(folder, tmp_path):
    with pytest.raises(ValueError, match="`use_safetensors` must be True"):
        MediffusionClassifyPipeline.from_pretrained(folder, use_safetensors=False)
    index = {"metadata": {}, "weight_map": {"conv_in.weight": "../x.safetensors", "conv_in.bias": "x.bin"}}
    (folder / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"index\.json must name safetensors files beside it"):
        load_pipeline(folder)


HOSTILE = [
    ("unet/config.json", "layers_per_block", 10**6),
    ("unet/config.json", "layers_per_block", "2"),
    ("unet/config.json", "block_out_channels", [2**16, 2**16]),
    ("unet/config.json", "block_out_channels", "ab"),
    ("unet/config.json", "block_out_channels", [8] * 10**5),
    ("unet/config.json", "norm_num_groups", 0),
    ("unet/config.json", "sample_size", 10**7),
    ("unet/config.json", "id2label", ["a", "b", "c"]),
    ("unet/config.json", "id2label", {"a": "x"}),
    ("unet/config.json", "id2label", {"0": {"a": 1}}),
    ("unet/config.json", "id2label", {"0": "x" * 10**5}),
    ("unet/config.json", "label_thresholds", ["a", "b", "c"]),
    ("unet/config.json", "label_thresholds", 0.5),
    ("unet/config.json", "guidance_defaults", [1]),
    ("unet/config.json", "guidance_defaults", {"strength": float("nan")}),
    ("unet/config.json", "guidance_defaults", {"num_inference_steps": 10**15}),
    ("unet/config.json", "classifier_hidden_size", 2**40),
    ("unet/config.json", "classifier_dropout", float("nan")),
    ("vae/config.json", "layers_per_block", 999),
    ("vae/config.json", "latent_channels", -4),
    ("vae/config.json", "scaling_factor", "0.1"),
    ("vae/config.json", "scaling_factor", float("nan")),
    ("vae/config.json", "block_out_channels", {"a": 1}),
    ("scheduler/scheduler_config.json", "num_train_timesteps", 10**10),
    ("scheduler/scheduler_config.json", "num_train_timesteps", "many"),
    ("scheduler/scheduler_config.json", "beta_start", "low"),
    ("scheduler/scheduler_config.json", "trained_betas", "none"),
    ("scheduler/scheduler_config.json", "beta_schedule", "x"),
    ("model_index.json", "unet", ["os", "system"]),
    ("model_index.json", "scheduler", ["x"]),
    ("model_index.json", "vae", None),
    ("model_index.json", "_class_name", None),
]


@pytest.mark.parametrize("file, field, value", HOSTILE, ids=[f"{n}-{case[1]}" for n, case in enumerate(HOSTILE)])
def test_a_hostile_config_is_refused_by_file_and_field(folder, file, field, value):
    edit(folder / file, **{field: value})
    inner = next(iter(value)) if field == "guidance_defaults" and isinstance(value, dict) else field
    with pytest.raises(ValueError, match=f"`{inner}") as error:
        load_pipeline(folder)
    assert file in str(error.value) or file.startswith("unet")  # the model checks its labels itself, without a file
    assert len(str(error.value)) < 1000


def test_a_label_count_cannot_fill_the_memory(folder):
    edit(folder / "unet" / "config.json", num_labels=10**9, id2label=None, label2id=None)
    with pytest.raises(ValueError, match=r"unet/config\.json cannot be used: `num_labels`"):
        load_pipeline(folder)
    with pytest.raises(ValueError, match="`num_labels`"):
        JointUNet2DModel(num_labels=10**9)
    with pytest.raises(ValueError, match="`block_size`"):
        SpaceToDepthAutoencoder(block_size=10**6)


@pytest.mark.parametrize("content", [b"[1, 2]", b"{", b"\xff\xfe{", b"[" * 10**5, b""])
@pytest.mark.parametrize("file", ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json"])
def test_a_config_that_is_none_is_named(folder, file, content):
    (folder / file).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{file} is no config"):
        load_pipeline(folder)


@pytest.mark.parametrize(
    "fields, said",
    [
        ({"hidden_sizes": [2**15, 2**15]}, "its config describes .* weights, but its files hold"),
        ({"depths": [10**6, 1]}, "`depths`"),
        ({"image_size": 10**6}, "`image_size`"),
        ({"image_size": "large"}, "image_size"),
        ({"label_thresholds": ["a", "b"]}, "label_thresholds"),
        ({"label_thresholds": [0.5]}, "label_thresholds"),
    ],
)
def test_a_hostile_oracle_is_refused(oracle, fields, said):
    edit(oracle / "config.json", **fields)
    with pytest.raises(ValueError, match=said):
        load_oracle(oracle)


@pytest.mark.parametrize("fields", [{"image_mean": "grey"}, {"image_std": [0.0]}, {"size": {"height": 10**7}}])
def test_hostile_preprocessing_is_refused(oracle, fields):
    preprocessing = {"image_processor_type": "ViTImageProcessor", "image_mean": [0.5], "image_std": [0.5], **fields}
    (oracle / "preprocessor_config.json").write_text(json.dumps(preprocessing))
    with pytest.raises(ValueError, match=r"image_mean|image_std|height"):
        ExternalClassifier.from_pretrained(oracle)


@pytest.mark.parametrize("part", ["unet", "vae"])
@pytest.mark.parametrize("number", [float("nan"), float("-inf")])
def test_weights_that_are_no_numbers_are_refused(folder, part, number):
    path = folder / part / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    name = next(name for name in weights if name.endswith("conv_in.weight"))
    weights[name][0, 0, 0, 0] = number
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=rf"NaN or infinite numbers, as '{name}'"):
        load_pipeline(folder)


def test_what_is_whole_loads(folder, oracle):
    assert load_pipeline(folder).label_names == tiny_unet().label_names
    assert load_oracle(oracle).label_names == ["LABEL_0", "LABEL_1"]
