"""Channels-last layout and prepared convolutions change the speed alone."""

import copy
import pickle

import pytest
import torch
from support.components import tiny_unet, tiny_vae
from support.convolutions import assert_agree, assert_equal, convolution, images, output_and_gradient
from torch import nn

from mediffusion_diffusers.acceleration import packing, prepack_convolutions, to_channels_last
from mediffusion_diffusers.acceleration.kernels import DirectKernel
from mediffusion_diffusers.acceleration.packing import PrepackedConv2d
from mediffusion_diffusers.acceleration.winograd import POINTS


pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")


def guided(unet, sample):
    """What guidance takes from the joint model: noise, logits, and the gradient of a logit."""
    leaf = sample.clone().requires_grad_()
    output = unet(leaf, 300, detach_decoder=True)
    return output.sample, output.logits.detach(), torch.autograd.grad(output.logits[:, 0].sum(), leaf)[0]


@pytest.mark.parametrize(
    "overrides, has_gradient_kernel",
    [
        ({}, True),
        ({"bias": False}, True),
        ({"in_channels": 4}, True),
        ({"kernel_size": 1, "padding": 0}, True),
        ({"kernel_size": (3, 5), "padding": (0, 2)}, True),
        ({"dilation": 2, "padding": 2}, True),
        ({"stride": 2}, False),
        ({"stride": 2, "padding": 0}, False),
        ({"kernel_size": 1, "padding": 1}, False),  # wider than the kernel: the gradient crops
    ],
    ids=str,
)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_packed_equals_eager(overrides, has_gradient_kernel, layout):
    layer = convolution(**overrides)
    sample = images(2, layer.in_channels, 12, 11).contiguous(memory_format=layout)
    eager = output_and_gradient(layer, sample)
    with prepack_convolutions(layer) as handle:
        assert_agree(output_and_gradient(layer, sample), eager)
        assert handle.num_packed == 1
        assert (layer.packed.gradient_kernel is not None) == has_gradient_kernel


def test_unet_and_its_classifiers_gradient():
    unet, sample = tiny_unet().requires_grad_(False), images(2, 4, 8, 8)
    eager = guided(unet, sample)
    num_convolutions = sum(isinstance(layer, nn.Conv2d) for layer in unet.modules())
    with prepack_convolutions(unet) as handle:
        assert handle.num_packed == 0
        assert_agree(guided(unet, sample), eager)
        assert handle.num_packed == num_convolutions
    assert_equal(guided(unet, sample), eager)


def test_autoencoder():
    vae, pixels = tiny_vae("kl").requires_grad_(False), images(1, 1, 16, 16)
    eager = vae.decode(vae.encode(pixels).latent_dist.mode()).sample
    with prepack_convolutions(vae):
        assert_agree([vae.decode(vae.encode(pixels).latent_dist.mode()).sample], [eager])


def test_decoder_packs_no_weight_for_a_gradient():
    unet = tiny_unet().requires_grad_(False)
    with prepack_convolutions(unet):
        guided(unet, images(1, 4, 8, 8))
        assert unet.conv_in.packed.gradient_kernel is not None
        assert unet.conv_out.packed.gradient_kernel is None


def test_any_batch_size_uses_the_same_packed_weight():
    layer = convolution()
    eager = layer(images(5, 16, 8, 8))
    with prepack_convolutions(layer):
        layer(images(1, 16, 8, 8))
        packed = layer.packed
        assert_agree([layer(images(5, 16, 8, 8))], [eager])
        assert layer.packed is packed


def test_another_image_size_packs_again():
    layer = convolution()
    eager = [output_and_gradient(layer, images(1, 16, size, 8)) for size in (8, 20, 8)]
    with prepack_convolutions(layer):
        for size, wanted in zip((8, 20, 8), eager, strict=True):
            assert_agree(output_and_gradient(layer, images(1, 16, size, 8)), wanted)
            assert layer.packed.image_size == (size, 8)


@pytest.mark.parametrize("change", ["in place", "data", "parameter", "state_dict", "layout"])
def test_another_weight_packs_again(change):
    layer, sample = convolution(), images(1, 16, 8, 8)
    new = images(*layer.weight.shape) / 10
    with prepack_convolutions(layer) as handle:
        output_and_gradient(layer, sample)
        if change == "in place":
            layer.weight.copy_(new)
        elif change == "data":
            layer.weight.data = new
        elif change == "parameter":
            layer.weight = nn.Parameter(new, requires_grad=False)
        elif change == "state_dict":
            layer.load_state_dict({**layer.state_dict(), "weight": new})
        else:
            to_channels_last(layer)
        got = output_and_gradient(layer, sample)
        assert handle.num_packed == 1
    assert_agree(got, output_and_gradient(layer, sample))


def test_the_model_is_left_as_it_was():
    unet, sample = tiny_unet().requires_grad_(False), images(1, 4, 8, 8)
    parameters, state, kinds = (
        list(unet.parameters()),
        copy.deepcopy(unet.state_dict()),
        list(map(type, unet.modules())),
    )
    attributes = [set(vars(module)) for module in unet.modules()]
    with prepack_convolutions(unet):
        guided(unet, sample)
        during = unet.state_dict()
        assert list(map(id, unet.parameters())) == list(map(id, parameters))
    assert during.keys() == state.keys()
    assert all(torch.equal(during[name], state[name]) for name in state)
    assert list(map(type, unet.modules())) == kinds
    assert [set(vars(module)) for module in unet.modules()] == attributes
    assert not any(parameter.requires_grad for parameter in parameters)


def test_random_numbers_are_left_alone():
    layer = convolution()
    torch.manual_seed(5)
    with prepack_convolutions(layer):
        output_and_gradient(layer, images(1, 16, 8, 8))
    drawn = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(3))


def test_packing_under_inference_mode_serves_later_gradients():
    layer, sample = convolution(), images(1, 16, 8, 8)
    eager = output_and_gradient(layer, sample)
    with prepack_convolutions(layer):
        with torch.inference_mode():
            layer(sample)
        packed = layer.packed
        assert_agree(output_and_gradient(layer, sample), eager)
        assert layer.packed is packed


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies_pack_for_themselves(duplicate):
    layer, sample = convolution(), images(1, 16, 8, 8)
    with prepack_convolutions(layer):
        layer(sample)
        other = duplicate(layer)
        other.weight.mul_(2)
        assert isinstance(other, PrepackedConv2d)
        assert_agree(
            [other(sample) - other.bias.reshape(-1, 1, 1)], [2 * (layer(sample) - layer.bias.reshape(-1, 1, 1))]
        )
        assert other.packed is not layer.packed


def test_a_second_handle_takes_over_nothing():
    layer = convolution()
    with prepack_convolutions(layer) as first:
        with prepack_convolutions(layer) as second:
            assert (len(first.layers), len(second.layers)) == (1, 0)
        assert isinstance(layer, PrepackedConv2d)
    assert type(layer) is nn.Conv2d


@pytest.mark.parametrize(
    "overrides",
    [{"groups": 2}, {"padding_mode": "circular"}, {"padding": "same"}],
    ids=str,
)
def test_layers_that_are_never_packed(overrides, messages):
    layer = convolution(**overrides)
    with prepack_convolutions(nn.Sequential(layer, convolution())) as handle:
        assert type(layer) is nn.Conv2d
        assert len(handle.layers) == 1
    (message,) = messages("INFO")
    assert message.startswith("1 of 2 convolutions of Sequential may run with prepared weights")


def test_layers_with_hooks_are_never_packed():
    from diffusers.hooks import apply_layerwise_casting

    unet = tiny_unet().requires_grad_(False)
    apply_layerwise_casting(unet, storage_dtype=torch.bfloat16, compute_dtype=torch.float32)
    with prepack_convolutions(unet) as handle:
        hooked = [
            layer for layer in unet.modules() if isinstance(layer, nn.Conv2d) and hasattr(layer, "_diffusers_hook")
        ]
        assert hooked
        assert not {*map(id, hooked)} & {*map(id, handle.layers)}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_stay_eager(dtype):
    layer, sample = convolution().to(dtype), images(1, 16, 8, 8).to(dtype)
    eager = output_and_gradient(layer, sample)
    with prepack_convolutions(layer) as handle:
        assert_equal(output_and_gradient(layer, sample), eager)
        assert handle.num_packed == 0


def test_trainable_weights_stay_eager_and_get_their_gradient():
    layer, sample = convolution().requires_grad_(True), images(1, 16, 8, 8)
    with prepack_convolutions(layer) as handle:
        layer(sample).sum().backward()
        assert handle.num_packed == 0
        assert layer.weight.grad.abs().sum() > 0
        with torch.no_grad():
            layer(sample)
        assert handle.num_packed == 1


@pytest.mark.filterwarnings("ignore:TF32 acceleration")
@pytest.mark.parametrize("case", ["autocast", "oneDNN off", "unbatched", "empty batch"])
def test_calls_that_stay_eager(case):
    layer = convolution()
    sample = {"unbatched": images(16, 8, 8), "empty batch": images(0, 16, 8, 8)}.get(case, images(1, 16, 8, 8))
    with torch.autocast("cpu", enabled=case == "autocast"), torch.backends.mkldnn.flags(enabled=case != "oneDNN off"):
        eager = layer(sample)
        with prepack_convolutions(layer) as handle:
            assert torch.equal(layer(sample), eager)
            assert handle.num_packed == 0


def test_a_result_that_disagrees_stays_eager(monkeypatch, messages):
    layers = nn.Sequential(*(convolution(out_channels=16) for _ in range(3)))
    sample = images(1, 16, 8, 8)
    eager = output_and_gradient(layers, sample)
    monkeypatch.setattr(packing, "MAX_RELATIVE_ERROR", -1.0)
    with prepack_convolutions(layers) as handle:
        for _ in range(2):
            assert_equal(output_and_gradient(layers, sample), eager)
        assert handle.num_packed == 0
    said = messages("WARNING")  # once per kernel for the three layers of one shape
    assert len(said) == 1 + len(POINTS)
    assert all("(16, 16, 3, 3)" in message and "differs from the eager result" in message for message in said)


def test_a_gradient_that_disagrees_stays_eager(monkeypatch):
    layer, sample = convolution(), images(1, 16, 8, 8)
    _, gradient = output_and_gradient(layer, sample)
    with prepack_convolutions(layer) as handle:
        layer(sample)
        monkeypatch.setattr(packing, "MAX_RELATIVE_ERROR", -1.0)
        assert torch.equal(output_and_gradient(layer, sample)[1], gradient)
        assert handle.num_packed == 1


def test_a_missing_operator_stays_eager(monkeypatch, messages):
    layer, sample = convolution(), images(1, 16, 8, 8)
    eager = output_and_gradient(layer, sample)

    def missing(*arguments):
        raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute '_convolution_pointwise'")

    monkeypatch.setattr(DirectKernel, "__call__", missing)
    with prepack_convolutions(layer, winograd=False) as handle:
        assert_equal(output_and_gradient(layer, sample), eager)
        assert handle.num_packed == 0
    assert "no attribute '_convolution_pointwise'" in messages("WARNING")[0]


def test_channels_last_keeps_values():
    unet, sample = tiny_unet().requires_grad_(False), images(2, 4, 8, 8)
    eager, state = guided(unet, sample), copy.deepcopy(unet.state_dict())
    assert to_channels_last(unet) is unet
    assert_equal(unet.state_dict().values(), state.values())
    assert unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    assert_agree(guided(unet, sample), eager)
