"""Kernels with prepared weights: which one a shape takes, and how exact Winograd's are."""

import copy

import numpy as np
import pytest
import torch
from support.convolutions import assert_agree, convolution, images, output_and_gradient

from mediffusion_diffusers.acceleration import prepack_convolutions, winograd
from mediffusion_diffusers.acceleration.kernels import DirectKernel, Geometry, prepare_kernels
from mediffusion_diffusers.acceleration.winograd import POINTS, WinogradKernel, winograd_matrices


pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")


def test_a_kernel_that_fails_makes_way_for_the_next(monkeypatch, prefer):
    layer, sample = convolution(), images(1, 16, 8, 8)
    eager = output_and_gradient(layer, sample)
    prefer("winograd")
    monkeypatch.setattr(WinogradKernel, "__call__", lambda self, input, bias: torch.zeros(1, 32, 8, 8))
    with prepack_convolutions(layer):
        assert_agree(output_and_gradient(layer, sample), eager)
        assert isinstance(layer.packed.kernel, DirectKernel)


@pytest.mark.parametrize("tile_size", POINTS)
def test_winograd_matrices_convolve(tile_size):
    a_t, g, b_t = winograd_matrices(POINTS[tile_size], tile_size)
    signal, kernel = np.random.default_rng(0).normal(size=tile_size + 2), np.array([3.0, -1.0, 2.0])
    np.testing.assert_allclose(a_t @ ((g @ kernel) * (b_t @ signal)), np.correlate(signal, kernel), rtol=1e-12)


@pytest.mark.parametrize("tile_size", POINTS)
@pytest.mark.parametrize("padding", [(1, 1), (0, 0), (2, 1)])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("block_size", [1, 2**15], ids=["many blocks", "one block"])
def test_winograd_is_as_exact_as_the_direct_sum(tile_size, padding, batch, block_size, monkeypatch):
    monkeypatch.setattr(winograd, "_BLOCK_SIZE", block_size)
    monkeypatch.setattr(winograd, "_MIN_TILES", 1)
    layer = convolution(padding=padding)
    sample = images(batch, 16, 8 + 2 - 2 * padding[0], 16 + 2 - 2 * padding[1])
    exact = copy.deepcopy(layer).double()(sample.double())
    got = WinogradKernel(layer.weight, padding, tile_size)(sample, layer.bias)
    assert got.is_contiguous(memory_format=torch.channels_last)
    assert (got - exact).norm() <= 3e-6 * exact.norm()


@pytest.mark.parametrize("winograd_allowed", [True, False])
def test_layers_with_winograd_and_their_gradient(winograd_allowed, prefer):
    layer, sample = convolution(), images(2, 16, 12, 8)
    eager = output_and_gradient(layer, sample)
    prefer("winograd")
    with prepack_convolutions(layer, winograd=winograd_allowed):
        assert_agree(output_and_gradient(layer, sample), eager)
        for kernel in (layer.packed.kernel, layer.packed.gradient_kernel):
            assert isinstance(kernel, WinogradKernel) == winograd_allowed


@pytest.mark.parametrize(
    "overrides, image_size, tile_sizes",
    [
        ({}, (8, 12), {2, 4}),
        ({}, (8, 6), {2}),
        ({}, (8, 7), set()),
        ({"padding": 0}, (10, 6), {2, 4}),
        ({"stride": 2}, (8, 8), set()),
        ({"dilation": 2}, (8, 8), set()),
        ({"kernel_size": 1, "padding": 0}, (8, 8), set()),
    ],
    ids=str,
)
def test_winograd_serves_whole_tiles_of_plain_convolutions(overrides, image_size, tile_sizes):
    layer = convolution(**overrides)
    geometry = Geometry(layer.stride, layer.padding, layer.dilation)
    offered = [name for name, _ in prepare_kernels(layer.weight, geometry, torch.Size((1, 16, *image_size)), True)]
    assert {int(name.split()[1]) for name in offered if name.startswith("winograd")} == tile_sizes


def test_the_kernel_follows_from_the_shape(monkeypatch):
    monkeypatch.undo()  # the true costs

    def first(channels, side, batch=1):
        weight, geometry = torch.empty(channels, channels, 3, 3, device="meta"), Geometry((1, 1), (1, 1), (1, 1))
        offered = prepare_kernels(weight, geometry, torch.Size((batch, channels, side, side)), True)
        return next((name for name, _ in offered), "eager")

    assert first(8, 8) == "eager"  # a call costs more than its sums
    assert first(1024, 8) == "direct"  # reading the weight costs more than its sums
    assert first(256, 32) == first(512, 64) == first(512, 16, batch=4) == "winograd 4"
