import pytest
import torch
from support.components import tiny_unet

from mediffusion_diffusers import JointUNet2DModel
from mediffusion_diffusers.models.classifier_head import classifier_head, hold_statistics


def test_a_linear_head_starts_at_zero_and_without_preference():
    head = classifier_head(6, 3, hidden_size=0, dropout=0.5)
    assert torch.equal(head(torch.randn(4, 6)), torch.zeros(4, 3))
    assert [name for name, _ in head.named_parameters()] == ["1.weight", "1.bias"]


def test_standardised_features_do_not_depend_on_their_scale():
    torch.manual_seed(0)
    head, features = classifier_head(6, 3, hidden_size=5, norm_type="batch_norm"), torch.randn(50, 6)
    scaled = features * torch.logspace(1, 3, 6) + 7
    torch.testing.assert_close(head(features), head(scaled), rtol=1e-4, atol=1e-4)


def test_held_statistics_stay_and_are_those_of_evaluation():
    torch.manual_seed(0)
    head, features = classifier_head(6, 3, hidden_size=5, norm_type="batch_norm"), torch.randn(50, 6) + 3
    head(features)
    hold_statistics(head, True)
    before = head[0].running_mean.clone()
    held = head(features)
    assert torch.equal(head[0].running_mean, before)
    torch.testing.assert_close(held, head.eval()(features))
    hold_statistics(head, False)
    assert head[0].training


@pytest.mark.parametrize(("hidden_size", "norm_type"), [(0, None), (0, "batch_norm"), (4, "batch_norm")])
def test_heads_are_saved_loaded_and_made_afresh(tmp_path, hidden_size, norm_type):
    options = {"classifier_hidden_size": hidden_size, "classifier_norm_type": norm_type}
    unet = JointUNet2DModel.from_unet(tiny_unet(), **options)
    latents = torch.randn(5, unet.config.in_channels, 8, 8)
    with torch.no_grad():
        unet.train()(latents, 0)
        torch.nn.init.normal_(unet.classifier[-1].weight)
        logits = unet.eval()(latents, 0, return_sample=False).logits
        unet.save_pretrained(tmp_path)
        loaded = JointUNet2DModel.from_pretrained(tmp_path)
        assert torch.equal(loaded(latents, 0, return_sample=False).logits, logits)
        fresh = JointUNet2DModel.from_pretrained(tmp_path, num_labels=7, ignore_mismatched_sizes=True)
        answers = fresh(latents, 0, return_sample=False).logits
    assert answers.shape == (5, 7) and torch.isfinite(answers).all()


@pytest.mark.parametrize("wrong", [{"classifier_norm_type": "layer"}, {"classifier_hidden_size": -1}])
def test_refuses(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        JointUNet2DModel.from_unet(tiny_unet(), **wrong)
