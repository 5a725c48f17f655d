"""Saving and loading the joint model in the ways that diffusers offers."""

import json

import pytest
import torch
from diffusers import UNet2DModel
from diffusers.training_utils import EMAModel
from support.components import LABELS, TINY_UNET, tiny_unet

from mediffusion_diffusers import JointUNet2DModel


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("joint")
    tiny_unet(label_thresholds=[0.2, 0.3, 0.4]).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def plain_folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("plain")
    torch.manual_seed(0)
    UNet2DModel(**TINY_UNET).save_pretrained(path)
    return path


def outputs(model):
    torch.manual_seed(1)
    sample = torch.randn(2, 4, 8, 8, dtype=model.dtype)
    with torch.no_grad():
        return model(sample, 9).to_tuple()


def assert_same_model(loaded, expected):
    assert all(torch.equal(a, b) for a, b in zip(outputs(loaded), outputs(expected), strict=True))
    assert loaded.label_names == expected.label_names


@pytest.mark.parametrize("low_cpu_mem_usage", [True, False])
def test_round_trip(folder, low_cpu_mem_usage):
    loaded = JointUNet2DModel.from_pretrained(folder, low_cpu_mem_usage=low_cpu_mem_usage)
    assert not loaded.training
    assert_same_model(loaded, tiny_unet())


@pytest.mark.parametrize("device_map", ["cpu", "auto", {"": "cpu"}], ids=str)
def test_device_map(folder, device_map):
    assert_same_model(JointUNet2DModel.from_pretrained(folder, device_map=device_map), tiny_unet())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dtype(folder, dtype):
    loaded = JointUNet2DModel.from_pretrained(folder, dtype=dtype)
    assert {parameter.dtype for parameter in loaded.parameters()} == {dtype}
    assert_same_model(loaded, tiny_unet().to(dtype))
    assert all(output.dtype == dtype for output in outputs(loaded))


def test_variant(tmp_path):
    model = tiny_unet().to(torch.float16)
    model.save_pretrained(tmp_path, variant="fp16")
    assert [path.name for path in tmp_path.glob("*.safetensors")] == ["diffusion_pytorch_model.fp16.safetensors"]
    assert_same_model(JointUNet2DModel.from_pretrained(tmp_path, variant="fp16", dtype=torch.float16), model)
    with pytest.raises(OSError):
        JointUNet2DModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("low_cpu_mem_usage", [True, False])
def test_shards(tmp_path, low_cpu_mem_usage):
    tiny_unet().save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert_same_model(JointUNet2DModel.from_pretrained(tmp_path, low_cpu_mem_usage=low_cpu_mem_usage), tiny_unet())


def test_loading_info(folder):
    model, info = JointUNet2DModel.from_pretrained(folder, output_loading_info=True)
    assert_same_model(model, tiny_unet())
    assert not any(info[name] for name in ("missing_keys", "mismatched_keys", "unexpected_keys"))


def test_ema_saves_and_loads(tmp_path):
    model = tiny_unet()
    ema = EMAModel(model.parameters(), decay=0.5, model_cls=JointUNet2DModel, model_config=model.config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    ema.step(model.parameters())
    ema.save_pretrained(tmp_path)
    loaded = EMAModel.from_pretrained(tmp_path, JointUNet2DModel)
    assert loaded.optimization_step == 1
    assert all(torch.equal(a, b) for a, b in zip(loaded.shadow_params, ema.shadow_params, strict=True))
    # What evaluation and the pipelines read are these weights, with the labels.
    averaged = JointUNet2DModel.from_pretrained(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(averaged.parameters(), ema.shadow_params, strict=True))
    assert averaged.label_names == list(LABELS)


class TestMissingHead:
    def test_plain_unet_is_refused(self, plain_folder):
        with pytest.raises(ValueError, match=r"no classifier head.*ignore_mismatched_sizes=True.*from_unet"):
            JointUNet2DModel.from_pretrained(plain_folder)

    @pytest.mark.parametrize("labels", [{"num_labels": 5}, {"id2label": dict(enumerate("abcde"))}])
    def test_other_label_count_is_refused(self, folder, labels):
        with pytest.raises(ValueError, match=r"the 5 labels.*4\.bias \(\(3,\) in the checkpoint, \(5,\) in the model"):
            JointUNet2DModel.from_pretrained(folder, **labels)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("low_cpu_mem_usage", [True, False])
    @pytest.mark.parametrize("kind", ["plain", "other_label_count"])
    def test_fresh_head_on_request(self, folder, plain_folder, kind, low_cpu_mem_usage, dtype):
        source = plain_folder if kind == "plain" else folder
        model = JointUNet2DModel.from_pretrained(
            source, num_labels=5, ignore_mismatched_sizes=True, low_cpu_mem_usage=low_cpu_mem_usage, dtype=dtype
        )
        assert model.config.num_labels == 5 and model.config.label_thresholds is None
        for parameter in model.classifier.parameters():
            # PyTorch's default: uniform within 1 / sqrt(inputs), which no uninitialised memory obeys for long.
            assert parameter.device.type == "cpu" and parameter.dtype == dtype and parameter.requires_grad
            assert 0 < parameter.abs().max() <= 1
        sample, logits = outputs(model)
        assert logits.shape == (2, 5) and torch.isfinite(logits).all()
        expected = UNet2DModel.from_pretrained(plain_folder, dtype=dtype) if kind == "plain" else tiny_unet().to(dtype)
        assert torch.equal(sample, outputs(expected)[0])
        # Trainable like any other.
        model(torch.randn(1, 4, 8, 8, dtype=dtype), 1).logits.sum().backward()
        assert model.classifier[-1].weight.grad.abs().sum() > 0

    @pytest.mark.parametrize("fresh", [True, False])
    def test_device_map_needs_a_whole_checkpoint(self, plain_folder, fresh):
        with pytest.raises(ValueError, match="Load it without `device_map`"):
            JointUNet2DModel.from_pretrained(plain_folder, ignore_mismatched_sizes=fresh, device_map="cpu")

    def test_fresh_head_depends_on_the_seed_alone(self, plain_folder):
        heads = []
        for seed in (0, 0, 1):
            torch.manual_seed(seed)
            model = JointUNet2DModel.from_pretrained(plain_folder, num_labels=2, ignore_mismatched_sizes=True)
            heads.append(model.classifier[1].weight)
        assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])

    @pytest.mark.parametrize("fresh", [True, False])
    def test_missing_unet_weights_are_always_refused(self, folder, tmp_path, fresh):
        from safetensors.torch import load_file, save_file

        weights = load_file(folder / "diffusion_pytorch_model.safetensors")
        del weights["conv_in.weight"]
        save_file(weights, tmp_path / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
        (tmp_path / "config.json").write_text((folder / "config.json").read_text())
        with pytest.raises(ValueError, match=r"conv_in\.weight"):
            JointUNet2DModel.from_pretrained(tmp_path, ignore_mismatched_sizes=fresh)

    def test_renaming_keeps_the_head_and_drops_the_thresholds(self, folder):
        model = JointUNet2DModel.from_pretrained(folder, id2label={0: "x", 1: "y", 2: "z"})
        assert model.label_names == ["x", "y", "z"] and model.config.label_thresholds is None
        assert torch.equal(outputs(model)[1], outputs(tiny_unet())[1])


def test_config_file_is_readable(folder):
    config = json.loads((folder / "config.json").read_text())
    assert config["_class_name"] == "JointUNet2DModel"
    assert config["id2label"] == {str(index): name for index, name in enumerate(LABELS)}
    assert config["label2id"] == {name: index for index, name in enumerate(LABELS)}


def test_layerwise_casting_stores_small_and_computes_in_full():
    model = tiny_unet()
    expected = outputs(model)
    model.enable_layerwise_casting(storage_dtype=torch.bfloat16, compute_dtype=torch.float32)
    assert model.conv_in.weight.dtype == torch.bfloat16
    assert model.dtype == torch.float32
    for actual, wanted in zip(outputs(model), expected, strict=True):
        assert actual.dtype == torch.float32
        torch.testing.assert_close(actual, wanted, atol=0.1, rtol=0.1)
