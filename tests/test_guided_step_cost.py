"""A guided step costs a U-Net pass and the encoder's way back, and gives the gradient of two separate passes."""

import pytest
import torch
from diffusers.models.attention_processor import Attention
from support.components import MULTI_LABEL, PROBLEM_TYPES, tiny_unet
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from mediffusion_diffusers import JointUNet2DModel
from mediffusion_diffusers.guidance import GuidanceTarget, predict_guided
from mediffusion_diffusers.models.presets import PAPER_UNET


class OperatorFlops(TorchDispatchMode):
    """Adds up FLOPs by operator; unlike `FlopCounterMode` it bears `torch.autograd.grad`."""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.total += count(*args, **(kwargs or {}), out_val=output)
        return output


class AttentionFlops:
    """FLOPs of the products `Q K^T` and `P V` themselves, which have no weights.

    Args:
        unet: the model whose attention layers are watched.
    """

    def __init__(self, unet):
        self.total = 0
        layers = [layer for layer in unet.modules() if isinstance(layer, Attention)]
        self.hooks = [layer.register_forward_pre_hook(self.count) for layer in layers]

    def count(self, layer, args):
        batch, channels, height, width = args[0].shape
        flops = 4 * batch * (height * width) ** 2 * channels
        self.total += flops + 2 * flops * torch.is_grad_enabled()  # the way back takes twice as many products


def flops_of(unet, step):
    """FLOPs of a step: all of them, and those of layers with weights."""
    attention = AttentionFlops(unet)
    with FlopCounterMode(display=False) as counter:
        step()
    for hook in attention.hooks:
        hook.remove()
    return counter.get_total_flops(), counter.get_total_flops() - attention.total


def test_flops_at_the_papers_shape():
    with torch.device("meta"):  # shapes without numbers
        unet = JointUNet2DModel(**PAPER_UNET, num_labels=14).eval().requires_grad_(False)
        sample, timestep = torch.randn(1, 4, 32, 32), torch.tensor(300)

    def unguided():
        with torch.no_grad():
            unet(sample, timestep, return_logits=False)

    def guided():
        unet(sample.clone().requires_grad_(), timestep, detach_decoder=True).logits.sum().backward()

    def encoder_and_gradient():
        unet(sample.clone().requires_grad_(), timestep, return_sample=False).logits.sum().backward()

    plain, shared, encoder = (flops_of(unet, step) for step in (unguided, guided, encoder_and_gradient))
    assert shared[1] <= 1.32 * plain[1]  # convolutions and linear layers: what `FlopCounterMode` counts on a CPU
    assert shared[0] <= 1.35 * plain[0]  # attention's products too, which have twice as many on the way back
    assert plain[1] + encoder[1] >= 1.23 * shared[1]  # two passes


def test_predict_guided_computes_nothing_else():
    unet = tiny_unet().requires_grad_(False)
    sample, timestep = torch.randn(2, 4, 8, 8), torch.tensor(300)
    target = GuidanceTarget(torch.tensor([[1.0, 0, 0], [0, -1.0, 0]]), MULTI_LABEL)
    with OperatorFlops() as pieces:
        leaf = sample.clone().requires_grad_()
        torch.autograd.grad(unet(leaf, timestep, detach_decoder=True).logits.sum(), leaf)
    with OperatorFlops() as whole:
        predict_guided(unet, sample, timestep, target, 3.0, torch.tensor(0.5))
    assert whole.total == pieces.total > 0


@pytest.mark.parametrize("problem_type", PROBLEM_TYPES)
def test_one_shared_pass_gives_the_gradient_of_two(problem_type):
    unet = tiny_unet(problem_type=problem_type).requires_grad_(False)
    sample, timestep, alpha_prod_t = torch.randn(2, 4, 8, 8), torch.tensor(300), torch.tensor(0.5)
    target = GuidanceTarget(torch.tensor([[1.0, 0, 0], [0, -1.0, 0]]), problem_type)
    scale = 1 / (1 - alpha_prod_t).sqrt()  # so that the shift is the gradient itself, Eq. 2
    guided = predict_guided(unet, sample, timestep, target, float(scale), alpha_prod_t)

    with torch.no_grad():
        noise_pred = unet(sample, timestep, return_logits=False).sample
    leaf = sample.clone().requires_grad_()
    logits = unet(leaf, timestep, return_sample=False).logits
    (gradient,) = torch.autograd.grad(target.log_prob(logits).sum(), leaf)
    assert gradient.norm() > 0
    expected = noise_pred - gradient
    assert (guided.model_output - expected).norm() <= 1e-6 * gradient.norm()
    assert torch.equal(guided.logits, logits.detach())
