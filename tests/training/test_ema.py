import torch
from support.components import tiny_unet

from mediffusion_diffusers.training.run.ema import EMAWeights, validation_weights


def move(model, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator))


def weights(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def test_the_average_covers_trunk_and_head_and_follows_its_formula():
    unet = tiny_unet()
    ema = EMAWeights(unet, decay=0.6)
    expected = weights(unet)
    for step in range(1, 12):
        move(unet, step)
        ema.step()
        # diffusers' warm-up: (1 + n) / (10 + n) with n steps done, and the weights themselves at first.
        decay = min(0.6, step / (9 + step)) if step > 1 else 0.0
        expected = {name: expected[name] * decay + now * (1 - decay) for name, now in weights(unet).items()}
    average = ema.state_tensors()
    assert average.keys() == expected.keys() and any(name.startswith("classifier.") for name in average)
    for name, tensor in average.items():
        assert torch.allclose(tensor, expected[name], atol=1e-5), name


def test_the_weights_are_lent_and_given_back():
    unet = tiny_unet().train()
    ema = EMAWeights(unet, decay=0.9)
    for seed in range(3):
        move(unet, seed)
        ema.step()
    own = weights(unet)
    with validation_weights(unet, ema) as lent:
        assert lent is unet and not unet.training
        assert all(torch.equal(tensor, ema.state_tensors()[name]) for name, tensor in weights(unet).items())
    assert unet.training and all(torch.equal(tensor, own[name]) for name, tensor in weights(unet).items())
    with validation_weights(unet, None):
        assert not unet.training and all(torch.equal(tensor, own[name]) for name, tensor in weights(unet).items())


def test_a_restarted_warmup_forgets():
    unet = tiny_unet()
    ema = EMAWeights(unet, decay=0.999)
    for _ in range(20):
        ema.step()
    move(unet, 0)
    ema.restart_warmup()
    ema.step()
    assert all(torch.equal(tensor, ema.state_tensors()[name]) for name, tensor in weights(unet).items())
