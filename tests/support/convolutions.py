"""Small convolutions, and what is compared of them."""

import torch
from torch import nn


def convolution(**overrides):
    """A frozen layer."""
    torch.manual_seed(0)
    arguments = {"in_channels": 16, "out_channels": 32, "kernel_size": 3, "padding": 1, **overrides}
    return nn.Conv2d(**arguments).requires_grad_(False)


def images(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def output_and_gradient(layer, sample):
    """A layer's result, and the gradient that a weighted sum of it gives to the input."""
    leaf = sample.clone().requires_grad_()
    output = layer(leaf)
    weights = torch.linspace(-1, 1, output.numel()).reshape(output.shape)
    return output.detach(), torch.autograd.grad((output * weights).sum(), leaf)[0]


def assert_agree(got, wanted):
    for value, reference in zip(got, wanted, strict=True):
        assert (value - reference).norm() <= 1e-5 * reference.norm()


def assert_equal(got, wanted):
    assert all(torch.equal(value, reference) for value, reference in zip(got, wanted, strict=True))
