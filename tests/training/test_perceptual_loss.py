import importlib.util
import json

import pytest
import torch
from transformers import ResNetConfig, ResNetModel, ViTConfig, ViTModel

from mediffusion_diffusers.training.autoencoder.perceptual_loss import (
    TransformersPerceptualLoss,
    grey_to_rgb,
    load_perceptual_loss,
)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """A tiny random ResNet of transformers with its image processor's config, as a folder."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("backbone")
    config = ResNetConfig(embedding_size=4, hidden_sizes=[4, 8, 8], depths=[1, 1, 1], layer_type="basic")
    ResNetModel(config).save_pretrained(folder)
    processor = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4], "do_normalize": True}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def pictures(channels=3, size=32, seed=0):
    return torch.rand(2, channels, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_the_distance_is_a_loop_over_stages_and_places(backbone):
    loss = load_perceptual_loss(str(backbone))
    a, b = pictures(seed=1), pictures(seed=2)
    mean, std = torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1), torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1)
    model = ResNetModel.from_pretrained(backbone).eval()
    with torch.no_grad():
        stages = [model(((x + 1) / 2 - mean) / std, output_hidden_states=True).hidden_states[1:] for x in (a, b)]
    for image in range(2):
        total = 0.0
        for one, other in zip(*stages, strict=True):
            distances = []
            for row in range(one.shape[2]):
                for column in range(one.shape[3]):
                    u, v = one[image, :, row, column], other[image, :, row, column]
                    u, v = u / u.norm().clamp_min(1e-10), v / v.norm().clamp_min(1e-10)
                    distances.append((u - v).square().sum().item())
            total += sum(distances) / len(distances)
        assert loss(a, b)[image].item() == pytest.approx(total / 3, rel=1e-4)


def test_it_is_zero_only_for_the_same_image_and_has_a_gradient(backbone):
    loss = load_perceptual_loss(str(backbone))
    a, b = pictures(seed=1), pictures(seed=2).requires_grad_()
    assert torch.equal(loss(a, a), torch.zeros(2)) and (loss(a, b) > 0).all()
    loss(a, b).sum().backward()
    assert b.grad.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in loss.model.parameters()) and not loss.model.training


def test_grey_images_are_repeated(backbone):
    loss = load_perceptual_loss(str(backbone))
    a, b = pictures(1, seed=1), pictures(1, seed=2)
    assert torch.equal(loss(a, b), loss(a.repeat(1, 3, 1, 1), b.repeat(1, 3, 1, 1)))
    assert grey_to_rgb(a).shape == (2, 3, 32, 32) and grey_to_rgb(pictures()).shape == (2, 3, 32, 32)


def test_a_vision_transformer_of_another_size(tmp_path):
    config = ViTConfig(
        hidden_size=8, num_hidden_layers=7, num_attention_heads=2, intermediate_size=8, image_size=16, patch_size=8
    )
    ViTModel(config).save_pretrained(tmp_path)
    loss = TransformersPerceptualLoss.from_pretrained(str(tmp_path))
    assert loss.mean.flatten().tolist() == [0.5]  # no processor: images go in as [-1, 1]
    assert len(loss.features(pictures())) == 5
    assert (loss(pictures(seed=1), pictures(seed=2)) > 0).all()


def test_what_cannot_be_loaded_is_said(tmp_path):
    assert load_perceptual_loss("none") is None
    with pytest.raises(ValueError, match="`perceptual` must be 'none', 'lpips', or the folder"):
        load_perceptual_loss(str(tmp_path))


@pytest.mark.skipif(importlib.util.find_spec("lpips") is not None, reason="lpips is installed")
def test_without_lpips_the_message_says_what_to_install():
    with pytest.raises(ValueError, match="needs the packages lpips and torchvision"):
        load_perceptual_loss("lpips")
